"""Messages of the protocol about whose objects lie in the object store."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import msgspec

from agentmem.node.messages import Struct


class Owner(NamedTuple):
    """One node's objects; `newest_at`: when the last was made, seconds since the epoch, 0 where no
    name tells."""

    node_id: str
    packs: int
    size_bytes: int
    newest_at: float


class PackOwners(Struct, tag="pack_owners"):
    """Whose objects lie in the store? Answer: PackOwnersReply."""


class TakePacks(Struct, tag="take_packs"):
    """Take over, or `delete`, some objects of another node; `force`: also where that node has
    written within a day. Answer: TakenReply; ask on while any are left."""

    node_id: Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern="^[!-.0-~]*$")]
    delete: bool
    force: bool


class PackOwnersReply(Struct, tag="pack_owners_reply"):
    """Most bytes first."""

    owners: list[Owner]


class TakenReply(Struct, tag="taken_reply"):
    """Objects of that node that are gone now, pages that were in them, and objects left."""

    packs: int
    pages: int
    left: int
