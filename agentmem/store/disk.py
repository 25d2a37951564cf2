"""The disk tier: append-only packs and an embedded index.

State is changed on the event loop. Appending runs in a writer thread, the index in an index thread,
each one call at a time, so that index transactions have one order: write -> sync -> index commit,
and only then is a page in the tier. While one batch is being committed the next is written. A
deletion is an index transaction first, then the bytes are punched out of the pack; until that is
done the index remembers that it must be.

In memory a page is a row of `PageTable`; a `DiskCopy` exists only while someone looks at one.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import lmdb

from agentmem.core import ClaimTerms, PageKey, Tier
from agentmem.errors import StoreRefused
from agentmem.pages.record import record_bytes
from agentmem.store.audit import Audit, audit_packs
from agentmem.store.base import Location, TierUsage
from agentmem.store.claims import Admit, Claim, Terms, admit_all
from agentmem.store.compaction import Compactor
from agentmem.store.copies import DiskCopies, DiskCopy
from agentmem.store.evictor import Evictor
from agentmem.store.index import Extent, PageIndex, Unclaimed
from agentmem.store.indexthread import IndexThread
from agentmem.store.medium import reason_of
from agentmem.store.mending import Mended, Mender
from agentmem.store.pack import PACK_BYTES, PACK_HEADER_BYTES, pack_name, sync_directory
from agentmem.store.packwriter import Batch, PackWriter, Record
from agentmem.store.pipeline import Pipeline
from agentmem.store.reclaim import Dead, Reclaimer
from agentmem.store.recovery import Recovery, recover
from agentmem.store.space import PackSpace
from agentmem.store.table import PageTable, PageUse

T = TypeVar("T")


class DiskTier:
    """Packs below one directory, up to `budget_bytes` of records, and their index.

    `clock` gives seconds since the epoch, against which claims expire. `degraded` is why the tier
    took nothing the last time, as in `medium.REASONS`, and empty while it works.
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
        self.degraded = ""
        self._directory = directory
        self._budget_bytes = budget_bytes
        self._clock = clock
        self._index_thread = IndexThread()
        self.index_damaged = self._index_thread.damaged  # set: the next `open` makes it anew
        self._table = PageTable()
        self._space = PackSpace()
        writer = PackWriter(directory, node_id, pack_bytes)
        self._pipeline = Pipeline(writer, self._index_thread, self._table)
        self._reclaimer = Reclaimer(
            directory, self._space, self._index_thread, lambda: self._pipeline.in_use
        )
        self._mender = Mender(directory)
        self._compactor = Compactor(directory, self._space, self._table)
        self._copies = DiskCopies(self._table)
        self.evictor = Evictor(self._index_thread, self._table, self._copies, self._drop, clock)

    @property
    def reclaim_wanted(self) -> asyncio.Event:
        """Set while `reclaim` has something new to do."""
        return self._reclaimer.wanted

    @property
    def index_bytes(self) -> int:
        """What the index's file takes on the medium, beside the budget."""
        return self._index.file_bytes()

    async def open(self) -> Recovery:
        """Recovers index and packs. Raises OSError or lmdb.Error when neither can be read."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        sync_directory(self._directory.parent)
        recover_all = partial(recover, self._directory, self._table, self._space)
        recovery = await self._index_thread.open(self._directory / "index", recover_all)
        for pack, offset, size_bytes in await self._in_index_thread(self._index.punches):
            self._put_dead(Dead(pack, offset, size_bytes))
        packs = await self._in_index_thread(self._index.packs)
        for number, state in packs.items():
            self._space.note_written(number, state.committed_end - PACK_HEADER_BYTES)
        await self._pipeline.resume(packs)
        await self.reclaim()
        await self._reclaimer.unlink_empty(packs)
        return recovery

    async def close(self) -> None:
        """Ends the threads; what was appended is durable already."""
        await self.reclaim()
        await self._pipeline.close()
        self._reclaimer.close()
        await self._index_thread.close()

    def __contains__(self, key: PageKey) -> bool:
        """Whether the page is durable here."""
        return key in self._table

    def get(self, key: PageKey) -> DiskCopy | None:
        """The page's copy, None when it is not durable here. Changes nothing."""
        return self._copies.get(key)

    def uses(self) -> Iterator[PageUse]:
        """Key, bytes, position and last use of all pages, from which to choose those to evict.

        In no order that means anything. Pages may come and go meanwhile; any thread may read it.
        """
        return self._table.uses()

    def location(self, copy: DiskCopy) -> Location:
        """The pack file and the record's offset in it."""
        path = self._directory / pack_name(copy.pack)
        return Location(Tier.DISK, str(path), copy.offset, copy.payload_bytes, copy.key_id)

    def hold(self, copy: DiskCopy) -> None:
        """Takes a read hold, and makes the page the most recently used."""
        copy.holds += 1
        self._table.touch(copy.key, int(self._clock()))

    def unhold(self, copy: DiskCopy) -> None:
        """Ends a read hold; after the last one of a copy that is gone `reclaim` takes its bytes."""
        copy.holds -= 1
        if copy.gone and copy.holds == 0:
            size_bytes = record_bytes(copy.payload_bytes)
            self._reclaimer.later(Dead(copy.pack, copy.offset, size_bytes))

    def usage(self) -> TierUsage:
        """Pages held, and bytes of all records that lie in packs against the budget."""
        return TierUsage(
            len(self._table),
            self._table.page_bytes,
            self._space.reserved_bytes,
            self._budget_bytes,
        )

    async def append(self, records: Sequence[Record]) -> list[Record]:
        """Makes records durable pages: one group of large writes, one sync, one index commit.

        Returns those that did not become pages because they were deleted meanwhile (or are
        here already). Raises StoreRefused when the budget is used up by claimed pages, or the
        medium is full or fails; none of the records is then in the tier. Called again before it
        returns, it writes the next batch while the index commits this one.
        """
        try:
            make_room = partial(self._make_room, sum(len(record.view) for record in records))
            batch, refused = await self._pipeline.write(records, make_room, self._commit)
        except (OSError, lmdb.Error) as error:
            raise self._refusal(error) from error
        self.degraded = ""
        lost = {(extent.pack, extent.offset) for extent in refused}
        return [
            record
            for record, extent in zip(records, batch.extents, strict=True)
            if (extent.pack, extent.offset) in lost
        ]

    async def _commit(self, batch: Batch) -> list[Extent]:
        commit = partial(self._index.commit, batch.extents, batch.states)
        refused = await self._in_index_thread(commit)
        # No await between the commit and here: what the index thread does next (a deletion, say)
        # then finds the page in the table.
        lost = {(extent.pack, extent.offset) for extent in refused}
        now = int(self._clock())
        for extent in batch.extents:
            if (extent.pack, extent.offset) in lost:
                self._put_dead(Dead.of(extent))
            else:
                self._space.put(extent.pack, record_bytes(extent.payload_bytes))
                self._table.add(extent, now)
        return refused

    async def compact(self) -> int:
        """Moves the pages of one pack that is mostly empty to the newest, so that it goes.

        Returns the bytes of the records moved, 0 when no pack needs it or there is no room. Raises
        OSError or lmdb.Error; every page is then where it was.
        """
        live = await self._compactor.read(
            self._pipeline.in_use, has_holes=self._reclaimer.has_holes
        )
        if not live:
            return 0
        size_bytes = sum(len(record.view) for _, record in live)

        async def only_into_room(full: OSError | None) -> None:
            if full or self._missing_bytes(size_bytes) > 0:  # making room would cost pages
                raise full or StoreRefused("no room to compact into", reason="disk_budget")

        move = partial(self._move, [extent for extent, _ in live])
        try:
            await self._pipeline.write([record for _, record in live], only_into_room, move)
        except StoreRefused:
            return 0
        await self.reclaim()
        self.counters["compacted_packs"] += 1
        self.counters["compacted_bytes"] += size_bytes
        return size_bytes

    async def _move(self, old: Sequence[Extent], batch: Batch) -> None:
        moves = list(zip(old, batch.extents, strict=True))
        moved = await self._in_index_thread(partial(self._index.move, moves, batch.states))
        done = {extent.key for extent, _ in moved}
        for before, after in moves:
            if after.key in done:
                self._space.put(after.pack, record_bytes(after.payload_bytes))
                self._table.move(after.key, after.pack, after.offset)
                self._leave(before)
            else:
                self._put_dead(Dead.of(after))

    async def audit(self, *, headers: bool = True) -> Audit:
        """Compares index, packs and accounting, with nothing else under way. Changes nothing.

        `headers`: whether to read each record's header, too. Raises OSError, lmdb.Error.
        """
        async with self._pipeline.quiet():
            return await self._audit(headers=headers)

    async def mend(self) -> tuple[Audit, list[Mended]]:
        """Audits, and takes in or destroys the bytes that nothing refers to. Raises as `audit`."""
        async with self._pipeline.quiet():
            audit = await self._audit(headers=True)
            mend = partial(self._mender.mend, audit.differences, self._index, self._now_us())
            mended = await self._in_index_thread(mend)
            for extent in (extent for each in mended for extent in each.taken_in):
                self._space.put(extent.pack, record_bytes(extent.payload_bytes))
                self._table.add(extent, int(self._clock()))
            return audit, mended

    async def keys_after(self, after: bytes, pages_max: int) -> list[PageKey]:
        """Keys of the next pages after that key (empty: from the first), in order."""
        return await self._in_index_thread(partial(self._index.keys_after, after, pages_max))

    async def _audit(self, *, headers: bool) -> Audit:
        await self.reclaim()
        parts = (self._directory, self._index, self._table, self._space.reserved_bytes)
        return await self._in_index_thread(partial(audit_packs, *parts, headers=headers))

    async def evict(self, size_bytes: int, keys: Sequence[PageKey] | None = None) -> int:
        """Evicts pages that nothing promises until `size_bytes` are free, in the order of `keys`.

        Without `keys` those that nothing claims any more go first, as `evictor.choose` says, then
        the least recently used. Pages that are being read stay. Returns the bytes freed, which may
        be fewer.
        """
        if keys is None:
            freed = await self.evictor.leftovers(size_bytes)
            freed += await self.evictor.least_used(size_bytes - freed)
        else:
            freed = await self.evictor.pages(keys, size_bytes)
        await self.reclaim()
        return freed

    async def remove(self, keys: Iterable[PageKey]) -> int:
        """Removes pages and destroys their bytes (those being read: after the last hold)."""
        extents = await self._in_index_thread(partial(self._index.remove, list(keys)))
        self._drop(extents)
        await self.reclaim()
        return len(extents)

    async def claim(
        self,
        claim_id: bytes,
        keys: Sequence[PageKey],
        expires_at: float,
        terms: ClaimTerms | None = None,
        admit: Admit = admit_all,
    ) -> int:
        """Registers a claim until `expires_at` (seconds since the epoch). Raises lmdb.Error.

        Returns how many of the pages, from the first on, are promised.
        """
        until = Terms(int(expires_at * 1_000_000), *(terms or ClaimTerms()).lasting)
        call = partial(self._index.claims.claim, claim_id, keys, until, admit)
        return await self._in_index_thread(call)

    async def in_index(self, call: Callable[[PageIndex, int], T]) -> T:
        """What `call` makes of the index and the time (microseconds). Raises lmdb.Error."""
        return await self._in_index_thread(lambda: call(self._index, self._now_us()))

    async def claims(self, keys: Sequence[PageKey]) -> dict[PageKey, list[Claim]]:
        """The live claims on those of the keys that have one. Raises StoreRefused."""
        try:
            call = partial(self._index.claims.of_pages, keys, self._now_us())
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
        await self._reclaimer.run()
        self.counters["punch_failed"] = self._reclaimer.counters["punch_failed"]
        self.counters.update(self.evictor.counters)
        self.evictor.counters.clear()

    @property
    def _index(self) -> PageIndex:
        return self._index_thread.index

    def _drop(self, extents: Iterable[Extent]) -> None:
        """Makes pages, which the index no longer has, invisible to readers."""
        for extent in extents:
            self._table.pop(extent.key)
            self._leave(extent)

    def _leave(self, extent: Extent) -> None:
        """The record at this place is no page any more: it goes when nobody reads it."""
        dead = Dead.of(extent)
        self._space.die(dead.pack, dead.size_bytes)
        if not self._copies.leave(extent.key):
            self._reclaimer.later(dead)

    def _put_dead(self, dead: Dead) -> None:
        """There is a record that never was, or is no page any more."""
        self._space.put(dead.pack, dead.size_bytes)
        self._space.die(dead.pack, dead.size_bytes)
        self._reclaimer.later(dead)

    def _missing_bytes(self, size_bytes: int) -> int:
        """By how much the budget is too small for so much more."""
        reserved = self._space.reserved_bytes + self._pipeline.unaccounted_bytes
        return reserved + size_bytes - self._budget_bytes

    async def _make_room(self, size_bytes: int, full: OSError | None) -> None:
        if full is not None:
            # The file system is smaller than our budget: evicting may help.
            if not await self.evict(size_bytes):
                raise full
            return
        missing = self._missing_bytes(size_bytes)
        if missing > 0 and size_bytes <= self._budget_bytes:
            await self.evict(missing)
        if self._missing_bytes(size_bytes) > 0:
            self.degraded = "disk_budget"
            self.counters["refused_disk_budget"] += 1
            raise StoreRefused(
                f"the disk tier's {self._budget_bytes} bytes are used by claimed pages",
                reason="disk_budget",
            )

    def _refusal(self, error: OSError | lmdb.Error) -> StoreRefused:
        self.degraded = reason_of(error)
        self.counters[f"refused_{self.degraded}"] += 1
        return StoreRefused(f"the disk tier took nothing: {error}", reason=self.degraded)

    def _now_us(self) -> int:
        return int(self._clock() * 1_000_000)

    async def _in_index_thread(self, call: Callable[[], T]) -> T:
        return await self._index_thread.run(call)
