"""A short measurement of each tier beside the raw medium: seconds, not a bench."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from agentmem.bench.limits import GB, MIB, Memory, copy_seconds, raw_read, raw_write
from agentmem.core import PAGE_KEY_BYTES, PageKey
from agentmem.doctor.environment import SHARED_MEMORY
from agentmem.doctor.report import Check, Status
from agentmem.native.datapath import (
    COPY_THREADS,
    READ_THREADS,
    load_batch,
    open_direct,
    store_batch,
)
from agentmem.native.jobs import LoadJob, Outcome, PageBuffers, StoreJob, address_of
from agentmem.pages.record import record_bytes
from agentmem.store.pack import write_records

_PAGE_BYTES = MIB
_PAGES = 64
_BLOCK_BYTES = 4 * MIB
_RECORD_BYTES = record_bytes(_PAGE_BYTES)
_SHARE_MIN = 0.5


def check_speed(directory: Path) -> Check:
    """Rates of dram and disk below `directory`, ours against raw. `failed` without room for it.

    What other work is going on is part of what is measured.
    """
    try:
        rates = _measure(directory)
    except OSError as error:
        return Check("speed", Status.FAILED, f"not measured: {error}")
    parts = []
    slow = False
    for tier in ("dram", "disk"):
        for way in ("read", "write"):
            ours, raw = rates[f"{tier}_{way}"], rates[f"{tier}_{way}_raw"]
            slow = slow or ours < _SHARE_MIN * raw
            parts.append(f"{tier} {way} {ours / GB:.2f} of {raw / GB:.2f}")
    values = {f"{name}_bytes_per_second": int(rate) for name, rate in rates.items()}
    status = Status.NOTE if slow else Status.OK
    return Check("speed", status, f"GB/s: {', '.join(parts)}", values)


def _measure(directory: Path) -> dict[str, float]:
    size_bytes = _PAGES * _PAGE_BYTES
    pool, other = Memory(size_bytes), Memory(size_bytes)
    pool.fill(os.urandom(MIB))
    keys = [PageKey(bytes(8) + at.to_bytes(8, "big") * 5) for at in range(_PAGES)]
    assert all(len(key) == PAGE_KEY_BYTES for key in keys)
    rates = {}
    with _slab() as slab, tempfile.TemporaryDirectory(dir=directory, prefix=".doctor-") as below:
        base = address_of(slab)
        slots = [base + at * _RECORD_BYTES for at in range(_PAGES)]
        buffers = _buffers(pool)
        jobs = [StoreJob(slot, key) for slot, key in zip(slots, keys, strict=True)]
        rates["dram_write"] = _rate(lambda: store_batch(jobs, buffers))
        loads = [
            LoadJob(key, _PAGE_BYTES, record=slot, capacity=_RECORD_BYTES)
            for slot, key in zip(slots, keys, strict=True)
        ]
        rates["dram_read"] = _rate(lambda: load_batch(loads, _buffers(other)))
        raw = size_bytes / copy_seconds(other, pool, size_bytes, COPY_THREADS)
        rates["dram_read_raw"] = rates["dram_write_raw"] = raw
        rates |= _measure_disk(Path(below), slab, keys, pool, other)
    return rates


def _measure_disk(
    below: Path, slab: memoryview, keys: list[PageKey], pool: Memory, other: Memory
) -> dict[str, float]:
    size_bytes = _PAGES * _PAGE_BYTES
    raw_file, ours_file = below / "raw", below / "records"
    rates = {"disk_write_raw": raw_write(raw_file, pool, size_bytes, _BLOCK_BYTES, 4)}
    rates["disk_read_raw"] = raw_read(raw_file, other, size_bytes, _BLOCK_BYTES, READ_THREADS)
    fd = os.open(ours_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        records = [slab[at * _RECORD_BYTES : (at + 1) * _RECORD_BYTES] for at in range(len(keys))]
        begun = time.perf_counter()
        write_records(fd, records, 0)
        rates["disk_write"] = size_bytes / (time.perf_counter() - begun)
    finally:
        os.close(fd)
    fd = open_direct(str(ours_file))
    try:
        jobs = [
            LoadJob(key, _PAGE_BYTES, fd=fd, offset=at * _RECORD_BYTES)
            for at, key in enumerate(keys)
        ]
        rates["disk_read"] = _rate(lambda: load_batch(jobs, _buffers(other)))
    finally:
        os.close(fd)
    return rates


def _rate(move: object) -> float:
    assert callable(move)
    begun = time.perf_counter()
    outcomes = move()
    seconds = time.perf_counter() - begun
    if any(outcome is not Outcome.MOVED for outcome in outcomes):
        raise OSError("pages did not come back as they were written")
    return _PAGES * _PAGE_BYTES / seconds


def _buffers(memory: Memory) -> PageBuffers:
    starts = range(0, _PAGES * _PAGE_BYTES, _PAGE_BYTES)
    return PageBuffers.of_views([[memory.view[at : at + _PAGE_BYTES]] for at in starts])


@contextlib.contextmanager
def _slab() -> Iterator[memoryview]:
    """Shared memory as a slab has it, for as long as the measurement lasts."""
    size_bytes = _PAGES * _RECORD_BYTES
    with tempfile.TemporaryFile(dir=SHARED_MEMORY) as file:
        os.posix_fallocate(file.fileno(), 0, size_bytes)
        # Unmapped with its last view: the jobs hold addresses only while they run.
        yield memoryview(mmap.mmap(file.fileno(), size_bytes))
