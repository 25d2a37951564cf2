"""What the node holds, as one thing: lookups, read holds and announcements over all tiers.

Event loop only; what takes time (write-behind, retention, slab files) is elsewhere.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from functools import partial

from agentmem.core import PageKey, Tier
from agentmem.errors import InvalidRequest
from agentmem.node.durability import DurabilityWaiters
from agentmem.node.eviction import Eviction
from agentmem.node.holds import Copy, Hold, HoldTable, tier_of
from agentmem.node.protocol import DURABLE_BIT, TIERS, check_indexes
from agentmem.node.writebehind import WriteBehind
from agentmem.pages.record import record_bytes
from agentmem.store.base import Location
from agentmem.store.disk import DiskTier
from agentmem.store.dram import Acceptance, DramTier
from agentmem.store.losses import Why
from agentmem.store.pack import read_record
from agentmem.store.slab import DramCopy, Slab

_ORIGINS_MAX = 1 << 18


class Ownership:
    """The pages of this node.

    `doomed` maps deleted keys to a sequence: a record of that key committed up to then is a late
    copy of a deleted page, and is destroyed instead of accepted. `origins`: where pages in
    dram were brought from that nobody has read since; their first load counts as one from there.
    """

    def __init__(
        self,
        dram: DramTier,
        disk: DiskTier,
        write_behind: WriteBehind,
        waiters: DurabilityWaiters,
        objects: Container[PageKey] = frozenset(),
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.doomed: dict[PageKey, int] = {}
        self.origins: dict[PageKey, Tier] = {}
        self.holds = HoldTable(dram, disk)
        self.movements = write_behind.movements
        self._dram = dram
        self._disk = disk
        self._write_behind = write_behind
        self._waiters = waiters
        self._objects = objects
        self._eviction = Eviction(dram, disk)
        # Told of pages that had to be dropped, or were found to be bad, and why.
        self.on_lost: Callable[[Sequence[PageKey], Why], None] = lambda keys, why: None

    @property
    def eviction(self) -> Eviction:
        """What chooses the pages that go."""
        return self._eviction

    def best_copy(self, key: PageKey) -> Copy | None:
        """The copy to read a page from: dram before disk. None when no tier has it."""
        return self._dram.get(key) or self._disk.get(key)

    def reader(self, copy: Copy) -> Callable[[], memoryview]:
        """What reads a copy's whole record, to be called in a thread while the copy is held.

        It raises OSError when the medium fails; the record is not checked yet.
        """
        if isinstance(copy, DramCopy):
            return lambda: copy.record
        location = self._disk.location(copy)
        return partial(
            read_record, location.path, location.offset, record_bytes(copy.payload_bytes)
        )

    def missing(self, keys: Sequence[PageKey]) -> bytes:
        """One byte per key: 1 where no tier has it."""
        dram, disk, objects = self._dram, self._disk, self._objects
        return bytes([key not in dram and key not in disk and key not in objects for key in keys])

    def find(self, keys: Sequence[PageKey]) -> int:
        """How many keys, counted from the first, are held without a gap."""
        dram, disk, objects = self._dram, self._disk, self._objects
        for count, key in enumerate(keys):
            if key not in dram and key not in disk and key not in objects:
                return count
        return len(keys)

    def residency(self, keys: Sequence[PageKey]) -> bytes:
        """One byte per key: a bit per tier, in the order of `protocol.TIERS`, and durability."""
        places = (
            (self._dram, 1 << TIERS.index(Tier.DRAM)),
            (self._disk, 1 << TIERS.index(Tier.DISK) | DURABLE_BIT),
            (self._objects, 1 << TIERS.index(Tier.OBJECT) | DURABLE_BIT),
        )
        flags = bytearray(len(keys))
        for tier, bits in places:
            for index, key in enumerate(keys):
                if key in tier:
                    flags[index] |= bits
        return bytes(flags)

    def hold_prefix(self, keys: Sequence[PageKey]) -> Hold:
        """Takes a read hold on the pages found before the first gap."""
        copies: list[Copy] = []
        for key in keys:
            copy = self.best_copy(key)
            if copy is None:
                break
            copies.append(copy)
        return self.holds.take(copies)

    def locations(self, hold: Hold) -> list[Location]:
        """Where the pages of a hold lie, while it lasts."""
        return [self.location(copy) for copy in hold.copies]

    def location(self, copy: Copy) -> Location:
        """Where a held copy lies."""
        if isinstance(copy, DramCopy):
            return self._dram.location(copy)
        return self._disk.location(copy)

    def note_brought(self, key: PageKey, origin: Tier) -> None:
        """The page was brought into dram for somebody who will read it there."""
        while len(self.origins) >= _ORIGINS_MAX:
            del self.origins[next(iter(self.origins))]
        self.origins[key] = origin

    def note_durable(self, keys: Iterable[PageKey]) -> None:
        """These pages are in the object tier now: whoever waits for them is told."""
        for key in keys:
            self._waiters.notify(key)

    def note_loaded(self, hold: Hold, loaded: Mapping[Tier, Sequence[int]]) -> None:
        """The reader of a hold really read these pages. Raises ProtocolError for a wrong index."""
        keys = hold.keys()
        for tier, indexes in loaded.items():
            check_indexes(indexes, len(keys))
            for index in indexes:
                size_bytes = hold.copies[index].payload_bytes
                source = self.origins.pop(keys[index], tier) if tier is Tier.DRAM else tier
                self.movements.loaded(keys[index], source, size_bytes)
                self.counters[f"loaded_{source}_pages"] += 1
                self.counters[f"loaded_{source}_page_bytes"] += size_bytes

    def suspects(self, hold: Hold, corrupt: Sequence[int]) -> list[Copy]:
        """The copies that the reader of a hold found corrupt. Raises ProtocolError."""
        check_indexes(corrupt, len(hold.copies))
        for index in corrupt:
            self.counters[f"corrupt_{tier_of(hold.copies[index])}_pages"] += 1
        return [hold.copies[index] for index in corrupt]

    def stored(
        self, slab: Slab, slots: Sequence[int], keys: Sequence[PageKey], fingerprint: bytes
    ) -> list[Acceptance]:
        """Takes announced slots into the index, and gives new pages to write-behind.

        Raises InvalidRequest, and takes none, for a slot that is not there or a foreign key.
        """
        if len(slots) != len(keys):
            raise InvalidRequest(f"{len(slots)} slots announced with {len(keys)} keys")
        if any(slot >= slab.header.slots for slot in slots):
            raise InvalidRequest(f"{slab.name} has only {slab.header.slots} slots")
        if any(not key.startswith(fingerprint) for key in keys):
            raise InvalidRequest("a page of another fingerprint than the engine's")
        outcomes = []
        for slot, key in zip(slots, keys, strict=True):
            known = slab.copies.get(slot)
            held = self.best_copy(key) is not None and known is None
            outcome = self._dram.accept(slab, slot, key, held=held)
            self.counters[f"stored_{outcome}_pages"] += 1
            if outcome is Acceptance.ACCEPTED and known is None:
                self.take_in([slab.copies[slot]])
            outcomes.append(outcome)
        copies = (self._dram.get(key) for key in keys)
        self._dram.touch([copy for copy in copies if copy is not None])
        return outcomes

    def take_in(self, copies: Iterable[DramCopy]) -> None:
        """New copies in dram: late ones of deleted pages are destroyed, others go to write-behind.

        A copy of a durable page stays as a cache only when it is the very record that is on disk:
        the bytes of a key may differ from one computation to the next, and the first ones win.
        """
        fresh = []
        for copy in copies:
            durable = self._disk.get(copy.key)
            if self.doomed.get(copy.key, -1) >= copy.sequence:
                self.counters["late_deleted_pages"] += 1
                self._dram.remove(copy)
            elif durable is None:
                fresh.append(copy)
                self.movements.record(copy.key, None, Tier.DRAM, copy.payload_bytes)
            elif durable.sequence != copy.sequence:
                self.counters["stored_duplicate_pages"] += 1
                self._dram.remove(copy, dirty=True)
        fresh.sort(key=lambda copy: copy.sequence)
        self._write_behind.enqueue(fresh)

    def is_spare(self, copy: DramCopy) -> bool:
        """Whether nobody was promised this dram copy: the page is durable, or nothing claims it."""
        return copy.key in self._disk or not self._write_behind.pending(copy.key)

    def may_evict(self, copy: DramCopy) -> bool:
        """Whether a dram copy may be dropped: it is spare, or the disk tier cannot take it."""
        return self.is_spare(copy) or self._write_behind.failing is not None

    def evict(self, pages: int, slabs: Sequence[Slab]) -> int:
        """Drops up to `pages` of the least valuable spare pages from these slabs. Returns how many.

        Claimed pages that are not durable go only while the disk tier takes nothing.
        """
        spare = self._drop(pages, self.is_spare, slabs)
        durable = sum(copy.key in self._disk for copy in spare)
        lost: list[DramCopy] = []
        if len(spare) < pages and self._write_behind.failing is not None:
            lost = self._drop(pages - len(spare), self.may_evict, slabs)
            self.on_lost([copy.key for copy in lost], "evicted")
        for copy in (*spare, *lost):
            self.movements.record(copy.key, Tier.DRAM, None, copy.payload_bytes)
        self.counters["evicted_dram_pages"] += durable
        self.counters["evicted_unclaimed_pages"] += len(spare) - durable
        self.counters["evicted_undurable_pages"] += len(lost)
        return len(spare) + len(lost)

    def _drop(
        self, pages: int, may_go: Callable[[DramCopy], bool], slabs: Sequence[Slab]
    ) -> list[DramCopy]:
        victims = self._eviction.choose_dram(pages, may_go, slabs)
        for copy in victims:
            self._dram.remove(copy, dirty=True)
        return victims

    async def drop_dram(self, keys: Iterable[PageKey] | None) -> tuple[int, int]:
        """Drops dram copies of durable pages that nobody reads; None: of all. (pages, bytes)."""
        copies = list(self._dram.pages())
        if keys is not None:
            copies = [copy for key in keys if (copy := self._dram.get(key)) is not None]
        pages = page_bytes = 0
        for copy in copies:
            if copy.gone or copy.holds or copy.key not in self._disk:
                continue
            self._dram.remove(copy)
            self.movements.record(copy.key, Tier.DRAM, None, copy.payload_bytes)
            pages += 1
            page_bytes += copy.payload_bytes
            await asyncio.sleep(0)  # zeroing takes time: let other connections have a turn
        return pages, page_bytes

    async def wait_durable(self, keys: Sequence[PageKey], timeout_seconds: float) -> list[int]:
        """Waits for pages to be durable, their write-behind first. Indexes of those missing.

        Waiting is no claim: a page that nothing claims is not written for it, but it may yet be
        claimed.
        """
        self._write_behind.urge(keys)
        return await self._waiters.wait(keys, timeout_seconds)
