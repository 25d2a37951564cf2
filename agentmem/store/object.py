"""The object tier: packs of sealed records in an object store, and an index of them on this node.

An object is written once and never changed. What is in it is told by its footer, so the index here
is a cache of the footers: a node that has lost it, or that wants what another node has put there,
reads them (`refresh`). State changes on the event loop; the index has a thread of its own.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from agentmem.core import PageKey, Tier
from agentmem.errors import PageCorrupt, StoreRefused
from agentmem.pages.record import record_bytes
from agentmem.store.base import TierUsage
from agentmem.store.index import Extent
from agentmem.store.objectcopies import ObjectCopy, checked, copy_of, groups
from agentmem.store.objectindex import ObjectIndex
from agentmem.store.objectpack import (
    TAIL_BYTES,
    TRAILER_BYTES,
    Row,
    decode_footer,
    decode_trailer,
    encode_pack,
)
from agentmem.store.objectreader import ObjectReader
from agentmem.store.objectstore import ObjectStore
from agentmem.store.packwriter import Record
from agentmem.store.table import PageTable

logger = logging.getLogger(__name__)

_FOLDER = "packs"
_IMPORTS_PER_REFRESH = 256
_IMPORTS_AT_ONCE = 8
_REFRESH_SECONDS_MIN = 2.0
_FETCH_SECONDS = 600.0
_SCAN_CHUNK_PAGES = 1024
# An upload that nobody waits for any more may still arrive: so long a deletion is remembered for it
_LATE_NS_MAX = 600 * 10**9

T = TypeVar("T")


class ObjectTier:
    """Sealed pages in an object store, and where they lie. Every page of it is durable."""

    tier = Tier.OBJECT

    def __init__(
        self,
        store: ObjectStore,
        directory: Path,
        node_id: str,
        *,
        pack_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._directory = directory
        self._node_id = node_id
        self._pack_bytes = pack_bytes
        self._clock = clock
        self._index = ObjectIndex()
        self._table = PageTable()
        self._reader = ObjectReader(store, self._index, self._table)
        self._record_bytes = 0
        # Dead records by pack: offset -> bytes. Their objects are to be rewritten.
        self._dead: dict[int, dict[int, int]] = {}
        self._live: Counter[int] = Counter()
        # Objects under way, which no refresh may take for a stranger's or for lost.
        self._uploading: set[str] = set()
        self._unreadable: set[str] = set()
        self._changes: set[asyncio.Task[Any]] = set()
        self._reclaiming = asyncio.Lock()
        self._refreshing = asyncio.Lock()
        self._refreshed_at = float("-inf")

    @property
    def counters(self) -> Counter[str]:
        """Calls and bytes of the store."""
        return self._store.counters

    @property
    def failing(self) -> str | None:
        """Why the store failed the last time, None while it works."""
        return self._store.failing

    async def open(self) -> None:
        """Reads the index. The store is not asked: `refresh` does that. Raises lmdb.Error."""
        known = await self._index.open(self._directory)
        now = int(self._clock())
        for extent in known.extents:
            self._add(extent, now)
        for pack, offset, size_bytes in known.dead:
            self._dead.setdefault(pack, {})[offset] = size_bytes

    async def close(self) -> None:
        """Closes the index, once what was begun there is done."""
        await asyncio.gather(*self._changes, return_exceptions=True)
        await self._index.close()

    def __contains__(self, key: object) -> bool:
        """Whether the page is in the object store."""
        return isinstance(key, bytes) and PageKey(key) in self._table

    def get(self, key: PageKey) -> ObjectCopy | None:
        """Where the page lies; None when it is not there. Changes nothing."""
        extent = self._table.get(key)
        if extent is None:
            return None
        return copy_of(extent)

    def usage(self) -> TierUsage:
        """Pages and bytes of their records; there is no budget: the store is paid by use."""
        return TierUsage(len(self._table), self._table.page_bytes, self._record_bytes, 0)

    async def put(self, records: Sequence[Record]) -> None:
        """Makes sealed records durable pages, in objects of up to `pack_bytes` each.

        Those that exist, or that were deleted meanwhile, are left out. Raises StoreRefused; those
        of the objects that were made are pages then.
        """
        for group in groups(records, self._pack_bytes):
            await self._put_pack(group)

    def fetch(
        self, copies: Sequence[ObjectCopy], timeout_seconds: float
    ) -> AsyncIterator[tuple[ObjectCopy, memoryview]]:
        """The records of these pages, in this order, unchecked; see `ObjectReader.fetch`."""
        return self._reader.fetch(copies, timeout_seconds)

    async def remove(self, keys: Sequence[PageKey], *, up_to: int | None = None) -> list[Extent]:
        """Deletes pages up to a sequence (default: now): not found any more on return.

        `reclaim` destroys their bytes. Copies of them that are under way, or lie in objects that
        the index does not know yet, never become pages: so give all keys that are deleted. Returns
        where those that were here lay. Raises StoreRefused.
        """
        return await self._change(self._remove(keys, time.time_ns() if up_to is None else up_to))

    async def quarantine(self, keys: Sequence[PageKey]) -> list[Extent]:
        """Removes pages whose bytes are bad; good copies may be put again. Raises StoreRefused."""
        return await self._change(self._remove(keys, None))

    async def reclaim(self) -> None:
        """Destroys the bytes of deleted pages: rewrites the objects of this node that hold some.

        New object, then index, then deletion of the old one: a crash leaves all pages there.
        Raises StoreRefused; what is left is done the next time.
        """
        async with self._reclaiming:
            packs = [pack for pack in self._dead if self._is_own(pack)]
            if not packs:
                return
            self._store.check()
            live = await self._extents_in({pack for pack in packs if self._live[pack]})
            for pack in packs:
                await self._rewrite(pack, live[pack])

    async def refresh(self) -> int:
        """Takes in packs that the index does not know, and forgets those that are gone.

        Returns how many pages came. Raises StoreRefused.
        """
        async with self._refreshing:
            began = time.time_ns()
            known = self._index.names()
            listed = dict(await self._store.list(f"{_FOLDER}/"))
            self._unreadable &= listed.keys()
            skipped = known | self._uploading | self._unreadable
            fresh = [name for name in listed if name not in skipped and name not in self._index]
            batch = fresh[:_IMPORTS_PER_REFRESH]
            pages = await self._take_in(batch, listed)
            await self._forget(known - listed.keys())
            if len(batch) == len(fresh):
                await self._index.prune_doomed(began - _LATE_NS_MAX)
            self._refreshed_at = time.monotonic()
            return pages

    async def refresh_soon(self) -> None:
        """`refresh`, unless that was done a moment ago; a store that fails changes nothing."""
        try:
            async with self._refreshing:
                pass  # one that is under way is soon enough
            if time.monotonic() - self._refreshed_at >= _REFRESH_SECONDS_MIN:
                await self.refresh()
        except StoreRefused as error:
            logger.warning("the object tier is not refreshed: %s", error)

    async def _put_pack(self, records: Sequence[Record]) -> None:
        name = self._fresh_name()
        self._uploading.add(name)
        try:
            rows, size_bytes = await self._upload(name, records)
            await self._change(self._note_object(name, rows, size_bytes))
        finally:
            # Whatever became of it, a refresh finds it if it is there and unknown.
            self._uploading.discard(name)

    def _fresh_name(self) -> str:
        # Old ones first, and never the same twice.
        return f"{_FOLDER}/{self._node_id}/{time.time_ns():016x}-{secrets.token_hex(4)}.agm"

    async def _upload(self, name: str, records: Sequence[Record]) -> tuple[list[Row], int]:
        """Makes one object of these records: its rows and bytes. Raises StoreRefused."""
        data, rows = await asyncio.to_thread(encode_pack, self._node_id, records)
        if not await self._store.put_new(name, data):
            # The name is random: who made it was this call, when the store was tried again.
            logger.warning("object %s was there already: a write that was tried again", name)
        return rows, len(data)

    async def _note_object(self, name: str, rows: Sequence[Row], size_bytes: int) -> int:
        """Commits an object's records, then shows them. Returns how many became pages."""
        extents, refused = await self._index.add(name, rows, size_bytes)
        now = int(self._clock())
        dead = {extent.offset for extent in refused}
        for extent in extents:
            if extent.offset in dead:
                self._note_dead(extent)
            else:
                self._add(extent, now)
        return len(extents) - len(refused)

    async def _remove(self, keys: Sequence[PageKey], up_to: int | None) -> list[Extent]:
        extents = await self._index.remove(keys, up_to=up_to)
        for extent in extents:
            self._leave_table(extent)
            self._note_dead(extent)
        return extents

    async def _rewrite(self, pack: int, live: Sequence[Extent]) -> None:
        live = [extent for extent in live if self._table.get(extent.key) == extent]
        if live:
            found = [view async for _, view in self.fetch(list(map(copy_of, live)), _FETCH_SECONDS)]
            if len(found) < len(live):
                return  # the store did not give all of it, or it was deleted: later
            records = await asyncio.to_thread(checked, live, found)
            good = {record.key for record in records}
            bad = [extent.key for extent in live if extent.key not in good]
            if bad:
                self.counters["quarantined_object_pages"] += len(bad)
                await self.quarantine(bad)
            if records:
                await self._move(live, records)
        if not self._live[pack]:
            await self._delete(pack)

    async def _move(self, live: Sequence[Extent], records: Sequence[Record]) -> None:
        name = self._fresh_name()
        self._uploading.add(name)
        try:
            rows, size_bytes = await self._upload(name, records)
            await self._change(self._note_moved(live, name, rows, size_bytes))
        finally:
            self._uploading.discard(name)

    async def _note_moved(
        self, live: Sequence[Extent], name: str, rows: Sequence[Row], size_bytes: int
    ) -> None:
        moved = await self._index.move(live, name, rows, size_bytes)
        for old, new in moved.made:
            self._note_dead(old)
            if self._table.get(old.key) == old:
                self._table.move(new.key, new.pack, new.offset)
                self._live[new.pack] += 1
                self._live[old.pack] -= 1
        for _, new in moved.refused:
            self._note_dead(new)  # deleted meanwhile

    async def _delete(self, pack: int) -> None:
        """Deletes an object that no page is in any more."""
        name = self._index.name(pack)
        if name is not None:
            await self._store.delete(name)
        await self._change(self._drop([], [pack]))
        self.counters["object_packs_deleted"] += 1

    async def _drop(self, extents: Sequence[Extent], packs: Collection[int]) -> None:
        await self._index.forget(extents, packs)
        for extent in extents:
            if self._table.get(extent.key) == extent:
                self._leave_table(extent)
        for pack in packs:
            self._dead.pop(pack, None)
            del self._live[pack]

    async def _take_in(self, names: Sequence[str], sizes: dict[str, int]) -> int:
        """Reads the footers of objects, some at once. Returns how many pages came."""
        pages = 0
        for start in range(0, len(names), _IMPORTS_AT_ONCE):
            group = names[start : start + _IMPORTS_AT_ONCE]
            reads = (self._rows(name, sizes[name]) for name in group)
            found = await asyncio.gather(*reads, return_exceptions=True)
            for name, rows in zip(group, found, strict=True):
                if isinstance(rows, PageCorrupt):
                    self._unreadable.add(name)
                    self.counters["object_packs_unreadable"] += 1
                    logger.error("object %s is left alone: %s", name, rows)
                elif isinstance(rows, BaseException):
                    raise rows
                elif rows is not None:
                    pages += await self._change(self._note_object(name, rows, sizes[name]))
        return pages

    async def _rows(self, name: str, size_bytes: int) -> list[Row] | None:
        """An object's footer, None when it is gone by now. Raises PageCorrupt, StoreRefused."""
        start = max(0, size_bytes - TAIL_BYTES)
        tail = await self._store.get_range(name, start, size_bytes)
        if tail is None:
            return None
        offset = decode_trailer(tail, size_bytes)
        footer_bytes = size_bytes - offset
        if footer_bytes > tail.nbytes:
            tail = await self._store.get_range(name, offset, size_bytes)
            if tail is None or tail.nbytes < TRAILER_BYTES:
                return None
        return decode_footer(tail[-footer_bytes:])

    async def _forget(self, names: Iterable[str]) -> None:
        """These objects are gone from the store: so are their pages."""
        gone = {number: name for name in names if (number := self._index.number(name)) is not None}
        lost = await self._extents_in({number for number in gone if self._live[number]})
        for number, name in gone.items():
            if lost[number]:
                logger.error("object %s is gone, with %d pages", name, len(lost[number]))
                self.counters["object_pages_lost"] += len(lost[number])
            await self._change(self._drop(lost[number], [number]))

    async def _extents_in(self, packs: set[int]) -> defaultdict[int, list[Extent]]:
        """Pages by the object that they are in. A look through all pages, with breaks."""
        found: defaultdict[int, list[Extent]] = defaultdict(list)
        if not packs:
            return found
        for count, extent in enumerate(self._table.extents(), 1):
            if extent.pack in packs:
                found[extent.pack].append(extent)
            if count % _SCAN_CHUNK_PAGES == 0:
                await asyncio.sleep(0)
        for extents in found.values():
            extents.sort(key=lambda extent: extent.offset)
        return found

    def _is_own(self, pack: int) -> bool:
        name = self._index.name(pack)
        return name is not None and name.startswith(f"{_FOLDER}/{self._node_id}/")

    def _add(self, extent: Extent, now: int) -> None:
        self._table.add(extent, now)
        self._live[extent.pack] += 1
        self._record_bytes += record_bytes(extent.payload_bytes)

    def _leave_table(self, extent: Extent) -> None:
        self._table.pop(extent.key)
        self._live[extent.pack] -= 1
        self._record_bytes -= record_bytes(extent.payload_bytes)

    def _note_dead(self, extent: Extent) -> None:
        size_bytes = record_bytes(extent.payload_bytes)
        self._dead.setdefault(extent.pack, {})[extent.offset] = size_bytes

    async def _change(self, change: Coroutine[Any, Any, T]) -> T:
        """Waits for a change of index and table; a caller that gives up leaves neither without."""
        task = asyncio.create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)
