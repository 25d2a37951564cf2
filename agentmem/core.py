"""Frozen ids and values that every layer shares. Standard library only.

The words are those of the glossary (docs/glossary.md): one word, one thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, NamedTuple, NewType

TenantId = NewType("TenantId", str)
SessionId = NewType("SessionId", str)
TurnId = NewType("TurnId", str)
WorkerId = NewType("WorkerId", str)
ProjectId = NewType("ProjectId", str)

PageHash = NewType("PageHash", bytes)
"""SGLang's 32-byte SHA-256 chain hash of one page (see `pages.keys`)."""

PageKey = NewType("PageKey", bytes)
"""48 bytes: the 16-byte fingerprint digest followed by the 32-byte page hash."""

FINGERPRINT_DIGEST_BYTES = 16
PAGE_HASH_BYTES = 32
PAGE_KEY_BYTES = FINGERPRINT_DIGEST_BYTES + PAGE_HASH_BYTES


class Tier(StrEnum):
    """A medium that holds pages. Never a number, never a price."""

    HBM = "hbm"
    DRAM = "dram"
    DISK = "disk"
    OBJECT = "object"


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Digest of everything that a page's bytes depend on besides its tokens.

    `digest` is 16 bytes; `fields` are the inputs it was made from, kept so that a
    mismatch can be explained.
    """

    digest: bytes
    fields: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if len(self.digest) != FINGERPRINT_DIGEST_BYTES:
            raise ValueError(
                f"a fingerprint digest has {FINGERPRINT_DIGEST_BYTES} bytes, not {len(self.digest)}"
            )


Retention = Literal["scratch", "ephemeral", "standard", "persistent", "archive"]
"""How a claim's pages are kept, weakest first; `scratch` is a helper's, and never a promise that
counts."""


class ClaimTerms(NamedTuple):
    """What a claim says of its pages besides which and until when.

    `tenant`: an opaque tag of at most 16 bytes, or none. `start`: position of the first key in its
    log, in pages. `encrypted`: no tier but dram may hold the pages in clear. `quota_bytes`: most
    that the node promises to this tenant; None: as the node is set.
    """

    tenant: bytes = b""
    retention: Retention = "standard"
    encrypted: bool = False
    start: int = 0
    quota_bytes: int | None = None

    @property
    def lasting(self) -> tuple[bytes, Retention, bool, int]:
        """What is remembered of it with the claim; the quota is for the moment of admission."""
        return self.tenant, self.retention, self.encrypted, self.start


@dataclass(frozen=True, slots=True)
class TierTokens:
    """Tokens of one prompt by the tier that they came from."""

    hbm: int = 0
    dram: int = 0
    disk: int = 0
    object: int = 0

    @property
    def total(self) -> int:
        return self.hbm + self.dram + self.disk + self.object

    def as_dict(self) -> dict[str, int]:
        return {"hbm": self.hbm, "dram": self.dram, "disk": self.disk, "object": self.object}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A session's durable point: log position (tokens) and fingerprint, hence its page keys."""

    position: int
    fingerprint: Fingerprint


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a turn runs."""

    worker_id: WorkerId
    url: str


def durable_pages(log_tokens: int, page_tokens: int) -> int:
    """Pages of a log of `log_tokens` tokens that exist after its last turn: floor((L-1)/page).

    The last sampled token has no KV yet (it was never fed to the model).
    """
    return max(0, log_tokens - 1) // page_tokens
