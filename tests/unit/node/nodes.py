"""A node agent without its socket: real tiers below one directory, opened and closed again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from agentmem.core import PageKey
from agentmem.node.durability import DurabilityWaiters
from agentmem.node.ownership import Ownership
from agentmem.node.promises import Promises
from agentmem.node.retention import Retention
from agentmem.node.writebehind import WriteBehind
from agentmem.pages.record import HEADER_BYTES, record_bytes
from agentmem.pages.slab import AGENT_OWNER, SlabHeader, commit_slot
from agentmem.store.disk import DiskTier
from agentmem.store.dram import DramTier
from agentmem.store.pack import PACK_HEADER_BYTES
from agentmem.store.slab import Slab, create_slab
from tests.unit.store.records import PAYLOAD_BYTES, key_of, payload_of, record_of

RECORD = record_bytes(PAYLOAD_BYTES)
NODE_ID = "0" * 16


class Clock:
    """Time that a test sets, seconds since the epoch."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


def keys_of(numbers: Sequence[int]) -> list[PageKey]:
    return [key_of(number) for number in numbers]


class Node:
    """See the module's docstring."""

    def __init__(
        self, directory: Path, *, slots: int = 16, disk_pages: int = 1000, quota_pages: int = 0
    ) -> None:
        self.directory = directory
        self.clock = Clock()
        self._slots = slots
        self._disk_pages = disk_pages
        self._quota_pages = quota_pages

    async def open(self, *, write: bool = True) -> None:
        """Opens the tiers; `write`: with write-behind running."""
        self._executor = ThreadPoolExecutor(2)
        self.dram = DramTier(self.directory / "slabs", NODE_ID, 1 << 24)
        self.dram.open()
        self.disk = DiskTier(
            self.directory / "packs",
            NODE_ID,
            self._disk_pages * RECORD,
            pack_bytes=PACK_HEADER_BYTES + 8 * RECORD,
            clock=self.clock,
        )
        await self.disk.open()
        self.waiters = DurabilityWaiters(lambda key: key in self.disk)
        self.write_behind = WriteBehind(self.dram, self.disk, self.waiters, self._executor)
        self.ownership = Ownership(self.dram, self.disk, self.write_behind, self.waiters)
        self.promises = Promises(
            self.dram,
            self.disk,
            self.ownership,
            write_behind=self.write_behind,
            tenant_quota_bytes=self._quota_pages * RECORD,
        )
        await self.promises.open()
        self.retention = Retention(
            ownership=self.ownership,
            dram=self.dram,
            disk=self.disk,
            write_behind=self.write_behind,
            promises=self.promises,
            executor=self._executor,
        )
        await self.retention.open()
        self._tasks = [asyncio.create_task(self.write_behind.run())] if write else []
        self._tasks.append(asyncio.create_task(self.promises.run()))
        if not self.dram.slabs:
            header = SlabHeader(NODE_ID, RECORD, self._slots, AGENT_OWNER, 0, 0)
            path = self.dram.reserve(header)
            create_slab(path, header)
            self.dram.add(path)

    async def close(self) -> None:
        """Leaves everything as a stop leaves it: what is queued may not be written."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.disk.close()
        self._executor.shutdown()

    @property
    def slab(self) -> Slab:
        return next(iter(self.dram.slabs.values()))

    def store(self, *numbers: int) -> list[int]:
        """Stores pages as an engine does, as far as slots are free. Returns which it stored."""
        stored = []
        for number in numbers:
            taken = self.dram.take_slot(PAYLOAD_BYTES)
            if taken is None:
                break
            slab, slot = taken
            record = record_of(number, time.time_ns()).view
            offset = slab.offset(slot)
            slab.view[offset + HEADER_BYTES : offset + len(record)] = record[HEADER_BYTES:]
            commit_slot(slab.view, offset, bytes(record[:HEADER_BYTES]))
            self.dram.end_writing(slab, slot)
            self.ownership.stored(slab, [slot], [key_of(number)], b"")
            stored.append(number)
        return stored

    async def durable(self, *numbers: int) -> None:
        """Waits until pages are durable."""
        assert await self.ownership.wait_durable(keys_of(numbers), 10) == []

    def held(self, numbers: Sequence[int]) -> list[int]:
        """Those of the pages that some tier has."""
        return [n for n in numbers if self.ownership.best_copy(key_of(n)) is not None]

    async def read(self, number: int) -> bytes | None:
        """The page's payload as a reader sees it."""
        hold = self.ownership.hold_prefix([key_of(number)])
        try:
            if not hold.copies:
                return None
            copy = hold.copies[0]
            reader = self.ownership.reader(copy)
            record = await asyncio.get_running_loop().run_in_executor(self._executor, reader)
            await asyncio.sleep(0)
            return bytes(record[HEADER_BYTES : HEADER_BYTES + PAYLOAD_BYTES])
        finally:
            self.ownership.holds.end(hold.hold_id)

    def found_in_files(self, numbers: Sequence[int]) -> list[int]:
        """Those of the pages whose bytes lie anywhere in slabs, packs or the index's files."""
        files = [path for path in self.directory.rglob("*") if path.is_file()]
        content = b"\n".join(path.read_bytes() for path in files)
        return [n for n in numbers if payload_of(n)[100:132] in content]
