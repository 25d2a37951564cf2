"""Lets go of what nothing claims in the object tier: of this node's own objects, oldest first.

A walk looks at every page, some at a time, again and again, and lists those without a claim. From
that list pages go when they were on it for long enough, or while the tier is above its budget.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence

from agentmem.core import PageKey, Tier
from agentmem.node.movements import MovementLog
from agentmem.pages.record import record_bytes
from agentmem.store.disk import DiskTier
from agentmem.store.leftovers import Leftover
from agentmem.store.object import ObjectTier

logger = logging.getLogger(__name__)

_CHUNK_PAGES = 2048
_ROUND_SECONDS_MIN = 60.0
# Pages go from above the budget down to this share of it, so that objects empty many at a time.
_LOW_SHARE = 0.95


class ObjectSweep:
    """`step` does a bounded piece of the work; `note_claimed` is to be told of every claim before
    it is registered. `clock`: seconds since the epoch."""

    def __init__(
        self,
        objects: ObjectTier,
        disk: DiskTier,
        movements: MovementLog,
        *,
        leftover_seconds: float,
        round_seconds: float = _ROUND_SECONDS_MIN,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._objects = objects
        self._disk = disk
        self._movements = movements
        self._leftover_us = int(leftover_seconds * 1_000_000)
        self._round_seconds = round_seconds
        self._clock = clock
        self._after = b""
        self._round_at = float("-inf")
        # All that a round finds is left over since then: the end of a log goes before its beginning
        self._round_us = 0
        # Keys that were claimed while pages are judged; None while none are.
        self._claimed: set[PageKey] | None = None

    def note_claimed(self, keys: Collection[PageKey]) -> None:
        """A claim is about to name these: from here on they do not go."""
        if self._claimed is not None:
            self._claimed.update(keys)

    async def step(self) -> None:
        """Looks at some pages, and lets some go. Raises StoreRefused."""
        await self._look()
        await self._let_go()

    async def _look(self) -> None:
        if not self._after:
            now = time.monotonic()
            if now - self._round_at < self._round_seconds:
                return
            self._round_at, self._round_us = now, int(self._clock() * 1_000_000)
        keys = await self._objects.keys_after(self._after, _CHUNK_PAGES)
        own = [key for key in keys if self._objects.is_own(key)]
        claims = await self._disk.claims(own)
        unclaimed = [key for key in own if key not in claims]
        await self._objects.note_leftovers(unclaimed, list(claims), self._round_us)
        self._after = keys[-1] if keys else b""

    async def _let_go(self) -> None:
        budget_bytes = self._objects.usage().budget_bytes
        surplus = 0
        if budget_bytes and self._objects.own_bytes > budget_bytes:
            surplus = self._objects.own_bytes - int(_LOW_SHARE * budget_bytes)
        pages = await self._objects.leftovers(_CHUNK_PAGES)
        due = self._due(pages, surplus)
        if not due:
            return
        self._claimed = set()
        try:
            claims = await self._disk.claims(due)
            # No claim comes between this and their being gone: nothing is awaited.
            free = [key for key in due if key not in claims and key not in self._claimed]
            sizes = {key: copy.payload_bytes for key in free if (copy := self._objects.get(key))}
            evicted = self._objects.evict(free)
            claimed = [key for key in due if key not in sizes]
        finally:
            self._claimed = None
        for key, size_bytes in sizes.items():
            self._movements.record(key, Tier.OBJECT, None, size_bytes)
        self._objects.counters["evicted_object_pages"] += len(await evicted)
        await self._objects.note_leftovers([], claimed, 0)

    def _due(self, pages: Sequence[Leftover], surplus: int) -> list[PageKey]:
        """Those that have been left over for long enough, and as many more as are too much."""
        before_us = int(self._clock() * 1_000_000) - self._leftover_us
        due = []
        for page in pages:
            if page.since_us > before_us and surplus <= 0:
                break
            if (copy := self._objects.get(page.key)) is not None:
                surplus -= record_bytes(copy.payload_bytes)
            due.append(page.key)
        return due
