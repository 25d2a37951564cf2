"""Movement of pages between tiers: up before they are wanted, down into the object store.

Each page moves verified: what arrives in dram was checked on its way, what goes to the object store
was checked before it was sealed. A move that fails leaves every page where it was.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from typing import NamedTuple

from agentmem.core import PageKey, Tier
from agentmem.errors import PageCorrupt, StoreRefused
from agentmem.native.datapath import load_batch, open_direct
from agentmem.native.jobs import LoadJob, Outcome, PageBuffers, address_of
from agentmem.node.holds import Copy, Hold
from agentmem.node.ownership import Ownership
from agentmem.node.sealing import Sealer
from agentmem.node.slabs import Slabs
from agentmem.pages.record import HEADER_BYTES, decode_header, record_bytes
from agentmem.store.disk import DiskTier
from agentmem.store.dram import DramTier
from agentmem.store.object import ObjectTier
from agentmem.store.objectcopies import ObjectCopy
from agentmem.store.slab import Slab

logger = logging.getLogger(__name__)

_BATCH_BYTES = 32 << 20
_DISK_PAGES = 16
_FETCH_SECONDS_MAX = 600.0


class _Arrived(NamedTuple):
    """A record that is in this process's memory, or in an open file where `fd` is not -1.

    `offset` is that in the file, or in the object of number `pack`.
    """

    key: PageKey
    payload_bytes: int
    key_id: bytes
    source: Tier
    view: memoryview | None
    fd: int = -1
    offset: int = 0
    pack: int = -1


class Tiering:
    """Moves pages between dram, disk and, where there is one, the object tier."""

    def __init__(
        self,
        *,
        dram: DramTier,
        disk: DiskTier,
        objects: ObjectTier | None,
        sealer: Sealer,
        ownership: Ownership,
        slabs: Slabs,
        executor: Executor,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._dram = dram
        self._disk = disk
        self._objects = objects
        self._sealer = sealer
        self._ownership = ownership
        self._slabs = slabs
        self._executor = executor
        # Pages on their way into dram, each with what its arrival ends.
        self._coming: dict[PageKey, asyncio.Future[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Ends what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def begin(self, keys: Sequence[PageKey], tier: Tier = Tier.DISK) -> None:
        """Starts to bring these pages to `tier` or above, first ones first; returns at once."""
        wanted = [key for key in keys if self._is_below(key, tier) and key not in self._coming]
        if not wanted:
            return
        loop = asyncio.get_running_loop()
        for key in wanted:
            self._coming[key] = loop.create_future()
        task = asyncio.create_task(self._bring(wanted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def takes_time(self, keys: Sequence[PageKey]) -> bool:
        """Whether engines cannot read all of these that are held without a gap yet."""
        for key in keys:
            if key in self._disk:
                if not self._sealer.opens(self._disk.get(key)):
                    return True
            elif key not in self._dram:
                return self._objects is not None and key in self._objects
        return False

    async def make_readable(self, keys: Sequence[PageKey], timeout_seconds: float) -> None:
        """Gets the keys of sealed pages, and pages that only the object tier has, in time."""
        for key_id in {c.key_id for key in keys if (c := self._disk.get(key)) and c.key_id}:
            await self._sealer.secret(key_id)
        await self.prefetch(keys, Tier.DISK, timeout_seconds)

    async def prefetch(self, keys: Sequence[PageKey], tier: Tier, timeout_seconds: float) -> int:
        """Brings pages to `tier` (dram, or disk: any tier that engines read) in time.

        Returns how many of them, counted from the first, are there.
        """
        objects = self._objects
        if objects is not None and self._ownership.find(keys) < len(keys):
            await objects.refresh_soon()  # another node may have put them there
        self.begin(keys, tier)
        coming = [self._coming[key] for key in keys if key in self._coming]
        if coming and timeout_seconds > 0:
            await asyncio.wait(coming, timeout=timeout_seconds)
        for count, key in enumerate(keys):
            if self._is_missing(key, tier):
                return count
        return len(keys)

    async def demote(self, keys: Sequence[PageKey], *, release: bool) -> list[int]:
        """Copies pages into the object tier, neighbours next to each other.

        `release`: their dram and disk copies go then. Returns the indexes of pages that are not in
        the object tier in the end. Raises StoreRefused when it takes nothing.
        """
        objects = self._objects
        if objects is None:
            raise StoreRefused("this node has no object tier (object_url)", reason="no_object_tier")
        batch: list[PageKey] = []
        size_bytes = 0
        for key in keys:
            # What lies in another node's objects goes into this one's, too: that node may drop it.
            copy = None if objects.is_own(key) else self._ownership.best_copy(key)
            if copy is None:
                continue
            batch.append(key)
            size_bytes += record_bytes(copy.payload_bytes)
            if size_bytes >= _BATCH_BYTES:
                await self._put(objects, batch)
                batch, size_bytes = [], 0
        await self._put(objects, batch)
        if release:
            await self._release([key for key in keys if key in objects])
        return [index for index, key in enumerate(keys) if key not in objects]

    def _is_below(self, key: PageKey, tier: Tier) -> bool:
        """Whether the page is in a lower tier than wanted, and in any."""
        if key in self._disk:
            return tier is Tier.DRAM and self._dram.get(key) is None
        in_objects = self._objects is not None and key in self._objects
        return in_objects and self._dram.get(key) is None

    def _is_missing(self, key: PageKey, tier: Tier) -> bool:
        return self._dram.get(key) is None and (tier is Tier.DRAM or key not in self._disk)

    async def _bring(self, keys: Sequence[PageKey]) -> None:
        try:
            await self._from_disk([key for key in keys if key in self._disk])
            await self._from_objects([key for key in keys if key not in self._disk])
        except StoreRefused as error:
            self.counters[f"promotions_refused_{error.reason}"] += 1
            logger.warning("pages are not promoted: %s", error)
        finally:
            for key in keys:
                self._arrived(key)

    def _arrived(self, key: PageKey) -> None:
        future = self._coming.pop(key, None)
        if future is not None and not future.done():
            future.set_result(None)

    async def _from_objects(self, keys: Sequence[PageKey]) -> None:
        objects = self._objects
        if objects is None:
            return
        copies = [copy for key in keys if (copy := objects.get(key)) is not None]
        batch: list[_Arrived] = []
        size_bytes = came = 0
        async for copy, view in objects.fetch(copies, _FETCH_SECONDS_MAX):
            came += 1
            arrived = await self._opened(objects, copy, view)
            if arrived is None:
                continue
            batch.append(arrived)
            size_bytes += view.nbytes
            if size_bytes >= _BATCH_BYTES:
                await self._place(batch)
                batch, size_bytes = [], 0
        await self._place(batch)
        if came < len(copies) and objects.failing is None:
            await objects.recheck(copies[came])

    async def _opened(
        self, objects: ObjectTier, copy: ObjectCopy, view: memoryview
    ) -> _Arrived | None:
        """Reads the record's header; a bad one is quarantined."""
        try:
            header = decode_header(view)
        except PageCorrupt as error:
            await self._quarantine(objects, copy.key, (copy.pack, copy.offset), str(error))
            return None
        key_id = header.seal.key_id if header.seal is not None else b""
        page = _Arrived(copy.key, copy.payload_bytes, key_id, Tier.OBJECT, view)
        return page._replace(pack=copy.pack, offset=copy.offset)

    async def _from_disk(self, keys: Sequence[PageKey]) -> None:
        for start in range(0, len(keys), _DISK_PAGES):
            copies: list[Copy] = [
                copy
                for key in keys[start : start + _DISK_PAGES]
                if (copy := self._disk.get(key)) is not None
            ]
            hold = self._ownership.holds.take(copies)
            try:
                with ExitStack() as opened:
                    await self._place(self._on_disk(hold, opened))
            except OSError as error:
                failed = f"the disk cannot be read: {error}"
                raise StoreRefused(failed, reason="disk_failed") from error
            finally:
                self._ownership.holds.end(hold.hold_id)

    def _on_disk(self, hold: Hold, opened: ExitStack) -> list[_Arrived]:
        """The held pages in their packs, which stay open as long as `opened`. Raises OSError."""
        fds: dict[str, int] = {}
        batch = []
        for copy, place in zip(hold.copies, self._ownership.locations(hold), strict=True):
            if place.path not in fds:
                fds[place.path] = fd = open_direct(place.path)
                opened.callback(os.close, fd)
            page = _Arrived(copy.key, copy.payload_bytes, place.key_id, Tier.DISK, None)
            batch.append(page._replace(fd=fds[place.path], offset=place.offset))
        return batch

    async def _place(self, batch: Sequence[_Arrived]) -> None:
        """Moves records into slots of the agent's. Raises StoreRefused without a slot."""
        slots: list[tuple[Slab, int]] = []
        jobs: list[LoadJob] = []
        try:
            for page in batch:
                secret = await self._sealer.secret(page.key_id)
                slab, slot = await self._slabs.agent_slot(page.payload_bytes)
                slots.append((slab, slot))
                jobs.append(_job_of(page, slab.address + slab.offset(slot), secret))
            if not jobs:
                return
            buffers = PageBuffers.of_pointers(
                [job.slot + HEADER_BYTES for job in jobs], [job.payload_bytes for job in jobs], 1
            )
            loop = asyncio.get_running_loop()
            outcomes = await loop.run_in_executor(self._executor, load_batch, jobs, buffers)
        finally:
            for slab, slot in slots:
                self._dram.end_writing(slab, slot)
        for page, place, outcome in zip(batch, slots, outcomes, strict=True):
            await self._note(page, place, outcome)

    async def _note(self, page: _Arrived, place: tuple[Slab, int], outcome: Outcome) -> None:
        slab, slot = place
        if outcome is Outcome.MOVED:
            held = self._dram.get(page.key) is not None
            self._dram.accept(slab, slot, page.key, held=held)
            if not held and (copy := self._dram.get(page.key)) is not None:
                self._ownership.take_in([copy])
            self.counters[f"promoted_{page.source}_pages"] += 1
            self._ownership.note_brought(page.key, page.source)
            self._ownership.movements.record(page.key, page.source, Tier.DRAM, page.payload_bytes)
        elif outcome is Outcome.CORRUPT and page.source is Tier.OBJECT:
            assert self._objects is not None
            why = "its bytes do not check"
            await self._quarantine(self._objects, page.key, (page.pack, page.offset), why)
        else:
            self.counters["promotions_failed"] += 1
            logger.warning("page %s is not promoted: %s", page.key.hex(), outcome)
        self._arrived(page.key)

    async def _quarantine(
        self, objects: ObjectTier, key: PageKey, place: tuple[int, int], why: str
    ) -> None:
        self.counters["corrupt_object_pages"] += 1
        copy = objects.get(key)
        if copy is None or (copy.pack, copy.offset) != place:
            return  # it is not there any more, or a good copy is
        logger.error("object page %s is quarantined: %s", key.hex(), why)
        self.counters["quarantined_object_pages"] += len(await objects.quarantine([key]))
        self._ownership.on_lost([key], "quarantined")

    async def _put(self, objects: ObjectTier, keys: Sequence[PageKey]) -> None:
        """Seals and uploads one batch."""
        hold = self._ownership.holds.take(
            [copy for key in keys if (copy := self._ownership.best_copy(key)) is not None]
        )
        try:
            records = await self._sealer.sealed(hold.copies, self._ownership.reader)
            # From here on the object tier itself hears of deletions.
            gone = {copy.key for copy in hold.copies if copy.gone}
            records = [record for record in records if record.key not in gone]
            if records:
                await objects.put(records)
            for record in records:
                source = Tier.DRAM if self._dram.get(record.key) is not None else Tier.DISK
                self._ownership.movements.record(
                    record.key, source, Tier.OBJECT, record.payload_bytes
                )
            self.counters["demoted_object_pages"] += len(records)
            self._ownership.note_durable([record.key for record in records])
        finally:
            self._ownership.holds.end(hold.hold_id)

    async def _release(self, keys: Sequence[PageKey]) -> None:
        """Lets go of dram and disk copies of pages that the object tier has."""
        for key in keys:
            copy = self._dram.get(key)
            if copy is not None:
                self._dram.remove(copy)  # one that is being read goes with the last hold
            await asyncio.sleep(0)  # zeroing takes time: let other connections have a turn
        await self._disk.remove(keys)


def _job_of(page: _Arrived, slot: int, secret: bytes | None) -> LoadJob:
    job = LoadJob(page.key, page.payload_bytes, slot=slot, secret=secret)
    if page.view is None:
        return job._replace(fd=page.fd, offset=page.offset)
    return job._replace(record=address_of(page.view), capacity=page.view.nbytes)
