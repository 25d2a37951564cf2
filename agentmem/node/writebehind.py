"""Write-behind: claimed pages in dram become durable by themselves, grouped by what has queued up.

A page that nothing claims is only cache: it is never written. Which request a page is from cannot
be told from its key, so a claim is all that decides; it may come before the page or after.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

from agentmem.core import PageKey, Tier
from agentmem.errors import StoreRefused
from agentmem.native.datapath import load_batch
from agentmem.native.jobs import LoadJob, Outcome
from agentmem.node.durability import DurabilityWaiters
from agentmem.node.movements import MovementLog
from agentmem.store.disk import DiskTier
from agentmem.store.dram import DramCopy, DramTier
from agentmem.store.packwriter import Record

logger = logging.getLogger(__name__)

BATCH_BYTES_MAX = 64 << 20
BATCH_PAGES_MAX = 1024
_BACKOFF_SECONDS_MIN = 0.2
_BACKOFF_SECONDS_MAX = 5.0


class _Waiting(NamedTuple):
    """A page in the queue, and since when it is to become durable (nanoseconds, epoch)."""

    copy: DramCopy
    since_ns: int


class WriteBehind:
    """The queue of pages that are to become durable, and the loop that empties it.

    It holds pages that are claimed, and those just stored, whose claims are yet to be looked up;
    it is bounded by the slots of the dram tier. `failing` is the reason why the disk tier took
    nothing the last time, None while it works. `movements` is the node's.
    """

    def __init__(
        self, dram: DramTier, disk: DiskTier, waiters: DurabilityWaiters, executor: Executor
    ) -> None:
        self.failing: str | None = None
        self.counters: Counter[str] = Counter()
        self.movements = MovementLog()
        self.last_lag_ms = 0
        self._dram = dram
        self._disk = disk
        self._waiters = waiters
        self._executor = executor
        # Since when, as in _Waiting.
        self._urgent: OrderedDict[PageKey, int] = OrderedDict()
        self._normal: OrderedDict[PageKey, int] = OrderedDict()
        self._wanted = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._between_batches = asyncio.Event()
        self._between_batches.set()

    @property
    def queued_pages(self) -> int:
        """Pages that wait to be written, those being written not included."""
        return len(self._urgent) + len(self._normal)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is being written."""
        return self._idle.is_set()

    def pending(self, key: PageKey) -> bool:
        """Whether the page waits to be written. A copy that is being written is held instead."""
        return key in self._urgent or key in self._normal

    def oldest_age_ms(self) -> int:
        """For how long the first page in the queue has waited; 0 with an empty queue."""
        firsts = [next(iter(queue.values())) for queue in (self._urgent, self._normal) if queue]
        return max(0, time.time_ns() - min(firsts)) // 1_000_000 if firsts else 0

    def enqueue(self, copies: Iterable[DramCopy]) -> None:
        """These pages are new in dram: the claimed ones will be written."""
        for copy in copies:
            self._add(copy.key, copy.sequence)

    def note_claimed(self, keys: Iterable[PageKey]) -> None:
        """A claim names these: those in dram that are not durable will be written."""
        now = time.time_ns()
        for key in keys:
            waits = self._dram.get(key) is not None and self._disk.get(key) is None
            if waits and not self.pending(key):
                self._add(key, now)

    def urge(self, keys: Iterable[PageKey]) -> None:
        """Someone waits for these: they go before all others."""
        for key in keys:
            if key in self._normal:
                self._urgent[key] = self._normal.pop(key)

    async def run(self) -> None:
        """Writes until cancelled; a disk tier that refuses is asked again, ever more rarely."""
        backoff = _BACKOFF_SECONDS_MIN
        while True:
            await self._wanted.wait()
            batch = self._next_batch()
            if not batch:
                self._wanted.clear()
                self._idle.set()
                continue
            if await self._write(batch):
                backoff = _BACKOFF_SECONDS_MIN
            else:
                await asyncio.sleep(backoff)
                backoff = min(2 * backoff, _BACKOFF_SECONDS_MAX)

    async def drain(self, timeout_seconds: float) -> bool:
        """Waits until what is queued and claimed is durable. False when that took too long."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def batch_ended(self) -> None:
        """Waits for the batch that is being written now, whose pages it holds."""
        await self._between_batches.wait()

    def _add(self, key: PageKey, since_ns: int) -> None:
        queue = self._urgent if self._waiters.awaited(key) else self._normal
        queue[key] = since_ns
        self._idle.clear()
        self._wanted.set()

    def _next_batch(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        size_bytes = 0
        for queue in (self._urgent, self._normal):
            while queue and size_bytes < BATCH_BYTES_MAX and len(batch) < BATCH_PAGES_MAX:
                key, since_ns = queue.popitem(last=False)
                copy = self._dram.get(key)
                if copy is None or self._disk.get(key) is not None:
                    continue
                batch.append(_Waiting(copy, since_ns))
                size_bytes += copy.payload_bytes
        return batch

    async def _write(self, batch: Sequence[_Waiting]) -> bool:
        """Writes one batch. False when the disk tier refused; the pages then wait again."""
        # The read hold keeps the slot's bytes where they are while the disk tier reads them.
        for page in batch:
            self._dram.hold(page.copy)
        self._between_batches.clear()
        good: Sequence[_Waiting] = batch
        try:
            good = await self._without_corrupt(await self._claimed(batch))
            records = [
                Record(copy.key, copy.record, copy.payload_bytes, copy.sequence) for copy, _ in good
            ]
            if records:
                rejected = {record.key for record in await self._disk.append(records)}
                self._note_durable(good, rejected)
            return True
        except StoreRefused as error:
            self._requeue(good, error)
            return False
        finally:
            for page in batch:
                self._dram.unhold(page.copy)
            self._between_batches.set()

    async def _claimed(self, batch: Sequence[_Waiting]) -> list[_Waiting]:
        """Those that something claims; the others stay in dram, as cache. Raises StoreRefused.

        A claim that comes while they are looked up puts its pages into the queue again.
        """
        claimed = await self._disk.claimed([copy.key for copy, _ in batch])
        self.counters["unclaimed_pages"] += len(batch) - len(claimed)
        return [page for page in batch if page.copy.key in claimed]

    async def _without_corrupt(self, batch: Sequence[_Waiting]) -> list[_Waiting]:
        """Those whose bytes check and that nobody deleted meanwhile."""
        if batch:
            loop = asyncio.get_running_loop()
            copies = [copy for copy, _ in batch]
            for copy in await loop.run_in_executor(self._executor, _find_corrupt, copies):
                self.counters["quarantined_dram_pages"] += 1
                self._dram.remove(copy)
        return [page for page in batch if not page.copy.gone]

    def _note_durable(self, pages: Iterable[_Waiting], rejected: set[PageKey]) -> None:
        self.failing = None
        now = time.time_ns()
        for copy, since_ns in pages:
            if copy.key in rejected:
                continue
            self.counters["written_pages"] += 1
            self.counters["written_page_bytes"] += copy.payload_bytes
            self.last_lag_ms = max(0, now - since_ns) // 1_000_000
            self.movements.record(copy.key, Tier.DRAM, Tier.DISK, copy.payload_bytes)
            self._waiters.notify(copy.key)

    def _requeue(self, pages: Sequence[_Waiting], error: StoreRefused) -> None:
        if self.failing != error.reason:
            logger.error("write-behind stalls: %s", error)
        self.failing = error.reason
        self.counters[f"stalled_{error.reason}"] += 1
        for copy, since_ns in reversed(pages):
            if not copy.gone:
                queue = self._urgent if self._waiters.awaited(copy.key) else self._normal
                queue[copy.key] = since_ns
                queue.move_to_end(copy.key, last=False)


def _find_corrupt(copies: Sequence[DramCopy]) -> list[DramCopy]:
    """Copies whose bytes fail their checks: these must not become durable."""
    jobs = [
        LoadJob(copy.key, copy.payload_bytes, record=copy.address, capacity=len(copy.record))
        for copy in copies
    ]
    corrupt = []
    for copy, outcome in zip(copies, load_batch(jobs), strict=True):
        if outcome is not Outcome.MOVED:
            logger.error("dram page %s is quarantined: its bytes do not check", copy.key.hex())
            corrupt.append(copy)
    return corrupt
