"""Moves and checks page bytes, a whole batch per call. The one place to put native code under.

Copies and checksums run without the interpreter lock (ctypes.memmove, os.preadv, xxhash), spread
over a few threads. Nothing here talks to the agent.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from enum import StrEnum
from typing import NamedTuple, TypeVar

from agentmem.core import PageKey
from agentmem.errors import PageCorrupt
from agentmem.pages.record import (
    HEADER_BYTES,
    RecordHeader,
    check_header,
    decode_header,
    encode_header,
    payload_checksum,
)
from agentmem.pages.slab import commit_slot

_IOVEC_MAX = 1024
_PyBUF_SIMPLE = 0


class _PyBuffer(ctypes.Structure):
    """CPython's Py_buffer (cpython/pybuffer.h); only `buf` is read."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


class StoreJob(NamedTuple):
    """Copy `buffers`, concatenated, into the slot with its record at `offset`, and commit it."""

    slab: memoryview
    offset: int
    key: PageKey
    buffers: Sequence[memoryview]


class LoadJob(NamedTuple):
    """Read the record of `key` at `offset` into `buffers` (writable, `payload_bytes` in sum).

    The source is a mapped slab or, where `slab` is None, the file `fd`.
    """

    slab: memoryview | None
    fd: int
    offset: int
    key: PageKey
    payload_bytes: int
    buffers: Sequence[memoryview]


class Outcome(StrEnum):
    """What became of one page of a batch."""

    MOVED = "moved"
    CORRUPT = "corrupt"  # bytes are there, but not this page's
    UNREADABLE = "unreadable"  # the medium or the file failed
    LATE = "late"  # not begun: the deadline had passed


JobT = TypeVar("JobT")


def address_of(view: memoryview) -> int:
    """Address of a contiguous buffer, read-only ones included. Raises BufferError otherwise."""
    buffer = _PyBuffer()
    ctypes.pythonapi.PyObject_GetBuffer(
        ctypes.py_object(view), ctypes.byref(buffer), ctypes.c_int(_PyBUF_SIMPLE)
    )
    address = buffer.buf or 0
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
    return address


def store_batch(
    jobs: Sequence[StoreJob], executor: Executor, threads: int, deadline: float
) -> list[Outcome]:
    """Copies pages into slots and commits each. `deadline` is on time.monotonic's clock."""
    return _spread(store_one, jobs, executor, threads, deadline)


def load_batch(
    jobs: Sequence[LoadJob], executor: Executor, threads: int, deadline: float
) -> list[Outcome]:
    """Reads pages into the given buffers and checks each one after it was moved."""
    return _spread(load_one, jobs, executor, threads, deadline)


def store_one(job: StoreJob) -> Outcome:
    """Payload, then checksum of what arrived, then header, then magic."""
    start = at = job.offset + HEADER_BYTES
    base = address_of(job.slab)
    for source in job.buffers:
        ctypes.memmove(base + at, address_of(source), source.nbytes)
        at += source.nbytes
    checksum = payload_checksum([job.slab[start:at]])
    header = RecordHeader(job.key, at - start, time.time_ns(), checksum)
    commit_slot(job.slab, job.offset, encode_header(header))
    return Outcome.MOVED


def load_one(job: LoadJob) -> Outcome:
    """Moves one page, then checks length, key (with its fingerprint) and checksum."""
    try:
        if job.slab is None:
            block = os.pread(job.fd, HEADER_BYTES, job.offset)
        else:
            block = bytes(job.slab[job.offset : job.offset + HEADER_BYTES])
        header = decode_header(block)
        check_header(header, job.key, job.payload_bytes)
        _move(job)
    except OSError:
        return Outcome.UNREADABLE
    except PageCorrupt:
        return Outcome.CORRUPT
    # The destination is what is checked: an error anywhere on the way shows.
    good = payload_checksum(job.buffers) == header.checksum
    return Outcome.MOVED if good else Outcome.CORRUPT


def _move(job: LoadJob) -> None:
    at = job.offset + HEADER_BYTES
    if job.slab is not None:
        base = address_of(job.slab)
        for target in job.buffers:
            ctypes.memmove(address_of(target), base + at, target.nbytes)
            at += target.nbytes
        return
    pending = list(job.buffers)
    while pending:
        count = os.preadv(job.fd, pending[:_IOVEC_MAX], at)
        if count == 0:
            raise PageCorrupt("the file ends inside of the page")
        at += count
        while pending and count >= pending[0].nbytes:
            count -= pending[0].nbytes
            pending.pop(0)
        if count:
            pending[0] = pending[0][count:]


def _spread(
    move: Callable[[JobT], Outcome],
    jobs: Sequence[JobT],
    executor: Executor,
    threads: int,
    deadline: float,
) -> list[Outcome]:
    """Runs the jobs on the calling thread and up to `threads - 1` others, in order of index."""
    outcomes = [Outcome.LATE] * len(jobs)
    indexes = iter(range(len(jobs)))

    def work(indexes: Iterable[int]) -> None:
        # One iterator for all threads: `next` on a range iterator holds the interpreter lock.
        for index in indexes:
            if time.monotonic() >= deadline:
                return
            outcomes[index] = move(jobs[index])

    helpers = [executor.submit(work, indexes) for _ in range(min(threads, len(jobs)) - 1)]
    try:
        work(indexes)
    finally:
        for helper in helpers:
            # Every started job must end before the buffers go back to their owner.
            helper.result()
    return outcomes
