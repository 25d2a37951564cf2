"""Messages of the protocol about what is promised: admission, use by tenant, losses."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import msgspec

from agentmem.node.messages import Struct

Limit = Annotated[int, msgspec.Meta(ge=1, le=10_000)]


class TenantUse(NamedTuple):
    """What a tenant has: promised pages, stored already or not, and what each tier holds.

    Bytes are payload bytes but for `promised_bytes`, which is what they take of the disk.
    """

    tenant: bytes
    promised_pages: int
    promised_bytes: int
    dram_pages: int
    dram_page_bytes: int
    disk_pages: int
    disk_page_bytes: int


class Loss(NamedTuple):
    """A promised page that was gone before its time. See `store.losses.Loss`.

    Times are microseconds since the epoch; `back_us` is 0 while the page is gone.
    """

    seq: int
    key: bytes
    claim_id: str
    tenant: bytes
    retention: str
    why: str
    lost_us: int
    back_us: int


class TenantUsage(Struct, tag="tenant_usage"):
    """What do the tenants with most have, at most so many? Answer: TenantUsageReply."""

    limit: Limit = 100


class Losses(Struct, tag="losses"):
    """Which promised pages with a higher number were gone, `gone`: are? Answer: LossesReply."""

    after_seq: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
    limit: Limit = 1000
    gone: bool = False


class ClaimReply(Struct, tag="claim_reply"):
    """How many of the pages, from the first on, are promised; `reason` why no more are: capacity,
    quota, or gap (pages before them are not). The rest is kept as cache."""

    promised: int
    reason: str = ""


class TenantUsageReply(Struct, tag="tenant_usage_reply"):
    """Most bytes first."""

    tenants: list[TenantUse]


class LossesReply(Struct, tag="losses_reply"):
    """Oldest first."""

    losses: list[Loss]
