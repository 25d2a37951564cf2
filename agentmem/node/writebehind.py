"""Write-behind: pages in dram become durable by themselves, grouped by what has queued up."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor

from agentmem.core import PageKey
from agentmem.errors import PageCorrupt, StoreRefused
from agentmem.node.durability import DurabilityWaiters
from agentmem.pages.record import verify_record
from agentmem.store.disk import DiskTier
from agentmem.store.dram import DramCopy, DramTier
from agentmem.store.packwriter import Record

logger = logging.getLogger(__name__)

BATCH_BYTES_MAX = 64 << 20
BATCH_PAGES_MAX = 1024
_BACKOFF_SECONDS_MIN = 0.2
_BACKOFF_SECONDS_MAX = 5.0


class WriteBehind:
    """The queue of pages that are not durable yet, and the loop that empties it.

    The queue is bounded by the slots of the dram tier. `failing` is the reason why the disk tier
    took nothing the last time, None while it works.
    """

    def __init__(
        self, dram: DramTier, disk: DiskTier, waiters: DurabilityWaiters, executor: Executor
    ) -> None:
        self.failing: str | None = None
        self.counters: Counter[str] = Counter()
        self.last_lag_ms = 0
        self._dram = dram
        self._disk = disk
        self._waiters = waiters
        self._executor = executor
        self._urgent: OrderedDict[PageKey, None] = OrderedDict()
        self._normal: OrderedDict[PageKey, None] = OrderedDict()
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

    def oldest_age_ms(self) -> int:
        """Age of the page that waits longest, by its commit in dram; 0 with an empty queue."""
        ages = [
            time.time_ns() - copy.sequence
            for queue in (self._urgent, self._normal)
            if queue and (copy := self._dram.get(next(iter(queue)))) is not None
        ]
        return max(0, max(ages, default=0) // 1_000_000)

    def enqueue(self, copies: Iterable[DramCopy]) -> None:
        """These pages are new in dram."""
        for copy in copies:
            queue = self._urgent if self._waiters.awaited(copy.key) else self._normal
            queue[copy.key] = None
        if self.queued_pages:
            self._idle.clear()
            self._wanted.set()

    def urge(self, keys: Iterable[PageKey]) -> None:
        """Someone waits for these: they go before all others."""
        for key in keys:
            if key in self._normal:
                del self._normal[key]
                self._urgent[key] = None

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
        """Waits until everything queued is durable. False when that took too long."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def batch_ended(self) -> None:
        """Waits for the batch that is being written now, whose pages it holds."""
        await self._between_batches.wait()

    def _next_batch(self) -> list[DramCopy]:
        batch: list[DramCopy] = []
        size_bytes = 0
        for queue in (self._urgent, self._normal):
            while queue and size_bytes < BATCH_BYTES_MAX and len(batch) < BATCH_PAGES_MAX:
                key, _ = queue.popitem(last=False)
                copy = self._dram.get(key)
                if copy is None or self._disk.get(key) is not None:
                    continue
                batch.append(copy)
                size_bytes += copy.payload_bytes
        return batch

    async def _write(self, batch: Sequence[DramCopy]) -> bool:
        """Writes one batch. False when the disk tier refused; the pages then wait again."""
        # The read hold keeps the slot's bytes where they are while the disk tier reads them.
        for copy in batch:
            self._dram.hold(copy)
        self._between_batches.clear()
        try:
            loop = asyncio.get_running_loop()
            corrupt = await loop.run_in_executor(self._executor, _find_corrupt, batch)
            for copy in corrupt:
                self.counters["quarantined_dram_pages"] += 1
                self._dram.remove(copy)
            good = [copy for copy in batch if not copy.gone]
            records = [
                Record(copy.key, copy.record, copy.payload_bytes, copy.sequence) for copy in good
            ]
            if not records:
                return True
            try:
                rejected = {record.key for record in await self._disk.append(records)}
            except StoreRefused as error:
                self._requeue(good, error)
                return False
            self._note_durable(good, rejected)
            return True
        finally:
            for copy in batch:
                self._dram.unhold(copy)
            self._between_batches.set()

    def _note_durable(self, copies: Iterable[DramCopy], rejected: set[PageKey]) -> None:
        self.failing = None
        now = time.time_ns()
        for copy in copies:
            if copy.key in rejected:
                continue
            self.counters["written_pages"] += 1
            self.counters["written_page_bytes"] += copy.payload_bytes
            self.last_lag_ms = max(0, now - copy.sequence) // 1_000_000
            self._waiters.notify(copy.key)

    def _requeue(self, copies: Sequence[DramCopy], error: StoreRefused) -> None:
        if self.failing != error.reason:
            logger.error("write-behind stalls: %s", error)
        self.failing = error.reason
        self.counters[f"stalled_{error.reason}"] += 1
        for copy in reversed(copies):
            if not copy.gone:
                queue = self._urgent if self._waiters.awaited(copy.key) else self._normal
                queue[copy.key] = None
                queue.move_to_end(copy.key, last=False)


def _find_corrupt(copies: Sequence[DramCopy]) -> list[DramCopy]:
    """Copies whose bytes fail their checks: these must not become durable."""
    corrupt = []
    for copy in copies:
        try:
            verify_record(copy.record, copy.key)
        except PageCorrupt as error:
            logger.error("dram page is quarantined: %s", error)
            corrupt.append(copy)
    return corrupt
