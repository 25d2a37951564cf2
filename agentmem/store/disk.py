"""The disk tier: append-only packs and an embedded index.

State is changed on the event loop. Appending runs in a writer thread, the index in an index thread,
each one call at a time, so that index transactions have one order: write -> sync -> index commit,
and only then is a page in the tier. A deletion is an index transaction first, then the bytes are
punched out of the pack; until that is done the index remembers that it must be.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import lmdb

from agentmem.core import PageKey, Tier
from agentmem.errors import StoreRefused
from agentmem.pages.record import record_bytes
from agentmem.store.base import Location, PageCopy, TierUsage
from agentmem.store.claims import Terms
from agentmem.store.index import Extent, PageIndex, Unclaimed
from agentmem.store.pack import PACK_BYTES, pack_name, punch
from agentmem.store.packwriter import PackWriter, Record
from agentmem.store.recovery import Recovery, open_index, recover

logger = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT)
_EVICTION_CHUNK_PAGES = 256

T = TypeVar("T")


@dataclass(slots=True, eq=False, kw_only=True)
class DiskCopy(PageCopy):
    """A page in a pack."""

    pack: int
    offset: int
    sequence: int


class DiskTier:
    """Packs below one directory, up to `budget_bytes` of records, and their index.

    `clock` gives seconds since the epoch, against which claims expire.
    """

    tier = Tier.DISK

    def __init__(
        self,
        directory: Path,
        node_id: str,
        budget_bytes: int,
        *,
        pack_bytes: int = PACK_BYTES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.reclaim_wanted = asyncio.Event()
        self._reclaiming = asyncio.Lock()
        self._directory = directory
        self._budget_bytes = budget_bytes
        self._clock = clock
        self._writer = PackWriter(directory, node_id, pack_bytes)
        self._writer_thread = ThreadPoolExecutor(1, "disk-writer")
        self._index_thread = ThreadPoolExecutor(1, "disk-index")
        self._punch_thread = ThreadPoolExecutor(1, "disk-punch")
        self._index: PageIndex
        self._pages: dict[PageKey, DiskCopy] = {}  # oldest first
        self._page_bytes = 0
        self._reserved_bytes = 0
        # Records per pack whose bytes are not destroyed yet, deleted ones included.
        self._records: Counter[int] = Counter()
        self._to_punch: list[tuple[int, int, int]] = []

    async def open(self) -> Recovery:
        """Recovers index and packs. Raises OSError or lmdb.Error when neither can be read."""
        recovery = await self._in_index_thread(self._open)
        for extent in await self._in_index_thread(self._index.extents):
            self._add(extent)
        for pack, offset, size_bytes in await self._in_index_thread(self._index.punches):
            self._records[pack] += 1
            self._reserved_bytes += size_bytes
            self._to_punch.append((pack, offset, size_bytes))
        packs = await self._in_index_thread(self._index.packs)
        self._writer.resume(packs)
        await self.reclaim()
        await self._unlink_empty(packs)
        return recovery

    async def close(self) -> None:
        """Ends the threads; what was appended is durable already."""
        await self.reclaim()
        for thread in (self._writer_thread, self._punch_thread):
            thread.shutdown(wait=True)
        self._writer.close()
        await self._in_index_thread(self._index.close)
        self._index_thread.shutdown(wait=True)

    def get(self, key: PageKey) -> DiskCopy | None:
        """The page's copy, None when it is not durable here. Changes nothing."""
        return self._pages.get(key)

    def location(self, copy: DiskCopy) -> Location:
        """The pack file and the record's offset in it."""
        path = self._directory / pack_name(copy.pack)
        return Location(Tier.DISK, str(path), copy.offset, copy.payload_bytes)

    def hold(self, copy: DiskCopy) -> None:
        """Takes a read hold."""
        copy.holds += 1

    def unhold(self, copy: DiskCopy) -> None:
        """Ends a read hold; after the last one of a copy that is gone `reclaim` takes its bytes."""
        copy.holds -= 1
        if copy.gone and copy.holds == 0:
            self._destroy_later(copy)

    def usage(self) -> TierUsage:
        """Pages held, and bytes of all records that lie in packs against the budget."""
        return TierUsage(
            len(self._pages), self._page_bytes, self._reserved_bytes, self._budget_bytes
        )

    async def append(self, records: Sequence[Record]) -> list[Record]:
        """Makes records durable pages: one group of large writes, one sync, one index commit.

        Returns those that did not become pages because they were deleted meanwhile (or are
        here already). Raises StoreRefused when the budget is used up by claimed pages, or the
        medium is full or fails; none of the records is then in the tier.
        """
        try:
            return await self._append(records)
        except (OSError, lmdb.Error) as error:
            raise self._refusal(error) from error

    async def _append(self, records: Sequence[Record]) -> list[Record]:
        size_bytes = sum(len(record.view) for record in records)
        await self._make_room(size_bytes)
        try:
            extents, states = await self._in_writer_thread(self._writer.write, records)
        except OSError as error:
            # The file system is smaller than our budget: evicting may help, but only once.
            if error.errno not in _FULL or not await self.evict(size_bytes):
                raise
            extents, states = await self._in_writer_thread(self._writer.write, records)
        try:
            commit = partial(self._index.commit, extents, states)
            refused = {(e.pack, e.offset) for e in await self._in_index_thread(commit)}
        except lmdb.Error:
            await self._in_writer_thread(self._writer.undo)
            raise
        # No await between the commit and here: what the index thread does next (a deletion, say)
        # then finds the page in `_pages`.
        rejected = []
        for record, extent in zip(records, extents, strict=True):
            copy = self._add(extent, visible=(extent.pack, extent.offset) not in refused)
            if copy.gone:
                self._destroy_later(copy)
                rejected.append(record)
        await self._in_writer_thread(self._writer.keep)
        return rejected

    async def evict(self, size_bytes: int) -> int:
        """Evicts pages that nothing claims, oldest first, until `size_bytes` are free.

        Returns the bytes freed, which may be fewer.
        """
        freed = 0
        candidates = [key for key, copy in self._pages.items() if not copy.holds]
        for start in range(0, len(candidates), _EVICTION_CHUNK_PAGES):
            if freed >= size_bytes:
                break
            chunk = candidates[start : start + _EVICTION_CHUNK_PAGES]
            evict = partial(self._index.evict_unclaimed, chunk, size_bytes - freed, self._now_us())
            extents = await self._in_index_thread(evict)
            self._drop(extents)
            self.counters["evicted_disk_pages"] += len(extents)
            freed += sum(record_bytes(extent.payload_bytes) for extent in extents)
        await self.reclaim()
        return freed

    async def remove(self, keys: Iterable[PageKey]) -> int:
        """Removes pages and destroys their bytes (those being read: after the last hold)."""
        extents = await self._in_index_thread(partial(self._index.remove, list(keys)))
        self._drop(extents)
        await self.reclaim()
        return len(extents)

    async def claim(self, claim_id: bytes, keys: Sequence[PageKey], expires_at: float) -> None:
        """Registers a claim until `expires_at` (seconds since the epoch). Raises lmdb.Error."""
        terms = Terms(int(expires_at * 1_000_000))
        await self._in_index_thread(partial(self._index.claims.claim, claim_id, keys, terms))

    async def claimed(self, keys: Sequence[PageKey]) -> set[PageKey]:
        """Those of the keys that a live claim names. Raises StoreRefused when the index fails."""
        try:
            call = partial(self._index.claims.claimed, keys, self._now_us())
            return await self._in_index_thread(call)
        except lmdb.Error as error:
            raise self._refusal(error) from error

    async def unclaim(self, claim_id: bytes, keys: Sequence[PageKey]) -> Unclaimed:
        """Ends a claim; pages that nothing else claims are not found in this tier on return.

        `reclaim` destroys their bytes; copies in other tiers are the caller's to remove.
        """
        call = partial(self._index.unclaim, claim_id, keys, self._now_us())
        unclaimed = await self._in_index_thread(call)
        self._drop(unclaimed.extents)
        return unclaimed

    async def doomed(self) -> dict[PageKey, int]:
        """Keys that were deleted, up to which sequence, and may still have copies elsewhere."""
        return await self._in_index_thread(self._index.doomed)

    async def forget_doomed(self, keys: Sequence[PageKey]) -> None:
        """No older copy of these deleted pages can turn up any more."""
        await self._in_index_thread(partial(self._index.finish, [], keys))

    async def prune_claims(self, rows_max: int = 4096) -> bool:
        """Drops claims that have expired, some at a time. Returns whether there are more."""
        prune = partial(self._index.prune_claims, self._now_us(), rows_max)
        dropped, more = await self._in_index_thread(prune)
        self.counters["claims_expired"] += dropped
        return more

    async def reclaim(self) -> None:
        """Destroys the bytes of deleted pages that nobody reads any more: they are on return."""
        async with self._reclaiming:
            await self._reclaim()

    async def _reclaim(self) -> None:
        work, self._to_punch = self._to_punch, []
        self.reclaim_wanted.clear()
        if not work:
            return
        loop = asyncio.get_running_loop()
        done = await loop.run_in_executor(self._punch_thread, self._punch, work)
        await self._in_index_thread(
            partial(self._index.finish, [(pack, offset) for pack, offset, _ in done], [])
        )
        self.counters["punch_failed"] += len(work) - len(done)
        for pack, _offset, size_bytes in done:
            self._reserved_bytes -= size_bytes
            self._records[pack] -= 1
        await self._unlink_empty({pack for pack, _, _ in done})

    def _open(self) -> Recovery:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._index, rebuilt = open_index(self._directory / "index")
        return recover(self._directory, self._index, rebuilt=rebuilt)

    def _add(self, extent: Extent, *, visible: bool = True) -> DiskCopy:
        copy = DiskCopy(
            extent.key,
            extent.payload_bytes,
            gone=not visible,
            pack=extent.pack,
            offset=extent.offset,
            sequence=extent.sequence,
        )
        self._records[extent.pack] += 1
        self._reserved_bytes += record_bytes(extent.payload_bytes)
        if visible:
            self._pages[extent.key] = copy
            self._page_bytes += extent.payload_bytes
        return copy

    def _drop(self, extents: Iterable[Extent]) -> None:
        """Makes pages, which the index no longer has, invisible to readers."""
        for extent in extents:
            copy = self._pages.pop(extent.key)
            copy.gone = True
            self._page_bytes -= copy.payload_bytes
            if copy.holds == 0:
                self._destroy_later(copy)

    def _destroy_later(self, copy: DiskCopy) -> None:
        self._to_punch.append((copy.pack, copy.offset, record_bytes(copy.payload_bytes)))
        self.reclaim_wanted.set()

    def _punch(self, work: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
        """Punches extents, in the punch thread. Returns those whose bytes are gone for sure."""
        done = []
        by_pack: dict[int, list[tuple[int, int, int]]] = {}
        for extent in work:
            by_pack.setdefault(extent[0], []).append(extent)
        for pack, extents in by_pack.items():
            try:
                fd = os.open(self._directory / pack_name(pack), os.O_RDWR | os.O_CLOEXEC)
                try:
                    for _pack, offset, size_bytes in extents:
                        punch(fd, offset, size_bytes)
                    os.fsync(fd)
                finally:
                    os.close(fd)
                done += extents
            except FileNotFoundError:
                done += extents
            except OSError as error:
                logger.error("pack %d: bytes of deleted pages stay until restart: %s", pack, error)
        return done

    async def _unlink_empty(self, packs: Iterable[int]) -> None:
        empty = [p for p in packs if self._records[p] == 0 and p != self._writer.current_number]
        for pack in empty:
            (self._directory / pack_name(pack)).unlink(missing_ok=True)
            del self._records[pack]
        if empty:
            await self._in_index_thread(partial(self._index.forget, [], empty))

    async def _make_room(self, size_bytes: int) -> None:
        missing = self._reserved_bytes + size_bytes - self._budget_bytes
        if missing > 0 and size_bytes <= self._budget_bytes:
            await self.evict(missing)
        if self._reserved_bytes + size_bytes > self._budget_bytes:
            self.counters["refused_disk_budget"] += 1
            raise StoreRefused(
                f"the disk tier's {self._budget_bytes} bytes are used by claimed pages",
                reason="disk_budget",
            )

    def _refusal(self, error: OSError | lmdb.Error) -> StoreRefused:
        code = error.errno if isinstance(error, OSError) else None
        if code in _FULL:
            reason = "disk_full"
        elif isinstance(error, lmdb.Error):
            reason = "index_failed"
        else:
            reason = "disk_failed"
        self.counters[f"refused_{reason}"] += 1
        return StoreRefused(f"the disk tier took nothing: {error}", reason=reason)

    def _now_us(self) -> int:
        return int(self._clock() * 1_000_000)

    async def _in_index_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._index_thread, call)

    async def _in_writer_thread(self, call: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(
            self._writer_thread, partial(call, *args)
        )
