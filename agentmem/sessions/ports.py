"""What the sessions service needs from a node agent: claims, residency, durability, loads.

The adapter over `node.client` is in `router`; an in-memory one for tests in `testing`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from agentmem.core import ClaimTerms, PageKey, Tier


@dataclass(frozen=True, slots=True)
class Freed:
    """What letting go of a claim freed: pages that no other claim holds, and their bytes."""

    pages: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Admitted:
    """How many pages of a claim, from the first on, are promised; why no more are: capacity, quota
    or gap, empty when all are."""

    pages: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PageResidency:
    """Where one page lies below the GPU, and whether a copy survives a power failure."""

    tiers: tuple[Tier, ...]
    durable: bool


@dataclass(frozen=True, slots=True)
class NodeStats:
    """What a node agent tells of itself: gauges and counters by name, and what is degraded."""

    gauges: Mapping[str, int]
    counters: Mapping[str, int]
    degraded: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class LostPage:
    """A page that the agent had to drop though it was claimed: its number among all such."""

    number: int
    claim_id: str


class Pages(Protocol):
    """A node agent. Every method raises `errors.NodeUnavailable` when it does not answer."""

    async def claim(
        self,
        claim_id: str,
        keys: Sequence[PageKey],
        expires_at: float,
        *,
        terms: ClaimTerms | None = None,
    ) -> Admitted:
        """Claims these pages until `expires_at` (seconds since the epoch): they become durable.

        Repeating it renews; pages that do not exist yet are promised for when they come. What is
        not promised for want of room is kept as cache.
        """
        ...

    async def unclaim(self, claim_id: str, keys: Sequence[PageKey]) -> Freed:
        """Lets go of these pages; unknown ones are ignored."""
        ...

    async def residency(self, keys: Sequence[PageKey]) -> list[PageResidency]:
        """One entry per key, in order."""
        ...

    async def copy_page(self, source: PageKey, target: PageKey) -> None:
        """Stores the bytes of one page under another key, too."""
        ...

    async def wait_durable(self, keys: Sequence[PageKey], timeout_seconds: float) -> list[int]:
        """Waits until all are durable; returns the indexes of those that are not in time."""
        ...

    def begin_prefetch(self, keys: Sequence[PageKey]) -> None:
        """Starts to bring pages to where engines read them; returns at once, raises nothing."""
        ...

    async def demote(self, keys: Sequence[PageKey], timeout_seconds: float) -> list[int]:
        """Moves pages to the object tier; returns the indexes of those that are not there.

        Raises InvalidRequest where the node has no object tier.
        """
        ...

    async def sequence(self) -> int:
        """The agent's position in its record of loads, for `loads`."""
        ...

    async def loads(self, keys: Sequence[PageKey], since: int) -> dict[Tier, int]:
        """Pages among `keys` given to an engine after position `since`, by source tier."""
        ...

    async def lost(self, after: int) -> list[LostPage]:
        """Claimed pages that are gone before their time, numbered above `after`; some of them."""
        ...

    async def stats(self) -> NodeStats:
        """How the agent is; within half a second."""
        ...

    async def aclose(self) -> None:
        """Lets go of connections."""
        ...
