"""What every tier below HBM gives to the node agent.

A tier's state is changed on the agent's event loop only; what waits for a medium runs in threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from agentmem.core import PageKey, Tier


class Location(NamedTuple):
    """Where a reader finds a page's record: `offset` is that of its header block.

    `key_id` names the data key of a sealed record, and is empty for a plain one.
    """

    tier: Tier
    path: str
    offset: int
    payload_bytes: int
    key_id: bytes = b""


class TierUsage(NamedTuple):
    """What a tier holds. `budget_bytes` bounds `reserved_bytes` (what it takes on the medium)."""

    pages: int
    page_bytes: int
    reserved_bytes: int
    budget_bytes: int


class PageOwner(NamedTuple):
    """What a claim told of a page: whose it is, its place in its log, and the page before it.

    `promised` is True where nothing is known.
    """

    tenant: bytes = bytes(16)
    retention: str = ""
    position: int = 0
    parent: PageKey | None = None
    promised: bool = True


NOBODY = PageOwner()


@dataclass(slots=True, eq=False)
class PageCopy:
    """One page in one tier. While `holds` > 0 its bytes stay where they are.

    `gone` says that the page is deleted, evicted or quarantined and no longer found; the last
    hold to end frees the bytes.
    """

    key: PageKey
    payload_bytes: int
    holds: int = 0
    gone: bool = False


CopyT = TypeVar("CopyT", bound=PageCopy)


class TierStore(Protocol[CopyT]):
    """A medium that holds pages."""

    @property
    def tier(self) -> Tier:
        """Its name."""
        ...

    def get(self, key: PageKey) -> CopyT | None:
        """The page's copy in this tier, None when it has none. Changes nothing."""
        ...

    def location(self, copy: CopyT) -> Location:
        """Where readers find a copy. Valid while a hold is taken."""
        ...

    def hold(self, copy: CopyT) -> None:
        """Takes a read hold."""
        ...

    def unhold(self, copy: CopyT) -> None:
        """Ends a read hold; the last one of a copy that is gone frees its bytes."""
        ...

    def usage(self) -> TierUsage:
        """What it holds now."""
        ...
