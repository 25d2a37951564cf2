"""The data path in plain Python: what `native/src` does in C, for machines where it is not built.

Slower by the interpreter lock, and right: the contract tests hold the two against each other. A
read that hangs keeps its call waiting here; the C library leaves it behind.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from agentmem.errors import PageCorrupt
from agentmem.native.jobs import LoadJob, Outcome, PageBuffers, SealJob, StoreJob, view_of
from agentmem.pages.crypt import DataKey, open_payload, seal_record
from agentmem.pages.record import (
    HEADER_BYTES,
    RecordHeader,
    aligned,
    check_header,
    decode_header,
    encode_header,
    payload_checksum,
)
from agentmem.pages.slab import commit_slot

_IOVEC_MAX = 1024

JobT = TypeVar("JobT")


def store_batch(
    jobs: Sequence[StoreJob], buffers: PageBuffers, *, deadline: float, threads: int
) -> list[Outcome]:
    """See `datapath.store_batch`."""

    def store(index: int) -> Outcome:
        job = jobs[index]
        views = buffers.views(index)
        size = sum(view.nbytes for view in views)
        slot = view_of(job.record, HEADER_BYTES + size)
        _copy(views, slot[HEADER_BYTES:], scatter=False)
        checksum = payload_checksum([slot[HEADER_BYTES:]])
        header = RecordHeader(job.key, size, time.time_ns(), checksum)
        commit_slot(slot, 0, encode_header(header))
        return Outcome.MOVED

    return _spread(store, len(jobs), threads, deadline)


def load_batch(
    jobs: Sequence[LoadJob],
    buffers: PageBuffers,
    *,
    deadline: float,
    threads: int,
    verify: bool,
) -> list[Outcome]:
    """See `datapath.load_batch`."""

    def load(index: int) -> Outcome:
        views = buffers.views(index) if len(buffers) else []
        try:
            return _load_one(jobs[index], views, verify=verify)
        except OSError:
            return Outcome.UNREADABLE
        except PageCorrupt:
            return Outcome.CORRUPT

    return _spread(load, len(jobs), threads, deadline)


def seal_batch(jobs: Sequence[SealJob], *, threads: int) -> list[Outcome]:
    """See `datapath.seal_batch`."""

    def seal(index: int) -> Outcome:
        job = jobs[index]
        record = view_of(job.record, job.record_bytes)
        try:
            sealed = seal_record(record, DataKey(job.key_id, job.secret), nonce=job.nonce)
        except (PageCorrupt, ValueError):
            return Outcome.CORRUPT
        view_of(job.target, len(sealed))[:] = sealed
        return Outcome.MOVED

    return _spread(seal, len(jobs), threads, float("inf"))


def write_ranges(fd: int, ranges: Sequence[tuple[int, int]], offset: int) -> None:
    """See `datapath.write_ranges`."""
    pending = [view_of(address, size) for address, size in ranges if size]
    while pending:
        written = os.pwritev(fd, pending[:_IOVEC_MAX], offset)
        if written == 0:
            raise OSError(errno.ENOSPC, "the medium took no bytes")
        offset += written
        while pending and written >= pending[0].nbytes:
            written -= pending.pop(0).nbytes
        if written:
            pending[0] = pending[0][written:]


def _load_one(job: LoadJob, views: list[memoryview], *, verify: bool) -> Outcome:
    header = decode_header(_read(job, 0, HEADER_BYTES))
    check_header(header, job.key or header.key, job.payload_bytes or header.payload_bytes)
    if views and sum(view.nbytes for view in views) != header.payload_bytes:
        raise PageCorrupt("the payload has another length than its buffers")
    if views and header.seal is not None and job.secret is None:
        return Outcome.SEALED
    payload = _read(job, HEADER_BYTES, header.payload_bytes)
    if header.seal is not None and views:
        assert job.secret is not None
        payload = memoryview(open_payload(header, payload, job.secret))
    elif verify and payload_checksum([payload]) != header.checksum:
        raise PageCorrupt(f"the payload's checksum does not match for page {header.key.hex()}")
    _copy(views, payload, scatter=True)
    if job.slot:
        plain = header._replace(checksum=payload_checksum([payload]), seal=None)
        commit_slot(view_of(job.slot, HEADER_BYTES), 0, encode_header(plain))
    return Outcome.MOVED


def _read(job: LoadJob, at: int, size_bytes: int) -> memoryview:
    """Bytes of the record, from `at` on. Raises PageCorrupt where it ends before."""
    if job.record:
        if at + size_bytes > job.capacity:
            raise PageCorrupt("the record goes on behind its memory")
        return view_of(job.record + at, size_bytes)
    if job.fd < 0:
        raise OSError(errno.EBADF, "no such file")
    # Read to aligned memory, whole blocks: the file may be open with O_DIRECT.
    room = aligned(size_bytes)
    memory = ctypes.create_string_buffer(room + HEADER_BYTES)
    skip = -ctypes.addressof(memory) % HEADER_BYTES
    view = memoryview(memory)[skip : skip + room].cast("B")
    done = 0
    while done < size_bytes:
        count = os.preadv(job.fd, [view[done:]], job.offset + at + done)
        done += count
        if count == 0:
            raise PageCorrupt("the file ends inside of the page")
    return view[:size_bytes]


def _copy(views: Iterable[memoryview], whole: memoryview, *, scatter: bool) -> None:
    at = 0
    for view in views:
        part = whole[at : at + view.nbytes]
        if scatter:
            view[:] = part
        else:
            part[:] = view
        at += view.nbytes


def _spread(
    run: Callable[[int], Outcome], count: int, threads: int, deadline: float
) -> list[Outcome]:
    """Runs job after job on some threads, in order of index, until the deadline."""
    outcomes = [Outcome.LATE] * count
    indexes = iter(range(count))

    def work() -> None:
        # One iterator for all threads: `next` on a range iterator holds the interpreter lock.
        for index in indexes:
            if time.monotonic() >= deadline:
                return
            outcomes[index] = run(index)

    with ThreadPoolExecutor(max(1, threads)) as executor:
        helpers = [executor.submit(work) for _ in range(min(threads, count) - 1)]
        work()
        for helper in helpers:
            helper.result()
    return outcomes
