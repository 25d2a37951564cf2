"""Who gets slabs: grants to engines, the agent's own, and what dead engines leave."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial

from agentmem.core import PageKey
from agentmem.errors import InvalidRequest, NotFound, StoreRefused
from agentmem.node.ownership import Ownership
from agentmem.node.shares import Owner, donor_for, fair_share_bytes, may_grow
from agentmem.pages.record import (
    HEADER_BYTES,
    RecordHeader,
    encode_header,
    record_bytes,
    verify_record,
)
from agentmem.pages.slab import (
    AGENT_OWNER,
    SLAB_HEADER_BYTES,
    SlabHeader,
    check_shape,
    commit_slot,
    slot_offset,
)
from agentmem.store.dram import DramTier
from agentmem.store.slab import Slab, create_slab, scrub_slots

logger = logging.getLogger(__name__)

_AGENT_SLAB_SLOTS = 8
_SLABS_MIN = 4
_STARVED_SECONDS = 3.0


class Slabs:
    """Grants and takes back slabs of the dram tier."""

    def __init__(
        self, node_id: str, dram: DramTier, ownership: Ownership, executor: Executor
    ) -> None:
        self._node_id = node_id
        self._dram = dram
        self._ownership = ownership
        self._executor = executor
        self._wanted: set[str] = set()
        # Engines below their share that were refused a slab, and when.
        self._starved: dict[Owner, float] = {}
        self._scrubbing: set[asyncio.Task[None]] = set()

    async def grant(
        self, owner: Owner, slot_bytes: int, slots: int, evict_slots: int = 0
    ) -> tuple[str, int]:
        """A new slab's path; or, without room for one, "" and how many slots of the engine's
        slabs were emptied instead. Raises InvalidRequest for an impossible shape.

        The slab may have fewer slots than asked for: none takes more than a quarter of the budget.
        """
        try:
            check_shape(slot_bytes, slots)
        except ValueError as error:
            raise InvalidRequest(str(error)) from error
        quarter = self._dram.usage().budget_bytes // _SLABS_MIN
        slots = min(slots, max(1, (quarter - SLAB_HEADER_BYTES) // slot_bytes))
        slab_bytes = slot_offset(slot_bytes, slots)
        try:
            self._check_share(owner, slab_bytes)
            slab = await self._make(owner, slot_bytes, slots)
        except StoreRefused as error:
            self._ownership.counters[f"grants_refused_{error.reason}"] += 1
            self._ask_back_for(owner, slab_bytes)
            wanted = max(slots, evict_slots)
            return "", self._ownership.evict(wanted, self.slabs_of(owner))
        return str(slab.path), 0

    def slabs_of(self, owner: Owner) -> list[Slab]:
        """The slabs that this engine's process owns."""
        return [slab for slab in self._dram.slabs.values() if _owns(owner, slab)]

    def slab_of(self, owner: Owner, name: str) -> Slab:
        """One of the engine's slabs. Raises NotFound for any other."""
        slab = self._dram.slabs.get(name)
        if slab is None or not _owns(owner, slab):
            raise NotFound("slab", name)
        return slab

    def wanted_from(self, owner: Owner) -> list[str]:
        """Slabs that this engine should give back, because another one has too few."""
        return [slab.name for slab in self.slabs_of(owner) if slab.name in self._wanted]

    def take_back(self, slabs: Sequence[Slab]) -> None:
        """The agent owns these from now on; what they hold stays served."""
        for slab in slabs:
            self._wanted.discard(slab.name)
            found = self._dram.adopt(slab)
            self._ownership.take_in(found)
            logger.info("slab %s is the agent's now, %d new pages in it", slab.name, len(found))
            if slots := self._dram.begin_scrub(slab):
                task = asyncio.create_task(self._scrub(slab, slots))
                self._scrubbing.add(task)
                task.add_done_callback(self._scrubbing.discard)
        self._dram.unlink_empty()

    async def settle(self) -> None:
        """Waits until slabs that were taken back are zeroed where they hold no page."""
        await asyncio.gather(*self._scrubbing)

    async def _scrub(self, slab: Slab, slots: Sequence[int]) -> None:
        """In a thread: zeroing half a gigabyte takes longer than an engine waits for an answer."""
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._executor, scrub_slots, slab, slots)
        finally:
            self._dram.end_scrub(slab, slots)
            self._dram.unlink_empty()

    def adopt_orphans(self) -> int:
        """Takes back the slabs of dead engines. Returns how many."""
        orphans = self._dram.orphans()
        self._ownership.counters["slabs_adopted"] += len(orphans)
        self.take_back(orphans)
        return len(orphans)

    def shed_all(self) -> None:
        """Deletes the agent's slabs whose pages are all on disk as well, or only cache."""
        self._shed(self._dram.usage().budget_bytes)

    async def copy_page(self, source: PageKey, target: PageKey) -> None:
        """Stores the page `source` under the key `target`, too; durable where that is claimed.

        Raises NotFound without the source, PageCorrupt, StoreRefused without room.
        """
        if self._ownership.best_copy(target) is not None:
            return
        hold = self._ownership.hold_prefix([source])
        try:
            if not hold.copies:
                raise NotFound("page", source.hex())
            copy = hold.copies[0]
            slab, slot = await self.agent_slot(copy.payload_bytes)
            try:
                write = partial(
                    _copy_record, self._ownership.reader(copy), source, target, slab, slot
                )
                await asyncio.get_running_loop().run_in_executor(self._executor, write)
            finally:
                self._dram.end_writing(slab, slot)
            held = self._ownership.best_copy(target) is not None
            self._dram.accept(slab, slot, target, held=held)
            if not held:
                self._ownership.take_in([slab.copies[slot]])
        finally:
            self._ownership.holds.end(hold.hold_id)

    def _ask_back_for(self, owner: Owner, slab_bytes: int) -> None:
        """Marks a slab to be given back by an engine that has more, if `owner` has too little.

        Only the engine itself may stop writing to a slab, so it is asked (`wanted`) to.
        """
        sizes, budget_bytes = self._sizes(), self._dram.usage().budget_bytes
        if sizes.get(owner, 0) >= fair_share_bytes(budget_bytes, len({owner, *sizes})):
            return
        self._starved[owner] = time.monotonic()
        donor = donor_for(owner, slab_bytes, sizes, budget_bytes)
        slabs = [] if donor is None else self.slabs_of(donor)
        if slabs and not self._wanted.intersection(slab.name for slab in slabs):
            self._wanted.add(min(slabs, key=lambda slab: len(slab.copies)).name)
            self._ownership.counters["slabs_asked_back"] += 1

    def _check_share(self, owner: Owner, slab_bytes: int) -> None:
        """Raises StoreRefused while others have less than their share, and this would be more."""
        horizon = time.monotonic() - _STARVED_SECONDS
        self._starved = {o: at for o, at in self._starved.items() if at > horizon}
        budget_bytes = self._dram.usage().budget_bytes
        if not may_grow(owner, slab_bytes, self._sizes(), self._starved, budget_bytes):
            raise StoreRefused("other engines have less than their share", reason="dram_share")

    def _sizes(self) -> dict[Owner, int]:
        """Bytes of slabs per engine."""
        sizes: dict[Owner, int] = {}
        for slab in self._dram.slabs.values():
            if not slab.is_agents:
                owner = _owner_of(slab)
                sizes[owner] = sizes.get(owner, 0) + slab.header.file_bytes
        return sizes

    async def agent_slot(self, payload_bytes: int) -> tuple[Slab, int]:
        """A slot for the agent to write, in the adopted slabs, a new one, or an emptied one."""
        owner = Owner(AGENT_OWNER, 0, 0)
        for attempt in ("free", "new", "evicted"):
            if attempt == "new":
                try:
                    await self._make(owner, record_bytes(payload_bytes), _AGENT_SLAB_SLOTS)
                except StoreRefused:
                    continue
            elif attempt == "evicted":
                self._ownership.evict(1, self._dram.agents_slabs())
            taken = self._dram.take_slot(payload_bytes)
            if taken is not None:
                return taken
        raise StoreRefused("no slot of the dram tier is free", reason="dram_budget")

    async def _make(self, owner: Owner, slot_bytes: int, slots: int) -> Slab:
        """Makes a slab within the budget. Raises StoreRefused."""
        header = SlabHeader(
            self._node_id, slot_bytes, slots, owner.engine_id, owner.pid, owner.start_ticks
        )
        self._shed(header.file_bytes)
        path = self._dram.reserve(header)
        loop = asyncio.get_running_loop()
        made = loop.run_in_executor(self._executor, create_slab, path, header)
        try:
            await asyncio.shield(made)
        except asyncio.CancelledError:
            # Whoever wanted it has gone; the thread makes it all the same.
            made.add_done_callback(lambda _: self._dram.discard(path, header))
            raise
        except OSError as error:
            self._dram.unreserve(header)
            logger.error("no slab of %d bytes: %s", header.file_bytes, error)
            raise StoreRefused(f"no shared memory: {error}", reason="dram_failed") from error
        return self._dram.add(path)

    def _shed(self, file_bytes: int) -> None:
        """Deletes slabs of the agent, whose pages are all spare, until there is room."""
        for slab in self._dram.agents_slabs():
            if self._dram.room_for(file_bytes):
                return
            if slab.writing or any(c.holds or c.gone for c in slab.copies.values()):
                continue
            if all(self._ownership.may_evict(copy) for copy in slab.copies.values()):
                self._ownership.evict(len(slab.copies), [slab])
                self._dram.unlink_empty()


def _owns(owner: Owner, slab: Slab) -> bool:
    return owner == _owner_of(slab)


def _owner_of(slab: Slab) -> Owner:
    header = slab.header
    return Owner(header.owner_engine_id, header.owner_pid, header.owner_start_ticks)


def _copy_record(
    read: Callable[[], memoryview], source: PageKey, target: PageKey, slab: Slab, slot: int
) -> None:
    record = read()
    header = verify_record(record, source)
    offset = slab.offset(slot)
    end = HEADER_BYTES + header.payload_bytes
    slab.view[offset + HEADER_BYTES : offset + end] = record[HEADER_BYTES:end]
    written = RecordHeader(target, header.payload_bytes, time.time_ns(), header.checksum)
    commit_slot(slab.view, offset, encode_header(written))
