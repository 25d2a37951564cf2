"""Messages of the protocol that move pages between tiers, or close them for good."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from agentmem.node.messages import Keys, Seconds, Struct
from agentmem.pages.record import KEY_ID_BYTES

TenantTag = Annotated[bytes, msgspec.Meta(min_length=KEY_ID_BYTES, max_length=KEY_ID_BYTES)]


class Prefetch(Struct, tag="prefetch"):
    """Bring pages up to `tier`, first ones first. Answer: CountReply, within the time given: how
    many of them, counted from the first, are there. What is under way goes on."""

    keys: Keys
    tier: Literal["dram", "disk"]
    timeout_seconds: Seconds


class Demote(Struct, tag="demote"):
    """Copy pages into the object tier; `release`: their copies above it go then. Answer:
    IndexesReply, of pages that are not there in the end."""

    keys: Keys
    release: bool


class EraseTenant(Struct, tag="erase_tenant"):
    """Destroy a tenant's data key everywhere: its sealed pages can never be opened again. Answer:
    Done."""

    tenant: TenantTag
