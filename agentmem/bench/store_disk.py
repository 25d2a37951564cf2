"""Rows of the disk tier: packs to and from a host pool, against the disk driven directly."""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from agentmem.bench.limits import (
    GB,
    MIB,
    Memory,
    Setting,
    best_read,
    best_write,
    drop_page_cache,
    quantile,
    raw_read,
    raw_write,
)
from agentmem.bench.report import Goal, Moved, Row, ratio_row, row_of
from agentmem.bench.store_system import (
    BATCH_PAGES,
    BenchEngine,
    BenchFailed,
    HostPool,
    Node,
    Shape,
    claim,
    measured,
    running_node,
    wait_durable,
)
from agentmem.core import PageKey
from agentmem.native.datapath import READ_THREADS

ROWS = {
    "disk_read_verified": Goal("GB/s", 0.9),
    "disk_read_encrypted": Goal("GB/s", 0.7),
    "disk_write_durable": Goal("GB/s", 0.85),
    "durable_lag": Goal("s", 2.0, more=False),
}
_TURNS_PER_ROUND = 40
_TURN_PAGES_MAX = 64
_RATE_SHARE = 0.5
_WAITERS = 16
_BUFFER_BYTES = 256 * MIB


class DiskBench:
    """One agent with a set of pages on disk, and the same disk beside it."""

    def __init__(self, node: Node, engine: BenchEngine, shape: Shape, scratch: Path) -> None:
        self._node = node
        self._engine = engine
        self._shape = shape
        self._numbers = range(shape.set_pages)
        self._bytes = shape.set_pages * shape.page_bytes
        self._scratch = scratch
        self._source = HostPool(shape.set_pages, shape.page_bytes)
        self._target = HostPool(shape.set_pages, shape.page_bytes)
        self._source.fill()
        self._buffer = Memory(_BUFFER_BYTES)
        self._buffer.fill(bytes(self._source.page(0)[0]))
        self._names = itertools.count()
        self._write_setting: Setting | None = None

    def read_verified(self, rounds: int) -> Row:
        """Plain pages."""
        return self._read("disk_read_verified", rounds, encrypted=False)

    def read_encrypted(self, rounds: int) -> Row:
        """Pages that lie encrypted in their packs, and are opened on the way."""
        return self._read("disk_read_encrypted", rounds, encrypted=True)

    def write_durable(self, rounds: int) -> Row:
        """From the first page's copy until the last one is synced and in the index."""
        best = self._best_write()
        rates, limits = [], []
        for round_number in range(-1, rounds):
            limit = self._raw_write(best)
            name, keys = self._next()
            claim(self._node, name, keys)
            begun = time.perf_counter()
            self._engine.store(name, self._source, self._numbers)
            wait_durable(self._node, keys)
            rate = self._bytes / (time.perf_counter() - begun) / GB
            self._node.client.unclaim(name, keys)
            if round_number >= 0:
                rates.append(rate)
                limits.append(limit / GB)
        detail = (
            "claimed before they are stored, synced and in the index at the end; beside it "
            f"O_DIRECT write and fsync of as many bytes, best of several: {best}"
        )
        return self._row("disk_write_durable", rates, limits, detail, best.block_bytes)

    def durable_lag(self, rounds: int) -> Row:
        """From a turn's claim until all of its pages are durable, turn after turn."""
        best = self._best_write()
        shape, pick = self._shape, random.Random(7)  # noqa: S311 - sizes of turns
        bytes_max = self._bytes // 4
        pages_max = max(1, min(_TURN_PAGES_MAX, bytes_max // shape.page_bytes))
        worst, floors, moved = [], [], 0
        for _ in range(rounds):
            sizes = [pick.randint(1, pages_max) for _ in range(_TURNS_PER_ROUND)]
            lags = self._turns(sizes, _RATE_SHARE * best.rate)
            moved = sum(sizes) * shape.page_bytes
            worst.append(quantile(lags, 0.99))
            floors.append(max(sizes) * shape.page_bytes / best.rate)
        detail = (
            f"p99 of {_TURNS_PER_ROUND} turns a round, 1 to {pages_max} new pages each, as many "
            f"a second as make {_RATE_SHARE:.0%} of the disk's {best.rate / GB:.2f} GB/s; beside "
            "it the largest turn's bytes at the disk's speed"
        )
        row = row_of(
            f"durable_lag{shape.suffix}",
            worst,
            unit="s",
            limit=statistics.median(floors),
            target=2.0,
            detail=detail,
        )
        return replace(row, bytes=moved, page_bytes=shape.page_bytes)

    def _turns(self, sizes: Sequence[int], rate: float) -> list[float]:
        """Runs turns at `rate` bytes per second; seconds until each one's pages are durable."""
        lags, names = [], []
        with ThreadPoolExecutor(_WAITERS) as waiters:
            due, waiting = time.perf_counter(), []
            for pages in sizes:
                time.sleep(max(0.0, due - time.perf_counter()))
                due += pages * self._shape.page_bytes / rate
                name, keys = self._next(range(pages))
                self._engine.store(name, self._source, range(pages))
                ended = time.perf_counter()
                claim(self._node, name, keys)
                names.append((name, keys))
                waiting.append((ended, waiters.submit(self._durable_at, keys)))
            lags = [future.result() - ended for ended, future in waiting]
        for name, keys in names:
            self._node.client.unclaim(name, keys)
        return lags

    def _durable_at(self, keys: Sequence[PageKey]) -> float:
        wait_durable(self._node, keys)
        return time.perf_counter()

    def _read(self, row: str, rounds: int, *, encrypted: bool) -> Row:
        name, keys = self._next()
        claim(self._node, name, keys, encrypted=encrypted)
        self._engine.store(name, self._source, self._numbers)
        wait_durable(self._node, keys)
        raw = self._scratch / "raw"
        raw_write(raw, self._buffer, self._bytes, 16 * MIB, 4)
        best = best_read(raw, self._buffer, self._bytes)
        rates, limits, how = [], [], ""
        for round_number in range(-1, rounds):
            how = self._evict_copies()
            limit = raw_read(raw, self._buffer, self._bytes, best.block_bytes, best.threads)
            if round_number < 0:
                self._target.scribble()
            rate = self._bytes / self._load_from_disk(name) / GB
            if round_number < 0 and not self._target.equals(self._source):
                raise BenchFailed("the disk gave back other bytes than were stored")
            if round_number >= 0:
                rates.append(rate)
                limits.append(limit / GB)
        raw.unlink()
        self._node.client.unclaim(name, keys)
        detail = (
            f"batches of {BATCH_PAGES} pages, none in dram, {how}; beside it an O_DIRECT read in "
            f"order of as many bytes, best of several: {best}"
        )
        return self._row(row, rates, limits, detail, best.block_bytes)

    def _load_from_disk(self, name: str) -> float:
        before = self._engine.transfer.counters().get("loaded_disk_pages", 0)
        seconds = self._engine.load(name, self._target, self._numbers)
        loaded = self._engine.transfer.counters().get("loaded_disk_pages", 0) - before
        if loaded != self._shape.set_pages:
            raise BenchFailed(f"{loaded} of {self._shape.set_pages} pages came from the disk")
        return seconds

    def _evict_copies(self) -> str:
        self._node.client.drop_dram()
        return drop_page_cache(self._node.packs())

    def _best_write(self) -> Setting:
        if self._write_setting is None:
            path = self._scratch / "raw"
            self._write_setting = best_write(path, self._buffer, self._bytes)
        return self._write_setting

    def _raw_write(self, best: Setting) -> float:
        path = self._scratch / "raw"
        rate = raw_write(
            *(path, self._buffer, self._bytes, best.block_bytes, best.threads),
            allocated=best.allocated,
        )
        path.unlink()
        return rate

    def _next(self, numbers: Sequence[int] | None = None) -> tuple[str, list[PageKey]]:
        name = f"set {next(self._names)}"
        hashes = self._engine.hashes(name, self._numbers if numbers is None else numbers)
        return name, self._engine.keys(hashes)

    def _row(
        self,
        name: str,
        rates: Sequence[float],
        limits: Sequence[float],
        detail: str,
        block_bytes: int,
    ) -> Row:
        return ratio_row(
            f"{name}{self._shape.suffix}",
            rates,
            limits,
            ROWS[name],
            detail=detail,
            moved=Moved(self._bytes, READ_THREADS, block_bytes, self._shape.page_bytes),
        )


def run_disk(directory: Path, shape: Shape, wanted: Sequence[str], rounds: int) -> list[Row]:
    """The rows of `ROWS` that are wanted, for pages of one shape."""
    set_bytes = shape.set_pages * shape.page_bytes
    with running_node(
        directory / "disk", dram_bytes=5 * set_bytes // 2, disk_bytes=12 * set_bytes
    ) as node:
        engine = BenchEngine(node.settings.node_socket, shape.page_bytes)
        try:
            bench = DiskBench(node, engine, shape, directory)
            rows: dict[str, Callable[[int], Row]] = {
                "disk_read_verified": bench.read_verified,
                "disk_read_encrypted": bench.read_encrypted,
                "disk_write_durable": bench.write_durable,
                "durable_lag": bench.durable_lag,
            }
            return measured(rows, ROWS, wanted, rounds, shape)
        finally:
            engine.close()
