"""The data path in C and its Python twin do the same, each with what the other wrote."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from agentmem.core import PageKey
from agentmem.native import datapath, twin
from agentmem.native.jobs import (
    LoadJob,
    Outcome,
    PageBuffers,
    SealJob,
    StoreJob,
    address_of,
    view_of,
)
from agentmem.native.library import library
from agentmem.pages.crypt import DataKey, fresh_nonce, open_record
from agentmem.pages.record import (
    HEADER_BYTES,
    decode_header,
    record_bytes,
    verify_record,
)
from agentmem.pages.slab import slot_is_free

PAYLOAD = 300_000
SLOT = record_bytes(PAYLOAD)
PAGES = 5
KEYS = [PageKey(bytes([n]) * 48) for n in range(PAGES)]
DATA_KEY = DataKey(b"a tenant's key..", bytes(range(32)))
FAR = time.monotonic() + 1e6


class Memory:
    """Aligned memory that stays where it is."""

    def __init__(self, size_bytes: int) -> None:
        self.view = memoryview(mmap.mmap(-1, size_bytes))
        self.address = address_of(self.view)


class Path2(NamedTuple):
    """One of the two implementations, as `datapath` calls it."""

    module: ModuleType

    def store(self, jobs: list[StoreJob], buffers: PageBuffers, deadline: float = FAR) -> list[str]:
        return self.module.store_batch(jobs, buffers, deadline=deadline, threads=3)

    def load(
        self,
        jobs: list[LoadJob],
        buffers: PageBuffers | None = None,
        deadline: float = FAR,
        *,
        verify: bool = True,
    ) -> list[str]:
        none = PageBuffers.of_views([])
        return self.module.load_batch(
            jobs, buffers or none, deadline=deadline, threads=3, verify=verify
        )


@pytest.fixture(params=["native", "twin"])
def path(request: pytest.FixtureRequest) -> Path2:
    assert datapath.is_native(), "the C library is not built: python -m agentmem.native.build"
    return Path2(datapath if request.param == "native" else twin)


@pytest.fixture(params=["native", "twin"])
def writer(request: pytest.FixtureRequest) -> Path2:
    return Path2(datapath if request.param == "native" else twin)


def source(number: int) -> bytes:
    return bytes([number, 255 - number]) * (PAYLOAD // 2)


def parts(whole: bytes | bytearray) -> list[memoryview]:
    """Uneven buffers, none of them aligned, as K and V of layers may be."""
    view = memoryview(whole)
    return [view[:1], view[1:1], view[1:140_001], view[140_001:]]


def pages(found: list[bytearray] | list[bytes]) -> PageBuffers:
    return PageBuffers.of_views([parts(whole) for whole in found])


def targets(count: int = PAGES) -> list[bytearray]:
    return [bytearray(PAYLOAD) for _ in range(count)]


@pytest.fixture
def slab(writer: Path2) -> Memory:
    """Five stored pages."""
    slab = Memory(SLOT * PAGES)
    jobs = [StoreJob(slab.address + n * SLOT, KEYS[n]) for n in range(PAGES)]
    sources = [source(n) for n in range(PAGES)]
    assert writer.store(jobs, pages(sources)) == [Outcome.MOVED] * PAGES
    return slab


class Place(NamedTuple):
    """Where the stored pages are read from."""

    fd: int
    memory: Memory

    def jobs(self, payload_bytes: int = PAYLOAD) -> list[LoadJob]:
        if self.fd < 0:
            address = self.memory.address
            return [
                LoadJob(KEYS[n], payload_bytes, record=address + n * SLOT, capacity=SLOT)
                for n in range(PAGES)
            ]
        return [LoadJob(KEYS[n], payload_bytes, fd=self.fd, offset=n * SLOT) for n in range(PAGES)]

    def flip(self, offset: int) -> None:
        if self.fd < 0:
            self.memory.view[offset] ^= 4
        else:
            writable = os.open(f"/proc/self/fd/{self.fd}", os.O_RDWR)
            os.pwrite(writable, bytes([self.memory.view[offset] ^ 4]), offset)
            os.fsync(writable)
            os.close(writable)


@pytest.fixture(params=["slab", "file", "direct"])
def place(request: pytest.FixtureRequest, slab: Memory, tmp_path: Path) -> Iterator[Place]:
    if request.param == "slab":
        yield Place(-1, slab)
        return
    file = tmp_path / "pack"
    file.write_bytes(slab.view)
    os.sync()
    fd = os.open(file, os.O_RDONLY | (os.O_DIRECT if request.param == "direct" else 0))
    yield Place(fd, slab)
    os.close(fd)


def test_stored_slots_are_whole_records(slab: Memory) -> None:
    before = time.time_ns()
    for n in range(PAGES):
        record = bytes(slab.view[n * SLOT : (n + 1) * SLOT])
        header = verify_record(record, KEYS[n])
        assert header.payload_bytes == PAYLOAD
        assert before - 60e9 < header.sequence <= before
        assert record[HEADER_BYTES : HEADER_BYTES + PAYLOAD] == source(n)


def test_pages_arrive(path: Path2, place: Place) -> None:
    found = targets()
    assert path.load(place.jobs(), pages(found)) == [Outcome.MOVED] * PAGES
    assert found == [source(n) for n in range(PAGES)]


def test_without_buffers_pages_are_only_checked(path: Path2, place: Place) -> None:
    jobs = [job._replace(key=None, payload_bytes=0) for job in place.jobs()]
    assert path.load(jobs) == [Outcome.MOVED] * PAGES
    place.flip(SLOT + HEADER_BYTES + PAYLOAD - 1)
    assert path.load(jobs) == [Outcome.MOVED, Outcome.CORRUPT, *[Outcome.MOVED] * 3]


@pytest.mark.parametrize("offset", [20, 4095, 4096, 4096 + 150_000, 4096 + PAYLOAD - 1])
def test_a_flipped_bit_spoils_one_page_only(path: Path2, place: Place, offset: int) -> None:
    place.flip(SLOT + offset)
    outcomes = path.load(place.jobs(), pages(targets()))
    assert outcomes == [Outcome.CORRUPT if n == 1 else Outcome.MOVED for n in range(PAGES)]


def test_another_page_in_its_place_is_corrupt(path: Path2, place: Place) -> None:
    first, second, *_ = place.jobs()
    swapped = [first._replace(key=KEYS[1]), second._replace(payload_bytes=PAYLOAD - 1)]
    assert path.load(swapped, pages(targets(2))) == [Outcome.CORRUPT] * 2
    short = PageBuffers.of_views([parts(bytearray(PAYLOAD - 8))])
    assert path.load([first._replace(payload_bytes=0)], short) == [Outcome.CORRUPT]


def test_after_the_deadline_nothing_is_begun(path: Path2, place: Place) -> None:
    found = targets()
    assert path.load(place.jobs(), pages(found), 0.0) == [Outcome.LATE] * PAGES
    assert not any(map(any, found))


def test_the_checksum_is_left_out_only_when_asked(path: Path2, place: Place) -> None:
    place.flip(SLOT + HEADER_BYTES)
    assert path.load(place.jobs(), pages(targets()), verify=False) == [Outcome.MOVED] * PAGES


@pytest.mark.parametrize("direct", [False, True])
def test_a_file_that_ends_or_fails_is_no_page(
    path: Path2, slab: Memory, tmp_path: Path, direct: bool
) -> None:
    file = tmp_path / "pack"
    file.write_bytes(slab.view[: SLOT + HEADER_BYTES + 9000])
    fd = os.open(file, os.O_RDONLY | (os.O_DIRECT if direct else 0))
    jobs = Place(fd, slab).jobs()
    assert path.load(jobs, pages(targets())) == [Outcome.MOVED] + [Outcome.CORRUPT] * 4
    os.close(fd)
    assert path.load(jobs, pages(targets())) == [Outcome.UNREADABLE] * PAGES


def test_a_record_that_goes_on_behind_its_memory_is_corrupt(path: Path2, slab: Memory) -> None:
    job = LoadJob(KEYS[0], PAYLOAD, record=slab.address, capacity=HEADER_BYTES + PAYLOAD)
    assert path.load([job], pages(targets(1))) == [Outcome.MOVED]
    for capacity in (0, HEADER_BYTES - 1, HEADER_BYTES + PAYLOAD - 1):
        cut = [job._replace(capacity=capacity)]
        assert path.load(cut, pages(targets(1))) == [Outcome.CORRUPT]


def test_a_late_store_leaves_slots_free(path: Path2) -> None:
    slab = Memory(SLOT)
    assert path.store([StoreJob(slab.address, KEYS[0])], pages([source(0)]), 0.0) == [Outcome.LATE]
    assert slot_is_free(slab.view, 0)
    assert not any(slab.view)


def seal(path: Path2, slab: Memory) -> Memory:
    """The slab's records, sealed."""
    sealed = Memory(SLOT * PAGES)
    jobs = [
        SealJob(
            slab.address + n * SLOT,
            sealed.address + n * SLOT,
            SLOT,
            DATA_KEY.key_id,
            fresh_nonce(),
            DATA_KEY.secret,
        )
        for n in range(PAGES)
    ]
    assert path.module.seal_batch(jobs, threads=2) == [Outcome.MOVED] * PAGES
    return sealed


class TestSealed:
    @pytest.fixture
    def place(
        self, writer: Path2, slab: Memory, tmp_path: Path, request: pytest.FixtureRequest
    ) -> Iterator[Place]:
        sealed = seal(writer, slab)
        file = tmp_path / "pack"
        file.write_bytes(sealed.view)
        fd = os.open(file, os.O_RDONLY)
        yield Place(fd if request.param == "file" else -1, sealed)
        os.close(fd)

    @pytest.mark.parametrize("place", ["slab", "file"], indirect=True)
    def test_pages_arrive_with_the_secret(self, path: Path2, place: Place) -> None:
        found = targets()
        jobs = [job._replace(secret=DATA_KEY.secret) for job in place.jobs()]
        assert path.load(jobs, pages(found)) == [Outcome.MOVED] * PAGES
        assert found == [source(n) for n in range(PAGES)]

    @pytest.mark.parametrize("place", ["slab", "file"], indirect=True)
    def test_damage_shows_with_and_without_the_secret(self, path: Path2, place: Place) -> None:
        place.flip(SLOT + HEADER_BYTES + 7)
        expected = [Outcome.CORRUPT if n == 1 else Outcome.MOVED for n in range(PAGES)]
        jobs = [job._replace(secret=DATA_KEY.secret) for job in place.jobs()]
        assert path.load(jobs, pages(targets())) == expected
        assert path.load(place.jobs()) == expected

    @pytest.mark.parametrize("place", ["slab", "file"], indirect=True)
    def test_no_secret_and_a_wrong_one(self, path: Path2, place: Place) -> None:
        assert path.load(place.jobs(), pages(targets())) == [Outcome.SEALED] * PAGES
        wrong = [job._replace(secret=bytes(32)) for job in place.jobs()]
        assert path.load(wrong, pages(targets())) == [Outcome.CORRUPT] * PAGES

    def test_what_is_sealed_opens_everywhere(self, path: Path2, slab: Memory) -> None:
        sealed = seal(path, slab)
        for n in range(PAGES):
            at = slice(n * SLOT, (n + 1) * SLOT)
            assert open_record(sealed.view[at], DATA_KEY) == slab.view[at]

    def test_damaged_and_sealed_records_are_not_sealed(self, path: Path2, slab: Memory) -> None:
        target = Memory(SLOT)
        job = SealJob(slab.address, target.address, SLOT, bytes(16), bytes(12), bytes(32))
        slab.view[HEADER_BYTES + 5] ^= 1
        assert path.module.seal_batch([job], threads=1) == [Outcome.CORRUPT]
        slab.view[HEADER_BYTES + 5] ^= 1
        sealed = seal(path, slab)
        again = job._replace(record=sealed.address)
        assert path.module.seal_batch([again], threads=1) == [Outcome.CORRUPT]


@pytest.mark.parametrize("sealed", [False, True])
def test_a_page_is_promoted_into_a_slot(path: Path2, slab: Memory, sealed: bool) -> None:
    origin = seal(path, slab) if sealed else slab
    slot = Memory(SLOT)
    payload = view_of(slot.address + HEADER_BYTES, PAYLOAD)
    job = LoadJob(
        KEYS[2], PAYLOAD, record=origin.address + 2 * SLOT, capacity=SLOT, slot=slot.address,
        secret=DATA_KEY.secret if sealed else None,
    )  # fmt: skip
    assert path.load([job], PageBuffers.of_views([[payload]])) == [Outcome.MOVED]
    assert slot.view[:SLOT] == slab.view[2 * SLOT : 3 * SLOT]
    assert decode_header(slot.view[:HEADER_BYTES]).seal is None


def test_a_damaged_page_is_not_committed_into_a_slot(path: Path2, slab: Memory) -> None:
    slot = Memory(SLOT)
    slab.view[HEADER_BYTES] ^= 1
    payload = view_of(slot.address + HEADER_BYTES, PAYLOAD)
    job = LoadJob(KEYS[0], PAYLOAD, record=slab.address, capacity=SLOT, slot=slot.address)
    assert path.load([job], PageBuffers.of_views([[payload]])) == [Outcome.CORRUPT]
    assert slot_is_free(slot.view, 0)


@pytest.mark.parametrize("direct", [False, True])
def test_ranges_are_written_one_after_the_other(path: Path2, tmp_path: Path, direct: bool) -> None:
    memory = Memory(12 << 20)
    memory.view[:] = os.urandom(1 << 20) * 12
    sizes = [4096, 9 << 20, 8192, *[4096] * 600]
    ranges, at = [], 0
    for size in sizes:
        ranges.append((memory.address + at, size))
        at += size
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT | (os.O_DIRECT if direct else 0))
    path.module.write_ranges(fd, ranges, 4096)
    os.close(fd)
    assert (tmp_path / "f").read_bytes() == bytes(4096) + memory.view[:at]


def test_a_full_or_closed_file_is_an_error(path: Path2) -> None:
    memory = Memory(8192)
    fd = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OSError, match="No space"):
        path.module.write_ranges(fd, [(memory.address, 8192)], 0)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file"):
        path.module.write_ranges(fd, [(memory.address, 8192)], 0)


READ = ctypes.CFUNCTYPE(
    ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_longlong
)


@contextmanager
def medium(read: Callable[[int, int, int, int], int]) -> Iterator[None]:
    """Reads of files go through `read(fd, address, size, offset)`."""
    native = library()
    assert native is not None
    callback = READ(read)
    native.set_read(callback)
    try:
        yield
    finally:
        native.set_read(None)


def test_a_read_that_hangs_is_left_behind_and_writes_nothing_later(slab: Memory) -> None:
    goes_on, ended = threading.Event(), threading.Event()

    def read(fd: int, address: int, size: int, offset: int) -> int:
        if offset >= 2 * SLOT:
            goes_on.wait(30)
        room = min(size, len(slab.view) - offset)
        view_of(address, room)[:] = slab.view[offset : offset + room]
        if offset >= 2 * SLOT:
            ended.set()
        return room

    found = targets()
    with medium(read):
        fd = os.open("/dev/null", os.O_RDONLY)
        jobs = Place(fd, slab).jobs()
        deadline = time.monotonic() + 0.3
        outcomes = datapath.load_batch(jobs, pages(found), deadline=deadline, threads=8)
        os.close(fd)
        assert outcomes == [Outcome.MOVED] * 2 + [Outcome.LATE] * 3
        for buffer in found[2:]:
            buffer[:] = b"\xaa" * PAYLOAD  # somebody else's by now
        goes_on.set()
        assert ended.wait(30)
        time.sleep(0.2)
    assert found == [source(0), source(1), *[b"\xaa" * PAYLOAD] * 3]


def _soon() -> float:
    return time.monotonic() + 0.05


def test_when_too_many_reads_hang_no_more_are_begun(slab: Memory) -> None:
    goes_on = threading.Event()

    def read(fd: int, address: int, size: int, offset: int) -> int:
        goes_on.wait(30)
        return 0

    with medium(read):
        fd = os.open("/dev/null", os.O_RDONLY)
        jobs = Place(fd, slab).jobs()
        stuck = 0
        with suppress(OSError):
            while stuck <= 64:
                datapath.load_batch(jobs, pages(targets()), deadline=_soon(), threads=5)
                stuck += 5
        assert 60 <= stuck <= 65
        goes_on.set()
        os.close(fd)
        found = targets()
        for _ in range(300):
            with suppress(OSError):
                datapath.load_batch(jobs, pages(found), deadline=time.monotonic() + 5, threads=5)
                break
            time.sleep(0.1)
        else:
            raise AssertionError("the threads that hung did not end")


def test_a_read_that_fails_is_unreadable(slab: Memory) -> None:
    with medium(lambda fd, address, size, offset: -1):
        fd = os.open("/dev/null", os.O_RDONLY)
        outcomes = datapath.load_batch(Place(fd, slab).jobs(), pages(targets()))
        os.close(fd)
    assert outcomes == [Outcome.UNREADABLE] * PAGES


def test_memory_is_zeroed_and_populated() -> None:
    memory = Memory(1 << 20)
    datapath.populate(memory.address, 1 << 20)
    memory.view[:] = b"x" * (1 << 20)
    datapath.zero(memory.address + 4096, 8192)
    assert memory.view[:] == b"x" * 4096 + bytes(8192) + b"x" * ((1 << 20) - 12288)


def test_buffers_say_what_is_wrong_with_them() -> None:
    with pytest.raises(ValueError, match="not 2 for each page"):
        PageBuffers.of_pointers([1, 2, 3], [1, 1, 1], 2)
    buffers = PageBuffers.of_views([[memoryview(b"ab"), memoryview(b"c")], [memoryview(b"d")]])
    assert [buffers.page_bytes(n) for n in range(len(buffers))] == [3, 1]
    assert [bytes(view) for view in buffers.select([1, 0]).views(1)] == [b"ab", b"c"]


def test_read_only_memory_has_an_address() -> None:
    text = b"read only"
    assert address_of(memoryview(text)[5:]) == address_of(memoryview(text)) + 5
