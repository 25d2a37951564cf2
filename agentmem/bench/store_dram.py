"""Rows of the dram tier: pages between shared memory and a host pool, against memcpy."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from agentmem.bench.limits import GB, Memory, copy_seconds
from agentmem.bench.report import Goal, Moved, Row, ratio_row
from agentmem.bench.store_system import (
    BATCH_PAGES,
    BenchEngine,
    BenchFailed,
    HostPool,
    Shape,
    measured,
    running_node,
)
from agentmem.native.datapath import COPY_THREADS
from agentmem.node import transfer

ROWS = {
    "dram_read_verified": Goal("GB/s", 0.6),
    "dram_read": Goal("GB/s", 0.85),
    "dram_read_busy": Goal("GB/s", 0.9),
    "dram_write": Goal("GB/s", 0.5),
    "store_accept": Goal("ms", 1.5, more=False),
}
_MILLISECONDS = 1000.0
_BURN_BYTES = 1 << 20


class DramBench:
    """One agent, one engine, a set of pages in dram that nothing claims (so no disk is at work)."""

    def __init__(self, socket: Path, engine: BenchEngine, shape: Shape) -> None:
        self._socket = socket
        self._engine = engine
        self._shape = shape
        self._numbers = range(shape.set_pages)
        self._bytes = shape.set_pages * shape.page_bytes
        self._threads = COPY_THREADS
        self._source = HostPool(shape.set_pages, shape.page_bytes)
        self._target = HostPool(shape.set_pages, shape.page_bytes)
        self._source.fill()

    def prepare(self) -> None:
        """Stores the set that is read; every byte of it comes back right."""
        self._engine.store("read", self._source, self._numbers)
        self._target.scribble()
        self._engine.load("read", self._target, self._numbers)
        if not self._target.equals(self._source):
            raise BenchFailed("dram gave back other bytes than were stored")

    def read_verified(self, rounds: int) -> Row:
        """Locate, copy, check and release, against memcpy of as many bytes."""
        return self._against_copy("dram_read_verified", self._load, rounds)

    def read(self, rounds: int) -> Row:
        """The same without the checksum: what checking costs is the difference."""
        engine = BenchEngine(
            self._socket, self._shape.page_bytes, engine_id="unverified", verify_loads=False
        )
        try:

            def load() -> float:
                return engine.load("read", self._target, self._numbers)

            return self._against_copy("dram_read", load, rounds)
        finally:
            engine.close()

    def write(self, rounds: int) -> Row:
        """New pages each time, into slots that the engine has had for a while."""
        generation = iter(range(1_000_000))

        def store() -> float:
            name = f"write {next(generation)}"
            return self._engine.store(name, self._source, self._numbers)

        for _ in range(3):
            store()  # until the budget is used up, and slots come from evicted pages
        words = "new pages into slots that others were evicted from, announced to the agent"
        return self._against_copy("dram_write", store, rounds, words)

    def read_busy(self, rounds: int) -> Row:
        """While a Python thread of this process spins; one core is the spinning thread's alone."""
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            raise BenchFailed("it takes two cores: one that spins, one that copies")
        busy, idle = [], []
        with _confined(cores[1:]):
            self._load()
            for _ in range(rounds):
                idle.append(self._rate(self._load()))
                with _spinning(cores[0]):
                    busy.append(self._rate(self._load()))
        detail = (
            f"beside it: the same without the spinning thread, also on {len(cores) - 1} "
            f"of {len(cores)} cores; batches of {BATCH_PAGES} pages, verified"
        )
        return self._row("dram_read_busy", busy, idle, detail)

    def store_accept(self, rounds: int) -> Row:
        """How long one batch holds the caller, while this process computes on every core."""
        shape = self._shape
        numbers = range(min(BATCH_PAGES, shape.set_pages))
        size = len(numbers) * shape.page_bytes
        held, copied, idle = [], [], []
        for round_number in range(rounds):
            idle.append(self._copy(size) * _MILLISECONDS)
            with _burning(os.cpu_count() or 1):
                copied.append(self._copy(size) * _MILLISECONDS)
                name = f"accept {round_number}"
                seconds = self._engine.store(name, self._source, numbers)
                held.append(seconds * _MILLISECONDS)
        detail = (
            f"{len(numbers)} new pages in one call, while as many threads as there are cores hash "
            f"in this process without the interpreter lock; beside it memcpy of the same bytes at "
            f"the same time ({min(idle):.1f} to {max(idle):.1f} ms when nothing else runs)"
        )
        return replace(self._row("store_accept", held, copied, detail), bytes=size)

    def _against_copy(
        self, name: str, move: Callable[[], float], rounds: int, words: str = ""
    ) -> Row:
        rates, limits = [], []
        move()
        for _ in range(rounds):
            limits.append(self._rate(self._copy(self._bytes)))
            rates.append(self._rate(move()))
        detail = f"batches of {BATCH_PAGES} pages; beside it memcpy with {self._threads} threads"
        return self._row(name, rates, limits, f"{words}; {detail}" if words else detail)

    def _load(self) -> float:
        return self._engine.load("read", self._target, self._numbers)

    def _copy(self, size_bytes: int) -> float:
        """Seconds of a plain memcpy between the two pools, half of it K and half V."""
        half = size_bytes // 2
        pairs: list[tuple[Memory, Memory]] = [
            (self._target.keys, self._source.keys),
            (self._target.values, self._source.values),
        ]
        return sum(copy_seconds(target, source, half, self._threads) for target, source in pairs)

    def _rate(self, seconds: float) -> float:
        return self._bytes / seconds / GB

    def _row(self, name: str, values: Sequence[float], limits: Sequence[float], detail: str) -> Row:
        return ratio_row(
            f"{name}{self._shape.suffix}",
            values,
            limits,
            ROWS[name],
            detail=detail,
            moved=Moved(
                self._bytes, self._threads, self._shape.page_bytes // 2, self._shape.page_bytes
            ),
        )


def run_dram(directory: Path, shape: Shape, wanted: Sequence[str], rounds: int) -> list[Row]:
    """The rows of `ROWS` that are wanted, for pages of one shape."""
    budget = 3 * shape.set_pages * shape.page_bytes
    with running_node(directory / "dram", dram_bytes=budget, disk_bytes=1 << 30) as node:
        engine = BenchEngine(node.settings.node_socket, shape.page_bytes)
        try:
            bench = DramBench(node.settings.node_socket, engine, shape)
            bench.prepare()
            rows: dict[str, Callable[[int], Row]] = {
                "dram_read_verified": bench.read_verified,
                "dram_read": bench.read,
                "dram_read_busy": bench.read_busy,
                "dram_write": bench.write,
                "store_accept": bench.store_accept,
            }
            return measured(rows, ROWS, wanted, rounds, shape)
        finally:
            engine.close()


@contextmanager
def _spinning(core: int) -> Iterator[None]:
    """A thread that never lets go of the interpreter lock by itself, as SGLang's scheduler."""
    ended = threading.Event()

    def spin() -> None:
        os.sched_setaffinity(0, {core})
        while not ended.is_set():
            pass

    before = sys.getswitchinterval()
    sys.setswitchinterval(transfer.SWITCH_INTERVAL_SECONDS)  # as the plugin does
    thread = threading.Thread(target=spin)
    thread.start()
    try:
        time.sleep(0.05)
        yield
    finally:
        sys.setswitchinterval(before)
        ended.set()
        thread.join()


@contextmanager
def _confined(cores: Sequence[int]) -> Iterator[None]:
    """Keeps every thread of this process, those that it starts later too, on these cores."""
    everywhere = os.sched_getaffinity(0)
    try:
        _confine(cores)
        yield
    finally:
        _confine(sorted(everywhere))


def _confine(cores: Sequence[int]) -> None:
    for task in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(task.name), cores)


@contextmanager
def _burning(threads: int) -> Iterator[None]:
    """Threads that compute without the interpreter lock, as a prefill on a CPU does."""
    ended = threading.Event()
    block = bytes(_BURN_BYTES)

    def burn() -> None:
        while not ended.is_set():
            hashlib.sha256(block).digest()

    workers = [threading.Thread(target=burn) for _ in range(threads)]
    for worker in workers:
        worker.start()
    try:
        time.sleep(0.05)
        yield
    finally:
        ended.set()
        for worker in workers:
            worker.join()
