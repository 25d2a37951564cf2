"""Takes pages that nothing promises out of the disk tier. Which ones it takes is `choose`'s."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from agentmem.core import PageKey
from agentmem.pages.record import record_bytes
from agentmem.store.copies import DiskCopies
from agentmem.store.index import Extent
from agentmem.store.indexthread import IndexThread
from agentmem.store.leftovers import Leftover
from agentmem.store.table import PageTable

_CHUNK_PAGES = 256
_LOOK_PAGES = 4096

Choose = Callable[[Sequence[tuple[Leftover, Extent]], int], list[PageKey]]
"""Which of these pages go, in that order, so that so many bytes become free."""


def in_order(pages: Sequence[tuple[Leftover, Extent]], _size_bytes: int) -> list[PageKey]:
    """Those left over first first."""
    return [page.key for page, _ in pages]


class Evictor:
    """Evicts pages from index and table; their bytes are for `drop` to destroy later.

    Promises are looked up in the transaction that removes a page. Raises lmdb.Error.
    """

    def __init__(
        self,
        index: IndexThread,
        table: PageTable,
        copies: DiskCopies,
        drop: Callable[[Iterable[Extent]], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.choose: Choose = in_order
        self.counters: Counter[str] = Counter()
        self._index = index
        self._table = table
        self._copies = copies
        self._drop = drop
        self._clock = clock

    async def leftovers(self, size_bytes: int) -> int:
        """Evicts what no claim names any more. Returns the bytes freed."""
        freed = 0
        while freed < size_bytes:
            look = partial(self._index.index.leftovers, _LOOK_PAGES, self._now_us())
            pages = [page for page in await self._index.run(look) if self._idle(page[0].key)]
            chosen = self.choose(pages, size_bytes - freed)
            now_freed = await self.pages(chosen, size_bytes - freed)
            freed += now_freed
            if not now_freed:
                break
        return freed

    async def least_used(self, size_bytes: int) -> int:
        """Evicts what nothing promises, least recently used first. Returns the bytes freed."""
        freed = tried = 0
        look = _LOOK_PAGES
        while freed < size_bytes and tried < len(self._table):
            freed += await self.pages((await self.oldest(look))[tried:], size_bytes - freed)
            tried = look
            look *= 8
        return freed

    async def oldest(self, pages: int) -> list[PageKey]:
        """So many pages, those used longest ago first; see `PageTable.least_used`."""
        return await self._index.run(partial(self._table.least_used, pages))

    async def pages(self, keys: Sequence[PageKey], size_bytes: int) -> int:
        """Evicts of these, in their order, what nothing promises and nobody reads, until
        `size_bytes` are free. Returns the bytes freed."""
        freed = 0
        for start in range(0, len(keys), _CHUNK_PAGES):
            if freed >= size_bytes:
                break
            idle = [key for key in keys[start : start + _CHUNK_PAGES] if self._idle(key)]
            evict = partial(
                self._index.index.evict_unpromised, idle, size_bytes - freed, self._now_us()
            )
            extents = await self._index.run(evict)
            self._drop(extents)
            self.counters["evicted_disk_pages"] += len(extents)
            freed += sum(record_bytes(extent.payload_bytes) for extent in extents)
        return freed

    def _idle(self, key: PageKey) -> bool:
        return not self._copies.held(key)

    def _now_us(self) -> int:
        return int(self._clock() * 1_000_000)
