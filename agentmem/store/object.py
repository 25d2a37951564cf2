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
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from agentmem.core import PageKey, Tier
from agentmem.errors import PageCorrupt, StoreRefused
from agentmem.pages.record import record_bytes
from agentmem.store.base import TierUsage
from agentmem.store.index import Extent, PackState, PageIndex
from agentmem.store.objectcopies import (
    ObjectCopy,
    Range,
    checked,
    commit,
    copy_of,
    extent_of,
    groups,
    ranges_of,
)
from agentmem.store.objectnames import PackNames
from agentmem.store.objectpack import (
    TAIL_BYTES,
    TRAILER_BYTES,
    Row,
    decode_footer,
    decode_trailer,
    encode_pack,
)
from agentmem.store.objectstore import ObjectStore
from agentmem.store.packwriter import Record
from agentmem.store.table import PageTable

logger = logging.getLogger(__name__)

_FOLDER = "packs"
_RANGES_AT_ONCE = 8
_IMPORTS_PER_REFRESH = 256
_REFRESH_SECONDS_MIN = 2.0
_FETCH_SECONDS = 600.0

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
        self._table = PageTable()
        self._record_bytes = 0
        # Dead records by pack: offset -> bytes. Their objects are to be rewritten.
        self._dead: dict[int, dict[int, int]] = {}
        self._live: Counter[int] = Counter()
        # What was deleted during each upload that is under way: it must not appear afterwards.
        self._uploads: dict[int, set[PageKey]] = {}
        # Objects that are no packs, or damaged ones: not read again. Name -> bytes.
        self._unreadable: dict[str, int] = {}
        self._thread = ThreadPoolExecutor(1, "object-index")
        self._reclaiming = asyncio.Lock()
        self._refreshing = asyncio.Lock()
        self._refreshed_at = float("-inf")
        self._index: PageIndex
        self._names: PackNames

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
        await self._in_thread(self._open)

    def _open(self) -> None:
        self._index = PageIndex(self._directory / "index")
        self._names = PackNames(self._directory / "names")
        self._agree()
        now = int(self._clock())
        for extent in self._index.extents():
            self._add(extent, now)
        for pack, offset, size_bytes in self._index.punches():
            self._dead.setdefault(pack, {})[offset] = size_bytes

    def _agree(self) -> None:
        """Forgets what only one of index and names knows: an upload that a crash interrupted, or
        all of it, where one of the two was lost. `refresh` reads the objects that are there."""
        indexed, named = self._index.packs().keys(), self._names.numbers()
        nameless = indexed - named
        if nameless:
            lost = [extent for extent in self._index.extents() if extent.pack in nameless]
            self._index.forget(lost, nameless)
        for number in named - indexed:
            self._names.drop(number)

    async def close(self) -> None:
        """Closes the index."""
        await self._in_thread(self._index.close)
        await self._in_thread(self._names.close)
        self._thread.shutdown(wait=True)

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

        Pages that are removed meanwhile do not appear. Raises StoreRefused; those of the objects
        that were made are pages then.
        """
        deleted: set[PageKey] = set()
        self._uploads[id(deleted)] = deleted
        try:
            for group in groups(records, self._pack_bytes):
                await self._put_pack(group, deleted)
        finally:
            del self._uploads[id(deleted)]

    async def fetch(
        self, copies: Sequence[ObjectCopy], timeout_seconds: float
    ) -> AsyncIterator[tuple[ObjectCopy, memoryview]]:
        """The records of these pages, in this order, unchecked.

        Adjacent records come in one read, and some reads are under way at once. It ends early,
        without an error, at the deadline or when the store fails.
        """
        deadline = time.monotonic() + timeout_seconds
        gate = asyncio.Semaphore(_RANGES_AT_ONCE)
        ranges = ranges_of(copies)
        reads = [asyncio.create_task(self._read(gate, found)) for found in ranges]
        try:
            for found, read in zip(ranges, reads, strict=True):
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    data = await read
                if data is None:
                    logger.error("object %s is gone", self._name(found.copies[0].pack))
                    return
                for copy in found.copies:
                    at = copy.offset - found.start
                    yield copy, data[at : at + record_bytes(copy.payload_bytes)]
        except (TimeoutError, StoreRefused) as error:
            logger.warning("object pages do not come: %s", error or "not in time")
        finally:
            for read in reads:
                read.cancel()
            await asyncio.gather(*reads, return_exceptions=True)

    async def remove(self, keys: Sequence[PageKey]) -> list[PageKey]:
        """Removes pages: not found any more on return. `reclaim` destroys their bytes.

        Returns those that were there. Name pages that may be on their way here, too.
        """
        for deleted in self._uploads.values():
            deleted.update(keys)
        extents = await self._in_thread(partial(self._index.remove, list(keys)))
        for extent in extents:
            self._take_out(extent)
        return [extent.key for extent in extents]

    async def reclaim(self) -> None:
        """Destroys the bytes of deleted pages: rewrites the objects of this node that hold some.

        New object, then index, then deletion of the old one: a crash leaves all pages there.
        Raises StoreRefused, OSError or lmdb.Error; what is left is done the next time.
        """
        async with self._reclaiming:
            for pack in list(self._dead):
                if self._name(pack).startswith(f"{_FOLDER}/{self._node_id}/"):
                    await self._rewrite(pack)

    async def refresh(self) -> int:
        """Takes in packs that the index does not know, and forgets those that are gone.

        Returns how many pages came. Raises StoreRefused.
        """
        async with self._refreshing:
            known = self._names.all()
            listed = dict(await self._store.list(f"{_FOLDER}/"))
            fresh = [
                name
                for name, size_bytes in listed.items()
                if name not in known
                and name not in self._names
                and self._unreadable.get(name) != size_bytes
            ]
            pages = 0
            for name in fresh[:_IMPORTS_PER_REFRESH]:
                pages += await self._take_in(name, listed[name])
            for name in known - listed.keys():
                await self._forget(name)
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

    async def _put_pack(self, records: Sequence[Record], deleted: set[PageKey]) -> None:
        extents, state = await self._upload(records)
        refused = await self._in_thread(partial(commit, self._index, extents, state, deleted))
        self._note_written(extents, refused)

    async def _upload(self, records: Sequence[Record]) -> tuple[list[Extent], PackState]:
        """Makes one object of these records. Raises StoreRefused."""
        name = f"{_FOLDER}/{self._node_id}/{time.time_ns():016x}-{secrets.token_hex(4)}.agm"
        data, rows = await asyncio.to_thread(encode_pack, self._node_id, records)
        # The name is known before the object is there: no refresh takes it for a stranger's.
        number = await self._in_thread(partial(self._names.add, name))
        try:
            made = await self._store.put_new(name, data)
        except StoreRefused:
            # It may be there all the same: a refresh finds it if so.
            await self._in_thread(partial(self._names.drop, number))
            raise
        if not made:
            logger.warning("object %s was there already: a write that was tried again", name)
        return [extent_of(number, row) for row in rows], PackState(len(data), sealed=True)

    def _note_written(self, extents: Sequence[Extent], refused: Sequence[Extent]) -> None:
        now = int(self._clock())
        lost = {extent.offset for extent in refused}
        for extent in extents:
            if extent.offset in lost:
                self._note_dead(extent)
            else:
                self._add(extent, now)

    async def _rewrite(self, pack: int) -> None:
        live = [extent for extent in self._table.extents() if extent.pack == pack]
        if live:
            found = [view async for _, view in self.fetch(list(map(copy_of, live)), _FETCH_SECONDS)]
            if len(found) < len(live):
                return  # the store did not give all of it: later
            records = await asyncio.to_thread(checked, live, found)
            good = {record.key for record in records}
            bad = [extent.key for extent in live if extent.key not in good]
            if bad:
                self.counters["quarantined_object_pages"] += len(bad)
                await self.remove(bad)
            if records:
                await self._move(live, records)
        if not self._live[pack]:
            await self._delete(pack)

    async def _move(self, live: Sequence[Extent], records: Sequence[Record]) -> None:
        extents, state = await self._upload(records)
        before = {extent.key: extent for extent in live}
        moves = [(before[extent.key], extent) for extent in extents]
        packs = {extents[0].pack: state}
        moved = await self._in_thread(partial(self._index.move, moves, packs))
        done = {new.key for _, new in moved}
        for old, new in moves:
            if new.key in done:
                self._table.move(new.key, new.pack, new.offset)
                self._live[new.pack] += 1
                self._live[old.pack] -= 1
                self._note_dead(old)
            else:
                self._note_dead(new)  # deleted meanwhile

    async def _delete(self, pack: int) -> None:
        """Deletes an object that no page is in any more."""
        await self._store.delete(self._name(pack))
        dead = self._dead.pop(pack, {})
        await self._in_thread(partial(self._index.finish, [(pack, at) for at in dead], []))
        await self._in_thread(partial(self._index.forget, [], [pack]))
        await self._in_thread(partial(self._names.drop, pack))
        del self._live[pack]
        self.counters["object_packs_deleted"] += 1

    async def _take_in(self, name: str, size_bytes: int) -> int:
        try:
            rows = await self._rows(name, size_bytes)
        except PageCorrupt as error:
            self.counters["object_packs_unreadable"] += 1
            self._unreadable[name] = size_bytes
            logger.error("object %s is left alone: %s", name, error)
            return 0
        number = await self._in_thread(partial(self._names.add, name))
        extents = [extent_of(number, row) for row in rows]
        state = PackState(size_bytes, sealed=True)
        refused = await self._in_thread(partial(commit, self._index, extents, state))
        self._note_written(extents, refused)
        return len(extents) - len(refused)

    async def _rows(self, name: str, size_bytes: int) -> list[Row]:
        """An object's footer. Raises PageCorrupt, StoreRefused."""
        tail = await self._store.get_range(name, max(0, size_bytes - TAIL_BYTES), size_bytes)
        if tail is None:
            raise PageCorrupt("it is gone")
        offset = decode_trailer(tail, size_bytes)
        footer_bytes = size_bytes - offset
        if footer_bytes > tail.nbytes:
            tail = await self._store.get_range(name, offset, size_bytes)
            if tail is None or tail.nbytes < TRAILER_BYTES:
                raise PageCorrupt("it is gone")
        return decode_footer(tail[-footer_bytes:])

    async def _forget(self, name: str) -> None:
        """An object is gone from the store: so are its pages."""
        if name not in self._names:
            return
        number = self._names.add(name)
        extents = [extent for extent in self._table.extents() if extent.pack == number]
        if extents:
            logger.error("object %s is gone, with %d pages", name, len(extents))
            self.counters["object_pages_lost"] += len(extents)
        await self._in_thread(partial(self._index.forget, extents, [number]))
        for extent in extents:
            self._leave_table(extent)
        self._dead.pop(number, None)
        del self._live[number]
        await self._in_thread(partial(self._names.drop, number))

    async def _read(self, gate: asyncio.Semaphore, found: Range) -> memoryview | None:
        async with gate:
            data = await self._store.get_range(
                self._name(found.copies[0].pack), found.start, found.end
            )
        short = data is not None and data.nbytes != found.end - found.start
        return None if short else data

    def _name(self, pack: int) -> str:
        return self._names.name(pack)

    def _add(self, extent: Extent, now: int) -> None:
        self._table.add(extent, now)
        self._live[extent.pack] += 1
        self._record_bytes += record_bytes(extent.payload_bytes)

    def _leave_table(self, extent: Extent) -> None:
        self._table.pop(extent.key)
        self._live[extent.pack] -= 1
        self._record_bytes -= record_bytes(extent.payload_bytes)

    def _take_out(self, extent: Extent) -> None:
        self._leave_table(extent)
        self._note_dead(extent)

    def _note_dead(self, extent: Extent) -> None:
        size_bytes = record_bytes(extent.payload_bytes)
        self._dead.setdefault(extent.pack, {})[extent.offset] = size_bytes

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)
