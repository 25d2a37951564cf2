"""What goes to the object tier by itself: archived pages; the least used of a disk that fills."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterable

from agentmem.core import PageKey
from agentmem.errors import StoreRefused
from agentmem.node.tiering import Tiering
from agentmem.pages.record import record_bytes
from agentmem.store.disk import DiskTier
from agentmem.store.dram import DramTier
from agentmem.store.policy import Watermarks

logger = logging.getLogger(__name__)

# Below those of eviction: what can be demoted is not lost.
WATERMARKS = Watermarks(high=0.85, low=0.75)
_CHUNK_PAGES = 1024
_PAUSE_SECONDS = 1.0
_ARCHIVED_MAX = 1 << 20
# So long after its claim an archived page is waited for that lies neither in dram nor on disk.
_NOWHERE_SECONDS = 600.0


class Demotion:
    """Runs one loop. A store that fails stalls it; pages then stay where they are."""

    def __init__(
        self,
        dram: DramTier,
        disk: DiskTier,
        tiering: Tiering,
        watermarks: Watermarks = WATERMARKS,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._dram = dram
        self._disk = disk
        self._tiering = tiering
        self._watermarks = watermarks
        # Archived pages that are to leave the disk, in the order of their claims, and since when.
        self._archived: dict[PageKey, float] = {}

    def note_archived(self, keys: Iterable[PageKey]) -> None:
        """A claim of the class `archive` names these: they are to leave the disk."""
        now = time.monotonic()
        for key in keys:
            if len(self._archived) >= _ARCHIVED_MAX:
                return  # the watermark sees to the rest
            self._archived[key] = now

    def note_deleted(self, keys: Iterable[PageKey]) -> None:
        """These are gone: nothing is left to archive."""
        for key in keys:
            self._archived.pop(key, None)

    async def run(self) -> None:
        """Demotes until cancelled."""
        while True:
            try:
                await self._archive()
                await self._relieve()
            except StoreRefused as error:
                logger.warning("pages are not demoted: %s", error)
            await asyncio.sleep(_PAUSE_SECONDS)

    @property
    def archived_pages(self) -> int:
        """Pages that are to leave the disk as soon as they are there."""
        return len(self._archived)

    async def _archive(self) -> None:
        durable = [key for key in self._archived if key in self._disk]
        horizon = time.monotonic() - _NOWHERE_SECONDS
        nowhere = [
            key
            for key, since in self._archived.items()
            if since <= horizon and key not in self._disk and key not in self._dram
        ]
        self.note_deleted(nowhere)
        for start in range(0, len(durable), _CHUNK_PAGES):
            chunk = durable[start : start + _CHUNK_PAGES]
            await self._tiering.demote(chunk, release=True)
            for key in chunk:
                self._archived.pop(key, None)
            self.counters["archived_pages"] += len(chunk)

    async def _relieve(self) -> None:
        usage = self._disk.usage()
        surplus = self._watermarks.surplus_bytes(usage.reserved_bytes, usage.budget_bytes)
        while surplus > 0:
            copies = []
            for key in await self._disk.evictor.oldest(_CHUNK_PAGES):
                if surplus <= 0:
                    break
                if (copy := self._disk.get(key)) is not None:
                    copies.append(copy)
                    surplus -= record_bytes(copy.payload_bytes)
            # As they lie in their packs: pages of one session stay neighbours.
            copies.sort(key=lambda copy: (copy.pack, copy.offset))
            left = await self._tiering.demote([copy.key for copy in copies], release=True)
            moved = len(copies) - len(left)
            self.counters["relieved_disk_pages"] += moved
            if not moved:
                return  # nothing claims these: eviction takes them
