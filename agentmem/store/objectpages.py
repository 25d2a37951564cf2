"""What lies in the object tier, in index and memory, changed together.

Every change is an index transaction first, then the table; a caller that gives up waiting leaves
neither without the other. Event loop only.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Container, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from agentmem.core import PageKey
from agentmem.errors import StoreRefused
from agentmem.pages.record import record_bytes
from agentmem.store.index import Extent
from agentmem.store.objectindex import ObjectIndex
from agentmem.store.objectpack import Row
from agentmem.store.table import PageTable

FOLDER = "packs"
_SCAN_CHUNK_PAGES = 1024
# A pack that eviction has left holes in is rewritten when less than this share of it is live.
_LIVE_SHARE_MIN = 0.75

T = TypeVar("T")


class ObjectPages:
    """Pages of all objects that are known; `node_id` says which objects are this node's own.

    `index` and `table` may be read by anyone. Methods that change something raise StoreRefused,
    and nothing is changed then.
    """

    def __init__(self, node_id: str, clock: Callable[[], float] = time.time) -> None:
        self.index = ObjectIndex()
        self.table = PageTable()
        self.live: Counter[int] = Counter()  # pages by object
        self._prefix = f"{FOLDER}/{node_id}/"
        self._clock = clock
        self._live_bytes: Counter[int] = Counter()
        # Dead records by object: offset -> bytes. What was deleted is to be destroyed at once.
        self._dead: dict[int, dict[int, int]] = {}
        self._deleted: set[int] = set()
        self._own: set[int] = set()
        self._changes: set[asyncio.Task[Any]] = set()

    async def open(self, directory: Path) -> None:
        """Reads the index. Raises lmdb.Error."""
        known = await self.index.open(directory)
        for extent in known.extents:
            self._add(extent)
        for pack, offset, size_bytes in known.dead:
            self._note_dead(pack, offset, size_bytes, deleted=True)

    async def close(self) -> None:
        """Closes the index, once what was begun there is done."""
        await asyncio.gather(*self._changes, return_exceptions=True)
        await self.index.close()

    @property
    def record_bytes(self) -> int:
        """Bytes of all records."""
        return self._live_bytes.total()

    @property
    def own_bytes(self) -> int:
        """Bytes of the records in this node's own objects."""
        return sum(self._live_bytes[pack] for pack in self._own)

    def is_own(self, pack: int) -> bool:
        """Whether this node wrote the object, and so may rewrite it."""
        name = self.index.name(pack)
        return name is not None and self.is_own_name(name)

    def is_own_name(self, name: str) -> bool:
        """Whether an object of that name is this node's."""
        return name.startswith(self._prefix)

    def to_rewrite(self) -> list[int]:
        """Own objects with something deleted in them, or with little left."""
        return [
            pack
            for pack, dead in self._dead.items()
            if self.is_own(pack) and (pack in self._deleted or self._is_hollow(pack, dead))
        ]

    async def take(
        self, name: str, rows: Sequence[Row], size_bytes: int, over: Container[int] = ()
    ) -> int:
        """Makes the records of an object pages, but for those that were deleted or exist.

        Pages in objects that `over` names lie in this one from now on. Returns how many came.
        """
        return await self._change(self._take(name, rows, size_bytes, over))

    async def remove(self, keys: Sequence[PageKey], up_to: int | None) -> list[Extent]:
        """Removes pages; see `ObjectIndex.remove`. Returns where they lay."""
        return await self._change(self._remove(keys, up_to))

    def evict(self, keys: Sequence[PageKey]) -> Coroutine[Any, Any, list[Extent]]:
        """Takes pages away: they are not found any more when this returns.

        What it returns is to be awaited, and then they are out of the index. Where that fails they
        are back.
        """
        extents = [extent for key in keys if (extent := self.table.get(key)) is not None]
        for extent in extents:
            self._leave(extent)
        return self._change(self._evict(extents))

    async def move(
        self, live: Sequence[Extent], name: str, rows: Sequence[Row], size_bytes: int
    ) -> None:
        """Makes pages lie in a new object, those that were not deleted meanwhile."""
        await self._change(self._move(live, name, rows, size_bytes))

    async def drop(self, extents: Sequence[Extent], packs: Collection[int]) -> None:
        """Forgets objects that are gone, and the pages that were in them."""
        await self._change(self._drop(extents, packs))

    async def extents_in(self, packs: Container[int]) -> defaultdict[int, list[Extent]]:
        """Pages by the object that they are in, as they lie. Looks at all pages, with breaks."""
        found: defaultdict[int, list[Extent]] = defaultdict(list)
        for count, extent in enumerate(self.table.extents(), 1):
            if extent.pack in packs:
                found[extent.pack].append(extent)
            if count % _SCAN_CHUNK_PAGES == 0:
                await asyncio.sleep(0)
        for extents in found.values():
            extents.sort(key=lambda extent: extent.offset)
        return found

    async def _take(
        self, name: str, rows: Sequence[Row], size_bytes: int, over: Container[int]
    ) -> int:
        extents, refused = await self.index.add(name, rows, size_bytes, over)
        dead = {extent.offset for extent in refused}
        for extent in extents:
            if extent.offset in dead:
                self._bury(extent, deleted=True)
                continue
            if (before := self.table.get(extent.key)) is not None:
                self._leave(before)
            self._add(extent)
        return len(extents) - len(refused)

    async def _remove(self, keys: Sequence[PageKey], up_to: int | None) -> list[Extent]:
        extents = await self.index.remove(keys, up_to=up_to)
        for extent in extents:
            self._leave(extent)
            self._bury(extent, deleted=True)
        return extents

    async def _evict(self, hidden: Sequence[Extent]) -> list[Extent]:
        try:
            extents = await self.index.remove([extent.key for extent in hidden], up_to=None)
        except StoreRefused:
            for extent in hidden:
                if self.table.get(extent.key) is None:
                    self._add(extent)
            raise
        for extent in extents:
            self._bury(extent, deleted=False)
        return extents

    async def _move(
        self, live: Sequence[Extent], name: str, rows: Sequence[Row], size_bytes: int
    ) -> None:
        moved = await self.index.move(live, name, rows, size_bytes)
        for old, new in moved.made:
            self._bury(old, deleted=True)
            if self.table.get(old.key) == old:
                self._leave(old)
                self._add(new)
        for _, new in moved.refused:
            self._bury(new, deleted=True)  # deleted meanwhile

    async def _drop(self, extents: Sequence[Extent], packs: Collection[int]) -> None:
        await self.index.forget(extents, packs)
        for extent in extents:
            self._leave(extent)
        for pack in packs:
            self._dead.pop(pack, None)
            self._deleted.discard(pack)
            self._own.discard(pack)
            del self.live[pack]
            del self._live_bytes[pack]

    def _add(self, extent: Extent) -> None:
        self.table.add(extent, int(self._clock()))
        self.live[extent.pack] += 1
        self._live_bytes[extent.pack] += record_bytes(extent.payload_bytes)
        if self.is_own(extent.pack):
            self._own.add(extent.pack)

    def _leave(self, extent: Extent) -> None:
        if self.table.get(extent.key) == extent:
            self.table.pop(extent.key)
            self.live[extent.pack] -= 1
            self._live_bytes[extent.pack] -= record_bytes(extent.payload_bytes)

    def _bury(self, extent: Extent, *, deleted: bool) -> None:
        size_bytes = record_bytes(extent.payload_bytes)
        self._note_dead(extent.pack, extent.offset, size_bytes, deleted=deleted)

    def _note_dead(self, pack: int, offset: int, size_bytes: int, *, deleted: bool) -> None:
        self._dead.setdefault(pack, {})[offset] = size_bytes
        if deleted:
            self._deleted.add(pack)

    def _is_hollow(self, pack: int, dead: dict[int, int]) -> bool:
        live_bytes = self._live_bytes[pack]
        return live_bytes < _LIVE_SHARE_MIN * (live_bytes + sum(dead.values()))

    def _change(self, change: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        task = asyncio.create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)

        async def wait() -> T:
            return await asyncio.shield(task)

        return wait()
