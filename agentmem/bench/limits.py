"""What the hardware gives: memory, disk; measured beside every row that is held against it.

Threads here are Python's, each in one long call without the interpreter lock, so that they are as
fast as native ones as long as nothing else runs in the process.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

GB = 1e9
MIB = 1 << 20
_HUGE_PAGE_BYTES = 2 << 20
_COPY_CHUNK_BYTES = 4 << 20
_DROP_CACHES = Path("/proc/sys/vm/drop_caches")
READ_BLOCKS = (1 << 20, 4 << 20, 16 << 20)
WRITE_BLOCKS = (1 << 20, 4 << 20, 16 << 20)
THREADS = (1, 4, 8)


_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_memcmp.restype = ctypes.c_int


@dataclass(frozen=True, slots=True)
class Setting:
    """How a medium was driven, and the bytes per second that this gave."""

    block_bytes: int
    threads: int
    rate: float
    allocated: bool = False

    def __str__(self) -> str:
        how = ", space allocated before" if self.allocated else ""
        return f"{self.rate / GB:.2f} GB/s with {self.block_bytes // MIB} MiB x {self.threads}{how}"


class Memory:
    """Anonymous memory, page-aligned, in huge pages where allowed, and touched: what SGLang's host
    pool is made of."""

    def __init__(self, size_bytes: int) -> None:
        self._map = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._map.madvise(mmap.MADV_HUGEPAGE)
        self.view = memoryview(self._map)
        self.size_bytes = size_bytes
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        ctypes.memset(self.address, 1, size_bytes)

    def fill(self, tile: bytes) -> None:
        """Writes `tile` over and over, so that no page is the zero page."""
        for at in range(0, self.size_bytes, len(tile)):
            size = min(len(tile), self.size_bytes - at)
            ctypes.memmove(self.address + at, tile, size)

    def equals(self, other: Memory) -> bool:
        """Whether both hold the same bytes."""
        size = self.size_bytes
        return size == other.size_bytes and _memcmp(self.address, other.address, size) == 0


def copy_seconds(target: Memory, source: Memory, size_bytes: int, threads: int) -> float:
    """Seconds that a plain memcpy of `size_bytes` takes with so many threads."""
    chunk = min(_COPY_CHUNK_BYTES, -(-size_bytes // threads))

    def job(at: int) -> None:
        ctypes.memmove(target.address + at, source.address + at, min(chunk, size_bytes - at))

    return _spread(job, range(0, size_bytes, chunk), threads)


def raw_read(path: Path, buffer: Memory, size_bytes: int, block_bytes: int, threads: int) -> float:
    """Bytes per second of reading a file's first `size_bytes` in order, past the page cache."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    places = buffer.size_bytes // block_bytes

    def job(at: int) -> None:
        place = (at // block_bytes) % places * block_bytes
        view = buffer.view[place : place + min(block_bytes, size_bytes - at)]
        if os.preadv(fd, [view], at) != view.nbytes:
            raise OSError(f"{path} is shorter than {size_bytes} bytes")

    try:
        return size_bytes / _spread(job, range(0, size_bytes, block_bytes), threads)
    finally:
        os.close(fd)


def raw_write(
    path: Path,
    buffer: Memory,
    size_bytes: int,
    block_bytes: int,
    threads: int,
    *,
    allocated: bool = False,
) -> float:
    """Bytes per second of writing a new file past the page cache, its fsync included.

    `allocated`: its space is allocated before the clock runs. The file stays.
    """
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT | os.O_CLOEXEC, 0o600)
    places = buffer.size_bytes // block_bytes

    def job(at: int) -> None:
        place = (at // block_bytes) % places * block_bytes
        view = buffer.view[place : place + min(block_bytes, size_bytes - at)]
        if os.pwritev(fd, [view], at) != view.nbytes:
            raise OSError(f"{path} could not be written")

    try:
        if allocated:
            os.posix_fallocate(fd, 0, size_bytes)
            os.fsync(fd)
        begun = time.perf_counter()
        _spread(job, range(0, size_bytes, block_bytes), threads)
        os.fsync(fd)
        return size_bytes / (time.perf_counter() - begun)
    finally:
        os.close(fd)


def best_read(path: Path, buffer: Memory, size_bytes: int) -> Setting:
    """The fastest of several block sizes and thread counts, the best of two tries each."""
    settings = []
    for block_bytes, threads in itertools.product(READ_BLOCKS, THREADS):
        rate = max(raw_read(path, buffer, size_bytes, block_bytes, threads) for _ in range(2))
        settings.append(Setting(block_bytes, threads, rate))
    return max(settings, key=lambda setting: setting.rate)


def best_write(path: Path, buffer: Memory, size_bytes: int) -> Setting:
    """The fastest of several block sizes and thread counts, on new and on allocated space."""
    settings = []
    for block_bytes, threads, allocated in itertools.product(WRITE_BLOCKS, THREADS, (False, True)):
        rate = raw_write(path, buffer, size_bytes, block_bytes, threads, allocated=allocated)
        settings.append(Setting(block_bytes, threads, rate, allocated))
    path.unlink(missing_ok=True)
    return max(settings, key=lambda setting: setting.rate)


def drop_page_cache(paths: Sequence[Path]) -> str:
    """Takes files out of the page cache; everything, where this process may. Says which it did."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
    try:
        _DROP_CACHES.write_text("3\n")
    except OSError:
        return "the page cache dropped file by file"
    return "the page cache dropped"


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _spread(job: Callable[[int], None], places: Sequence[int], threads: int) -> float:
    """Runs the job for every place, in order, on so many threads. Returns seconds."""
    queue = iter(places)
    errors: list[OSError] = []

    def work() -> None:
        for at in queue:  # `next` on a range iterator holds the interpreter lock
            try:
                job(at)
            except OSError as error:
                errors.append(error)
                return

    helpers = [threading.Thread(target=work) for _ in range(threads - 1)]
    begun = time.perf_counter()
    for helper in helpers:
        helper.start()
    work()
    for helper in helpers:
        helper.join()
    seconds = time.perf_counter() - begun
    if errors:
        raise errors[0]
    return seconds
