"""The data path: stores, loads, checks and seals a whole batch of pages per call.

Nothing here talks to the agent. Deadlines are on `time.monotonic`'s clock.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import struct
from array import array
from collections.abc import Sequence

from agentmem.core import PAGE_KEY_BYTES
from agentmem.native import twin
from agentmem.native.jobs import LoadJob, Outcome, PageBuffers, SealJob, StoreJob
from agentmem.native.library import library
from agentmem.pages.crypt import SECRET_BYTES
from agentmem.pages.record import KEY_ID_BYTES, NONCE_BYTES

# The structs of native/src/datapath.h.
_STORE = struct.Struct(f"<Q{PAGE_KEY_BYTES}s")
_LOAD = struct.Struct(f"<QqQQQQQQ{PAGE_KEY_BYTES}s{SECRET_BYTES}s")
_SEAL = struct.Struct(f"<QQ{KEY_ID_BYTES}s{NONCE_BYTES}s4x{SECRET_BYTES}s")
_UNVERIFIED = 1
_OUTCOMES = (Outcome.LATE, Outcome.MOVED, Outcome.CORRUPT, Outcome.UNREADABLE, Outcome.SEALED)
_NO_BUFFERS = PageBuffers(array("Q"), array("Q"), 0)

COPY_THREADS = min(12, os.cpu_count() or 1)
"""Threads that copy and hash: more of them gain nothing where memory is the limit."""
READ_THREADS = 8
"""Reads of a file in flight at once: they wait for the medium, whatever the number of cores."""


def store_batch(
    jobs: Sequence[StoreJob],
    buffers: PageBuffers,
    *,
    deadline: float = math.inf,
    threads: int = COPY_THREADS,
) -> list[Outcome]:
    """Copies pages into slots: payload, checksum, header, and the magic last. MOVED or LATE."""
    native = library()
    if native is None:
        return twin.store_batch(jobs, buffers, deadline=deadline, threads=threads)
    packed = b"".join([_STORE.pack(*job) for job in jobs])
    outcomes = (ctypes.c_uint8 * max(1, len(jobs)))()
    _check(
        native.store(
            *(packed, len(jobs), *_parts(buffers), threads, _nanoseconds(deadline), outcomes)
        )
    )
    return _outcomes(outcomes, len(jobs))


def load_batch(
    jobs: Sequence[LoadJob],
    buffers: PageBuffers = _NO_BUFFERS,
    *,
    deadline: float = math.inf,
    threads: int | None = None,
    verify: bool = True,
) -> list[Outcome]:
    """Moves pages into buffers, or, without buffers, only checks them.

    Each is checked for header, key, length and checksum (a sealed one that is opened: for its
    tag). A read that hangs is left behind at the deadline, and will not write to the buffers.
    `verify=False` leaves the checksum of plain pages out: for measurements.
    """
    native = library()
    if threads is None:
        threads = READ_THREADS if any(job.record == 0 for job in jobs) else COPY_THREADS
    if native is None or (not native.has_cipher and any(job.secret for job in jobs)):
        return twin.load_batch(jobs, buffers, deadline=deadline, threads=threads, verify=verify)
    packed = b"".join([_pack_load(job) for job in jobs])
    outcomes = (ctypes.c_uint8 * max(1, len(jobs)))()
    flags = 0 if verify else _UNVERIFIED
    _check(
        native.load(
            *(packed, len(jobs), *_parts(buffers), flags, threads, _nanoseconds(deadline)),
            outcomes,
        )
    )
    return _outcomes(outcomes, len(jobs))


def seal_batch(jobs: Sequence[SealJob], *, threads: int = COPY_THREADS) -> list[Outcome]:
    """Seals plain records; CORRUPT where one does not check, and its target then holds anything."""
    native = library()
    if native is None or not native.has_cipher:
        return twin.seal_batch(jobs, threads=threads)
    packed = b"".join(
        [_SEAL.pack(job.record, job.target, job.key_id, job.nonce, job.secret) for job in jobs]
    )
    outcomes = (ctypes.c_uint8 * max(1, len(jobs)))()
    _check(native.seal(packed, len(jobs), threads, outcomes))
    return _outcomes(outcomes, len(jobs))


def write_ranges(
    fd: int, ranges: Sequence[tuple[int, int]], offset: int, *, threads: int = 4
) -> None:
    """Writes memory ranges (address, bytes), one after the other, to a file at `offset`.

    Nothing is synced. Raises OSError; bytes may then lie anywhere behind `offset`.
    """
    native = library()
    if native is None:
        twin.write_ranges(fd, ranges, offset)
        return
    addresses = array("Q", [address for address, _ in ranges])
    sizes = array("Q", [size for _, size in ranges])
    _check(native.write(fd, _pointer(addresses), _pointer(sizes), len(ranges), offset, threads))


def open_direct(path: str) -> int:
    """Opens a file of records to read, past the page cache where it can be. Raises OSError."""
    flags = os.O_RDONLY | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags)


def zero(address: int, size_bytes: int) -> None:
    """Fills memory with zeros."""
    native = library()
    if native is None:
        ctypes.memset(address, 0, size_bytes)
    else:
        native.zero(address, size_bytes)


def populate(address: int, size_bytes: int) -> None:
    """Makes the pages of a mapping present, huge where allowed, so that no copy meets a fault.

    Does nothing where the kernel cannot (before Linux 5.14): copies then are slower at first.
    """
    native = library()
    if native is not None:
        native.populate(address, size_bytes)


def is_native() -> bool:
    """Whether the C library does the work."""
    return library() is not None


def _pack_load(job: LoadJob) -> bytes:
    return _LOAD.pack(
        job.record,
        job.fd,
        job.offset,
        job.payload_bytes,
        job.capacity,
        job.slot,
        job.key is not None,
        job.secret is not None,
        job.key or b"",
        job.secret or b"",
    )


def _parts(buffers: PageBuffers) -> tuple[int, int, int]:
    return _pointer(buffers.addresses), _pointer(buffers.sizes), buffers.per_page


def _pointer(values: array[int]) -> int:
    return values.buffer_info()[0]


def _nanoseconds(deadline: float) -> int:
    return (1 << 63) - 1 if deadline > 1 << 33 else int(deadline * 1_000_000_000)


def _outcomes(codes: ctypes.Array[ctypes.c_uint8], count: int) -> list[Outcome]:
    return [_OUTCOMES[code] for code in codes[:count]]


def _check(result: int) -> None:
    """Raises OSError for a call that was not begun."""
    if result < 0:
        raise OSError(-result, os.strerror(-result))
