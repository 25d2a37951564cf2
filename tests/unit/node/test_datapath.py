"""Moving bytes: from buffers into slots, from slots and packs into buffers, checked on arrival."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agentmem.core import PageKey
from agentmem.node.datapath import LoadJob, Outcome, StoreJob, address_of, load_batch, store_batch
from agentmem.pages.record import record_bytes, verify_record
from agentmem.pages.slab import slot_is_free

PAYLOAD = 30_000
SLOT = record_bytes(PAYLOAD)
PAGES = 5
KEYS = [PageKey(bytes([n]) * 48) for n in range(PAGES)]
FAR = time.monotonic() + 1e6


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def slab(executor: ThreadPoolExecutor) -> bytearray:
    """Five stored pages."""
    slab = bytearray(SLOT * PAGES)
    jobs = [StoreJob(memoryview(slab), n * SLOT, KEYS[n], parts(source(n))) for n in range(PAGES)]
    assert store_batch(jobs, executor, 3, FAR) == [Outcome.MOVED] * PAGES
    return slab


def source(number: int) -> bytes:
    return bytes([number, 255 - number]) * (PAYLOAD // 2)


def parts(whole: bytes | bytearray) -> list[memoryview]:
    """Uneven buffers, as K and V of layers may be."""
    view = memoryview(whole)
    return [view[:1], view[1:10_000], view[10_000:]]


def jobs_for(
    slab: memoryview | None, fd: int, targets: list[bytearray], payload_bytes: int = PAYLOAD
) -> list[LoadJob]:
    return [
        LoadJob(slab, fd, n * SLOT, KEYS[n], payload_bytes, parts(target))
        for n, target in enumerate(targets)
    ]


def targets() -> list[bytearray]:
    return [bytearray(PAYLOAD) for _ in range(PAGES)]


def test_stored_slots_are_whole_records(slab: bytearray) -> None:
    for n in range(PAGES):
        record = slab[n * SLOT : (n + 1) * SLOT]
        assert verify_record(record, KEYS[n]).payload_bytes == PAYLOAD
        assert record[4096 : 4096 + PAYLOAD] == source(n)


@pytest.mark.parametrize("medium", ["slab", "file"])
class TestLoad:
    @pytest.fixture
    def place(
        self, medium: str, slab: bytearray, tmp_path: Path
    ) -> Iterator[tuple[memoryview | None, int]]:
        if medium == "slab":
            yield memoryview(slab), -1
            return
        path = tmp_path / "pack"
        path.write_bytes(slab)
        fd = os.open(path, os.O_RDWR)
        yield None, fd
        os.close(fd)

    def test_pages_arrive(
        self, place: tuple[memoryview | None, int], executor: ThreadPoolExecutor
    ) -> None:
        found = targets()
        assert load_batch(jobs_for(*place, found), executor, 3, FAR) == [Outcome.MOVED] * PAGES
        assert found == [source(n) for n in range(PAGES)]

    @pytest.mark.parametrize("offset", [SLOT + 20, SLOT + 4095, SLOT + 4096, SLOT + 4096 + 29_999])
    def test_a_flipped_bit_spoils_one_page_only(
        self, place: tuple[memoryview | None, int], executor: ThreadPoolExecutor, offset: int
    ) -> None:
        view, fd = place
        if view is not None:
            view[offset] ^= 4
        else:
            os.pwrite(fd, bytes([os.pread(fd, 1, offset)[0] ^ 4]), offset)
        outcomes = load_batch(jobs_for(view, fd, targets()), executor, 3, FAR)
        assert outcomes == [Outcome.CORRUPT if n == 1 else Outcome.MOVED for n in range(PAGES)]

    def test_another_page_in_its_place_is_corrupt(
        self, place: tuple[memoryview | None, int], executor: ThreadPoolExecutor
    ) -> None:
        jobs = jobs_for(*place, targets())
        jobs[0] = jobs[0]._replace(offset=SLOT)
        jobs[1] = jobs[1]._replace(payload_bytes=PAYLOAD - 1)
        assert load_batch(jobs[:2], executor, 1, FAR) == [Outcome.CORRUPT] * 2

    def test_after_the_deadline_nothing_is_begun(
        self, place: tuple[memoryview | None, int], executor: ThreadPoolExecutor
    ) -> None:
        found = targets()
        assert load_batch(jobs_for(*place, found), executor, 3, 0.0) == [Outcome.LATE] * PAGES
        assert not any(map(any, found))


def test_a_file_that_ends_or_fails_is_no_page(
    slab: bytearray, executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    path = tmp_path / "pack"
    path.write_bytes(slab[: SLOT + 9000])
    fd = os.open(path, os.O_RDONLY)
    outcomes = load_batch(jobs_for(None, fd, targets()), executor, 1, FAR)
    os.close(fd)
    assert outcomes == [Outcome.MOVED] + [Outcome.CORRUPT] * 4
    closed = load_batch(jobs_for(None, fd, targets()), executor, 1, FAR)
    assert closed == [Outcome.UNREADABLE] * PAGES


def test_a_late_store_leaves_slots_free(executor: ThreadPoolExecutor) -> None:
    slab = bytearray(SLOT)
    job = StoreJob(memoryview(slab), 0, KEYS[0], parts(source(0)))
    assert store_batch([job], executor, 1, 0.0) == [Outcome.LATE]
    assert slot_is_free(memoryview(slab), 0)
    assert not any(slab)


def test_read_only_memory_has_an_address() -> None:
    text = b"read only"
    assert address_of(memoryview(text)[5:]) == address_of(memoryview(text)) + 5
