"""Write-behind: claimed pages in dram become durable by themselves, grouped by what has queued up.

While one group is written and synced, the next is looked up and checked; see `store.pipeline`.

A page that nothing claims is only cache: it is never written. Which request a page is from cannot
be told from its key, so a claim is all that decides; it may come before the page or after.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

from agentmem.core import PageKey, Tier
from agentmem.errors import StoreRefused
from agentmem.native.datapath import load_batch
from agentmem.native.jobs import LoadJob, Outcome
from agentmem.node.durability import DurabilityWaiters
from agentmem.node.movements import MovementLog
from agentmem.node.sealing import Sealer
from agentmem.node.writequeue import WriteQueue
from agentmem.store.claims import RETENTIONS, Claim
from agentmem.store.disk import DiskTier
from agentmem.store.dram import DramTier
from agentmem.store.losses import Why
from agentmem.store.packwriter import Record
from agentmem.store.policy import write_rank
from agentmem.store.slab import DramCopy

logger = logging.getLogger(__name__)

BATCH_BYTES_MAX = 64 << 20
BATCH_PAGES_MAX = 1024
# One is written while the next is looked up and checked, or committed while that is written.
BATCHES_MAX = 2
_BACKOFF_SECONDS_MIN = 0.2
_BACKOFF_SECONDS_MAX = 5.0
# How long a page waits whose tenant's data key cannot be had.
_WITHHELD_SECONDS = 5.0
_URGENT = -1  # before every rank of `write_rank`


class _Waiting(NamedTuple):
    """A page in the queue, and since when it is to become durable (nanoseconds, epoch)."""

    copy: DramCopy
    since_ns: int


class WriteBehind:
    """The queue of pages that are to become durable, and the loop that empties it.

    It holds pages that are claimed, and those just stored, whose claims are yet to be looked up;
    it is bounded by the slots of the dram tier. `failing` is the reason why the disk tier took
    nothing the last time, None while it works. `movements` is the node's. Without a
    `sealer` all pages are written plain.
    """

    def __init__(
        self,
        dram: DramTier,
        disk: DiskTier,
        waiters: DurabilityWaiters,
        executor: Executor,
        sealer: Sealer | None = None,
    ) -> None:
        self.failing: str | None = None
        self.counters: Counter[str] = Counter()
        self.movements = MovementLog()
        # Told of pages whose bytes were found to be wrong before they could be written.
        self.on_lost: Callable[[Sequence[PageKey], Why], None] = lambda keys, why: None
        self.last_lag_ms = 0
        self._dram = dram
        self._disk = disk
        self._waiters = waiters
        self._executor = executor
        self._queue = WriteQueue()
        self._sealer = sealer
        self._wanted = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._batches: set[asyncio.Task[None]] = set()
        # Pages of these batches that are claimed and check.
        self._writing: set[PageKey] = set()
        self._backoff_seconds = 0.0
        # Claimed pages that cannot be sealed for now: they hold up no others.
        self._withheld: dict[PageKey, _Waiting] = {}

    @property
    def queued_pages(self) -> int:
        """Pages that wait to be written, those being written not included."""
        return len(self._queue)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is being written."""
        return self._idle.is_set()

    def pending(self, key: PageKey) -> bool:
        """Whether the page waits to be written. A copy that is being written is held instead."""
        return key in self._queue or key in self._withheld

    def oldest_age_ms(self) -> int:
        """For how long the first page in the queue has waited; 0 with an empty queue."""
        oldest_ns = self._queue.oldest_ns()
        return 0 if oldest_ns is None else max(0, time.time_ns() - oldest_ns) // 1_000_000

    def enqueue(self, copies: Iterable[DramCopy]) -> None:
        """These pages are new in dram: the claimed ones will be written."""
        for copy in copies:
            self._add(copy, copy.sequence)

    def note_claimed(self, keys: Iterable[PageKey]) -> None:
        """A claim names these: those in dram that are not durable will be written."""
        now = time.time_ns()
        for key in keys:
            copy = self._dram.get(key)
            if copy is None or key in self._disk or key in self._writing:
                continue
            if key in self._queue:
                self._queue.move(key, self._rank(copy))
            else:
                self._add(copy, now)

    def urge(self, keys: Iterable[PageKey]) -> None:
        """Someone waits for these: they go before all others."""
        for key in keys:
            self._queue.move(key, _URGENT)

    async def run(self) -> None:
        """Writes until cancelled; a disk tier that refuses is asked again, ever more rarely.

        Batches that are on their way are finished first.
        """
        try:
            while True:
                await self._wanted.wait()
                await self._wait_for_turn()
                batch = self._next_batch()
                if batch:
                    self._batches.add(asyncio.create_task(self._write(batch)))
                    continue
                self._wanted.clear()
                if not self._batches:
                    self.failing = None  # there is nothing that it fails to write
                    self._idle.set()
        finally:
            await asyncio.gather(*self._batches, return_exceptions=True)

    async def _wait_for_turn(self) -> None:
        """Until another batch may be begun. Raises what ended one, other than a refusal."""
        if len(self._batches) >= BATCHES_MAX:
            await asyncio.wait(self._batches, return_when=asyncio.FIRST_COMPLETED)
        if self._backoff_seconds:
            await asyncio.sleep(self._backoff_seconds)
        ended = {batch for batch in self._batches if batch.done()}
        self._batches -= ended
        for batch in ended:
            batch.result()

    async def drain(self, timeout_seconds: float) -> bool:
        """Waits until what is queued and claimed is durable. False when that took too long."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return not self._withheld

    async def batch_ended(self) -> None:
        """Waits for the batches that are being written now, whose pages they hold."""
        if self._batches:
            await asyncio.wait(set(self._batches))

    def _rank(self, copy: DramCopy) -> int:
        if self._waiters.awaited(copy.key):
            return _URGENT
        return write_rank(copy.owner.retention, RETENTIONS, promised=copy.owner.promised)

    def _add(self, copy: DramCopy, since_ns: int) -> None:
        self._queue.put(copy.key, since_ns, self._rank(copy))
        self._idle.clear()
        self._wanted.set()

    def _next_batch(self) -> list[_Waiting]:
        """The next pages, held; `_write` ends the holds."""
        batch: list[_Waiting] = []
        size_bytes = 0
        while self._queue and size_bytes < BATCH_BYTES_MAX and len(batch) < BATCH_PAGES_MAX:
            key, since_ns = self._queue.pop()
            copy = self._dram.get(key)
            if copy is None or key in self._disk:
                continue
            # Held from here on: the read hold keeps the slot's bytes where they are, and the page
            # is no longer pending, which kept it from eviction.
            self._dram.hold(copy)
            batch.append(_Waiting(copy, since_ns))
            size_bytes += copy.payload_bytes
        return batch

    async def _write(self, batch: Sequence[_Waiting]) -> None:
        """Writes one batch, and ends its holds. Where the disk refuses it, its pages wait again."""
        good: Sequence[_Waiting] = batch
        keys: set[PageKey] = set()
        try:
            claims = await self._disk.claims([copy.key for copy, _ in batch])
            good = self._in_order(batch, claims)
            keys.update(copy.key for copy, _ in good)
            self._writing |= keys
            good = await self._without_corrupt(good)
            records = [_record(copy, claims[copy.key]) for copy, _ in good]
            if self._sealer is not None:
                records, refused = await self._sealer.for_disk(records, claims)
                self._withhold(good, refused)
            written = {record.key for record in records}
            good = [page for page in good if page.copy.key in written]
            if records:
                rejected = {record.key for record in await self._disk.append(records)}
                self._note_durable(good, rejected)
        except StoreRefused as error:
            self._requeue(good, error)
        finally:
            self._writing -= keys
            for page in batch:
                self._dram.unhold(page.copy)
            self._wanted.set()  # the loop is to see that it has ended

    def _in_order(
        self, batch: Sequence[_Waiting], claims: Mapping[PageKey, Sequence[Claim]]
    ) -> list[_Waiting]:
        """Those that something claims, pages of one session next to each other.

        The others stay in dram, as cache. A claim that came while they were looked up has put its
        pages into the queue again.
        """
        claimed = [page for page in batch if page.copy.key in claims]
        self.counters["unclaimed_pages"] += len(batch) - len(claimed)

        def place(page: _Waiting) -> tuple[bytes, int]:
            first = claims[page.copy.key][0]
            return first.claim_id, first.position

        return sorted(claimed, key=place)

    async def _without_corrupt(self, batch: Sequence[_Waiting]) -> list[_Waiting]:
        """Those whose bytes check and that nobody deleted meanwhile."""
        if batch:
            loop = asyncio.get_running_loop()
            copies = [copy for copy, _ in batch]
            for copy in await loop.run_in_executor(self._executor, _find_corrupt, copies):
                self.counters["quarantined_dram_pages"] += 1
                self._dram.remove(copy)
                self.on_lost([copy.key], "quarantined")
        return [page for page in batch if not page.copy.gone]

    def _note_durable(self, pages: Iterable[_Waiting], rejected: set[PageKey]) -> None:
        self.failing = None
        self._backoff_seconds = 0.0
        now = time.time_ns()
        for copy, since_ns in pages:
            if copy.key in rejected:
                continue
            self.counters["written_pages"] += 1
            self.counters["written_page_bytes"] += copy.payload_bytes
            self.last_lag_ms = max(0, now - since_ns) // 1_000_000
            self.movements.record(copy.key, Tier.DRAM, Tier.DISK, copy.payload_bytes)
            self._waiters.notify(copy.key)

    def _withhold(self, pages: Iterable[_Waiting], refused: Mapping[PageKey, StoreRefused]) -> None:
        """Pages that no key seals are tried again after a while."""
        held = [page for page in pages if page.copy.key in refused]
        if not held:
            return
        logger.error("%d pages wait: %s", len(held), next(iter(refused.values())))
        self.counters["stalled_key_unavailable"] += 1
        self._withheld.update((page.copy.key, page) for page in held)
        asyncio.get_running_loop().call_later(_WITHHELD_SECONDS, self._try_withheld)

    def _try_withheld(self) -> None:
        waiting, self._withheld = self._withheld, {}
        for copy, since_ns in waiting.values():
            if not copy.gone:
                self._add(copy, since_ns)

    def _requeue(self, pages: Sequence[_Waiting], error: StoreRefused) -> None:
        if self.failing != error.reason:
            logger.error("write-behind stalls: %s", error)
        self.failing = error.reason
        doubled = max(2 * self._backoff_seconds, _BACKOFF_SECONDS_MIN)
        self._backoff_seconds = min(doubled, _BACKOFF_SECONDS_MAX)
        self.counters[f"stalled_{error.reason}"] += 1
        for copy, since_ns in reversed(pages):
            if not copy.gone:
                self._queue.put(copy.key, since_ns, self._rank(copy), first=True)


def _record(copy: DramCopy, claims: Sequence[Claim]) -> Record:
    return Record(copy.key, copy.record, copy.payload_bytes, copy.sequence, claims[0].position)


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
