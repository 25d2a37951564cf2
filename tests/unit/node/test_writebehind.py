"""Write-behind, retention and ownership on real tiers, step by step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import lmdb
import pytest

from agentmem.core import ClaimTerms, PageKey
from agentmem.errors import StoreRefused
from agentmem.node import writebehind
from agentmem.node.durability import DurabilityWaiters
from agentmem.node.ownership import Ownership
from agentmem.node.promises import Promises
from agentmem.node.retention import Retention
from agentmem.node.writebehind import WriteBehind
from agentmem.pages.record import HEADER_BYTES, record_bytes
from agentmem.pages.slab import SlabHeader, commit_slot
from agentmem.store.claims import Claim
from agentmem.store.disk import DiskTier
from agentmem.store.dram import DramTier
from agentmem.store.packwriter import Record
from agentmem.store.slab import Slab, create_slab
from tests.unit.store.records import PAYLOAD_BYTES, bytes_of, key_of, payload_of, record_of

SLOTS = 8


@dataclass
class Parts:
    """The agent without its socket. `appended`: keys of each batch that went to disk."""

    directory: Path
    dram: DramTier
    disk: DiskTier
    waiters: DurabilityWaiters
    write_behind: WriteBehind
    ownership: Ownership
    retention: Retention
    slab: Slab
    appended: list[list[PageKey]] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    refusals: int = 0

    async def claim(self, *numbers: int, seconds: float = 60.0) -> None:
        """A session's claim on pages, there already or not."""
        keys = [key_of(number) for number in numbers]
        await self.retention.claim("session", keys, time.time() + seconds)

    async def write_claimed(self, *numbers: int) -> None:
        """Stores pages that a session claimed before."""
        await self.claim(*numbers)
        self.write(*numbers)

    def write(self, *numbers: int, sequence: int | None = None) -> None:
        """Stores pages in the slots of their numbers, and announces them."""
        for number in numbers:
            record = record_of(number, sequence or time.time_ns()).view
            offset = self.slab.offset(number)
            self.slab.view[offset + HEADER_BYTES : offset + len(record)] = record[HEADER_BYTES:]
            commit_slot(self.slab.view, offset, bytes(record[:HEADER_BYTES]))
        keys = [key_of(number) for number in numbers]
        self.ownership.stored(self.slab, numbers, keys, b"")

    async def append(self, records: Sequence[Record]) -> list[Record]:
        """The disk tier's, behind a gate."""
        self.appended.append([record.key for record in records])
        await self.gate.wait()
        if self.refusals:
            self.refusals -= 1
            raise StoreRefused("full", reason="disk_full")
        return await DiskTier.append(self.disk, records)


@pytest.fixture
async def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Parts]:
    executor = ThreadPoolExecutor(2)
    dram = DramTier(tmp_path / "slabs", "0" * 16, 1 << 30)
    dram.open()
    header = SlabHeader("0" * 16, record_bytes(PAYLOAD_BYTES), SLOTS, "engine", 1, 0)
    path = dram.reserve(header)
    create_slab(path, header)
    disk = DiskTier(tmp_path / "packs", "0" * 16, 1 << 30)
    await disk.open()
    waiters = DurabilityWaiters(lambda key: disk.get(key) is not None)
    write_behind = WriteBehind(dram, disk, waiters, executor)
    ownership = Ownership(dram, disk, write_behind, waiters)
    retention = Retention(
        ownership=ownership,
        dram=dram,
        disk=disk,
        write_behind=write_behind,
        promises=Promises(dram, disk, ownership),
        executor=executor,
    )
    parts = Parts(tmp_path, dram, disk, waiters, write_behind, ownership, retention, dram.add(path))
    monkeypatch.setattr(disk, "append", parts.append)
    monkeypatch.setattr(writebehind, "BATCH_PAGES_MAX", 2)
    monkeypatch.setattr(writebehind, "BATCHES_MAX", 1)
    task = asyncio.create_task(write_behind.run())
    yield parts
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await disk.close()
    executor.shutdown()


async def until(what: object, seconds: float = 5.0) -> None:
    assert callable(what)
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def test_pages_that_someone_waits_for_go_first(parts: Parts) -> None:
    await parts.claim(5, 6)
    await parts.write_claimed(0, 1, 2, 3, 4)
    await until(lambda: parts.appended)
    waiting = asyncio.create_task(
        parts.ownership.wait_durable([key_of(4), key_of(5), key_of(0)], 5)
    )
    await asyncio.sleep(0)
    parts.write(6)
    parts.write(5)  # was waited for before it came
    parts.gate.set()
    assert await waiting == []
    await until(lambda: parts.write_behind.idle)
    assert parts.appended == [
        [key_of(0), key_of(1)],
        [key_of(5), key_of(4)],  # of the claim's first and fifth place
        [key_of(2), key_of(3)],
        [key_of(6)],
    ]


async def test_the_next_batch_is_begun_while_one_is_written(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writebehind, "BATCHES_MAX", 2)
    await parts.write_claimed(0, 1, 2, 3, 4)
    await until(lambda: len(parts.appended) == 2)
    await parts.claim(0, 1, 2)  # renewed: what is being written is not queued again
    assert parts.write_behind.queued_pages == 1
    await asyncio.sleep(0.02)
    assert len(parts.appended) == 2
    parts.gate.set()
    assert await parts.write_behind.drain(5)
    assert sorted(map(len, parts.appended)) == [1, 2, 2]
    assert parts.ownership.find([key_of(n) for n in range(5)]) == 5


async def test_pages_of_a_session_lie_side_by_side_in_its_order(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writebehind, "BATCH_PAGES_MAX", 8)
    await parts.retention.claim("b", [key_of(n) for n in (1, 0, 4)], time.time() + 60)
    await parts.retention.claim("a", [key_of(n) for n in (5, 2)], time.time() + 60)
    parts.write(0, 1, 2, 4, 5)
    parts.gate.set()
    assert await parts.write_behind.drain(5)
    assert parts.appended == [[key_of(n) for n in (5, 2, 1, 0, 4)]]
    copy = parts.disk.get(key_of(4))
    assert copy is not None
    assert copy.position == 2


async def test_a_deletion_waits_for_the_batch_that_holds_its_pages(parts: Parts) -> None:
    await parts.write_claimed(0, 1)
    await until(lambda: parts.appended)
    deleting = asyncio.create_task(parts.retention.unclaim("session", [key_of(0)]))
    await asyncio.sleep(0.05)
    assert not deleting.done()
    assert parts.ownership.find([key_of(0)]) == 0  # invisible at once
    parts.gate.set()
    assert await deleting == (1, PAYLOAD_BYTES)
    found = bytes_of(parts.directory / "packs") + parts.slab.path.read_bytes()
    assert payload_of(0)[:64] not in found
    assert payload_of(1)[:64] in found
    assert await parts.ownership.wait_durable([key_of(0), key_of(1)], 5) == [0]


async def test_a_refusing_disk_is_asked_again_and_meanwhile_pages_may_be_lost(
    parts: Parts,
) -> None:
    parts.refusals = 1
    parts.gate.set()
    await parts.write_claimed(0, 1)
    await until(lambda: parts.write_behind.failing == "disk_full")
    assert not await parts.write_behind.drain(0.01)
    assert parts.ownership.evict(1, [parts.slab]) == 1
    assert parts.ownership.counters["evicted_undurable_pages"] == 1
    assert await parts.write_behind.drain(5)
    assert parts.write_behind.failing is None
    assert parts.write_behind.counters["stalled_disk_full"] == 1
    assert parts.ownership.missing([key_of(0), key_of(1)]) == b"\x01\x00"


async def test_while_the_disk_works_no_claimed_page_is_lost(parts: Parts) -> None:
    await parts.write_claimed(0, 1, 2)
    await until(lambda: parts.appended)
    assert parts.ownership.evict(3, [parts.slab]) == 0
    parts.gate.set()
    assert await parts.write_behind.drain(5)
    assert parts.ownership.evict(2, [parts.slab]) == 2
    assert parts.ownership.find([key_of(n) for n in range(3)]) == 3


async def test_other_bytes_of_a_durable_page_are_no_copy_of_it(parts: Parts) -> None:
    """A slab left by a crash holds a page that another engine had made durable before."""
    parts.gate.set()
    await parts.write_claimed(0)
    assert await parts.write_behind.drain(5)
    parts.ownership.evict(1, [parts.slab])
    again = record_of(0, time.time_ns()).view
    commit_slot(parts.slab.view, parts.slab.offset(3), bytes(again[:HEADER_BYTES]))
    parts.ownership.take_in(parts.dram.scan(parts.slab))
    assert parts.dram.get(key_of(0)) is None
    assert parts.ownership.counters["stored_duplicate_pages"] == 1
    assert parts.ownership.find([key_of(0)]) == 1


async def test_a_page_that_nothing_claims_is_only_cache(parts: Parts) -> None:
    parts.gate.set()
    await parts.claim(2, seconds=-1)  # has run out
    parts.write(0, 1, 2)
    assert await parts.write_behind.drain(5)
    assert parts.appended == []
    assert parts.write_behind.counters["unclaimed_pages"] == 3
    assert parts.ownership.find([key_of(n) for n in range(3)]) == 3
    parts.dram.hold(parts.dram.get(key_of(0)))  # type: ignore[arg-type]
    assert parts.ownership.evict(3, [parts.slab]) == 2
    assert parts.ownership.counters["evicted_unclaimed_pages"] == 2
    assert parts.ownership.counters["evicted_undurable_pages"] == 0


async def test_a_page_becomes_durable_when_a_claim_names_it(parts: Parts) -> None:
    parts.gate.set()
    parts.write(0, 1, 2)
    assert await parts.write_behind.drain(5)
    waiting = asyncio.create_task(parts.ownership.wait_durable([key_of(1)], 5))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    began = time.monotonic()
    await parts.claim(1, 5)
    assert await waiting == []
    assert parts.write_behind.last_lag_ms <= (time.monotonic() - began) * 1000 + 1
    parts.write(5)
    assert await parts.write_behind.drain(5)
    assert parts.appended == [[key_of(1)], [key_of(5)]]
    await parts.claim(1, 5)  # renewed: nothing is written twice
    assert await parts.write_behind.drain(5)
    assert parts.appended == [[key_of(1)], [key_of(5)]]


async def test_what_is_left_of_a_claimed_page_is_protected_until_it_is_written(
    parts: Parts,
) -> None:
    """Among more pages than a batch takes; the unclaimed ones make room."""
    parts.write(0, 1)
    assert await parts.write_behind.drain(5)
    await parts.write_claimed(2, 3, 4, 5)
    await until(lambda: parts.appended)
    assert parts.ownership.evict(6, [parts.slab]) == 2
    assert parts.ownership.missing([key_of(n) for n in range(6)]) == b"\x01\x01\0\0\0\0"
    parts.gate.set()
    assert await parts.ownership.wait_durable([key_of(n) for n in range(2, 6)], 5) == []


async def test_a_claim_that_comes_while_claims_are_looked_up_counts(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts.gate.set()
    lookup, looked_up = parts.disk.claims, asyncio.Event()
    asked: list[int] = []

    async def slow(keys: Sequence[PageKey]) -> dict[PageKey, list[Claim]]:
        found = await lookup(keys)
        asked.append(len(found))
        await looked_up.wait()
        return found

    monkeypatch.setattr(parts.disk, "claims", slow)
    parts.write(0)
    await until(lambda: asked)
    await parts.claim(0)
    looked_up.set()
    assert await parts.ownership.wait_durable([key_of(0)], 5) == []
    assert asked == [0, 1]


async def test_an_index_that_fails_leaves_the_page_waiting(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts.gate.set()
    lookup = parts.disk._index.claims.of_pages
    failures = [lmdb.Error("broken")]

    def failing(keys: Sequence[PageKey], now_us: int) -> dict[PageKey, list[Claim]]:
        if failures:
            raise failures.pop()
        return lookup(keys, now_us)

    monkeypatch.setattr(parts.disk._index.claims, "of_pages", failing)
    await parts.write_claimed(0)
    await until(lambda: parts.write_behind.failing == "index_failed")
    assert await parts.ownership.wait_durable([key_of(0)], 5) == []


async def test_of_what_waits_the_strongest_promise_is_written_first(parts: Parts) -> None:
    await parts.write_claimed(0)
    await until(lambda: parts.appended)
    parts.write(1, 2, 3, 4, 5, 6)
    until_then = time.time() + 60
    for name, numbers, retention in (
        ("weak", (1, 2), "ephemeral"),
        ("strong", (3, 4), "persistent"),
        ("middle", (5, 6), "standard"),
    ):
        keys = [key_of(number) for number in numbers]
        terms = ClaimTerms(retention=retention)  # type: ignore[arg-type]
        await parts.retention.claim(name, keys, until_then, terms)
    parts.gate.set()
    await until(lambda: parts.write_behind.idle)
    numbers = {key_of(number): number for number in range(7)}
    batches = [sorted(numbers[key] for key in batch) for batch in parts.appended]
    assert batches == [[0], [3, 4], [5, 6], [1, 2]]


async def test_a_promised_page_that_is_bad_before_it_is_written_is_a_loss(parts: Parts) -> None:
    lost: list[PageKey] = []
    parts.write_behind.on_lost = lambda keys, why: lost.extend(keys)
    parts.gate.set()
    parts.write(0)
    parts.slab.view[parts.slab.offset(0) + HEADER_BYTES] ^= 1
    await parts.claim(0)
    await until(lambda: parts.write_behind.idle)
    assert lost == [key_of(0)]
