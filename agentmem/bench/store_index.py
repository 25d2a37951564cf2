"""Rows of the agent's tables: how fast pages are found, and what a million of them take."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from agentmem.bench.limits import drop_page_cache, quantile
from agentmem.bench.report import Goal, Row, row_of
from agentmem.bench.store_system import (
    SMOLLM2,
    BenchEngine,
    BenchFailed,
    HostPool,
    Node,
    claim,
    running_node,
    wait_durable,
)

FIND_GOALS = {
    "find_128": Goal("ms", 0.5, more=False),
    "find_128_p99": Goal("ms", 2.0, more=False),
    "find_128_storing": Goal("ms", 0.5, more=False),
    "find_128_storing_p99": Goal("ms", 10.0, more=False),
    "find_2048": Goal("ms", 3.0, more=False),
}
INDEX_GOALS = {
    "index_1m_ram": Goal("bytes a page", 200.0, more=False),
    "index_1m_start": Goal("s", 10.0, more=False),
    "index_1m_restart": Goal("s", 30.0, more=False),
}
INDEX_PAGES = 1_000_000
_PAGE_BYTES = 4096
_RECORD_BYTES = 2 * _PAGE_BYTES
_CALLS = {128: 1000, 2048: 200}
_PINGS = 500
_CLAIMED_PAGES = 2048
_CHUNK_PAGES = 16 * _CLAIMED_PAGES
_MILLISECONDS = 1000.0
_PEER_SECONDS_MAX = 120.0


def run_find(directory: Path, wanted: Sequence[str], rounds: int) -> list[Row]:
    """Rows of `FIND_GOALS`: a client process asks, alone and while another one stores."""
    counts = [count for count in _CALLS if f"find_{count}" in wanted]
    with running_node(directory / "find", dram_bytes=2 << 30, disk_bytes=4 << 30) as node:
        engine = BenchEngine(node.settings.node_socket, _PAGE_BYTES)
        pool = HostPool(max(counts), _PAGE_BYTES)
        pool.fill()
        engine.store("found", pool, range(max(counts)))
        claim(node, "found", engine.keys(engine.hashes("found", range(max(counts)))))
        rows = [row for count in counts for row in _find_rows(node, count, rounds)]
        engine.close()
        return rows


def _find_rows(node: Node, count: int, rounds: int) -> list[Row]:
    alone, storing, pings, rates = [], [], [], []
    for _ in range(rounds):
        pings.append(_ping_milliseconds(node))
        alone.append(_ask(node, count))
        with _storing(node) as rate:
            storing.append(_ask(node, count))
        rates.append(rate[0] / 1e9)
    base = (
        f"{count} keys in one call by another process, {_CALLS[count]} calls a round; beside it an "
        "empty call"
    )
    busy = f"{base}; a third process stores {statistics.median(rates):.2f} GB/s, claimed"
    limit = statistics.median(pings)
    made = []
    for name, seconds, share, words in (
        (f"find_{count}", alone, 0.5, f"p50 of {base}"),
        (f"find_{count}_p99", alone, 0.99, f"p99 of {base}"),
        (f"find_{count}_storing", storing, 0.5, f"p50 of {busy}"),
        (f"find_{count}_storing_p99", storing, 0.99, f"p99 of {busy}"),
    ):
        if name in FIND_GOALS:
            values = [quantile(one, share) * _MILLISECONDS for one in seconds]
            target = FIND_GOALS[name].target
            made.append(row_of(name, values, unit="ms", limit=limit, target=target, detail=words))
    return made


def _ping_milliseconds(node: Node) -> float:
    seconds = []
    for _ in range(_PINGS):
        begun = time.perf_counter()
        node.client.ping()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds) * _MILLISECONDS


def _ask(node: Node, count: int) -> list[float]:
    """Seconds of each call of a client process."""
    arguments = ["find", str(node.settings.node_socket), str(_PAGE_BYTES), "found", str(count)]
    command = _peer([*arguments, str(_CALLS[count])])
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=_PEER_SECONDS_MAX, check=False
    )
    if run.returncode != 0:
        raise BenchFailed(f"the asking process failed: {run.stderr[-800:]}")
    answer: list[float] = json.loads(run.stdout)
    return answer


@contextmanager
def _storing(node: Node) -> Iterator[list[float]]:
    """A process that stores at full speed; afterwards the list holds its bytes per second."""
    rate: list[float] = []
    command = _peer(["store", str(node.settings.node_socket), str(SMOLLM2.page_bytes)])
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None, "it was started with pipes"
        assert process.stdout is not None, "it was started with pipes"
        try:
            if process.stdout.readline() != "ready\n":
                raise BenchFailed("the storing process did not start")
            time.sleep(0.5)
            yield rate
            process.stdin.close()
            rate.append(float(process.stdout.readline()))
        finally:
            process.kill()


def _peer(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "agentmem.bench.store_peers", str(os.getpid()), *arguments]


@dataclass(slots=True)
class _Starts:
    """Seconds of starts, and memory after clean ones; first those of an empty agent."""

    empty_start: float
    empty: dict[str, int]
    clean: list[float] = field(default_factory=list)
    killed: list[float] = field(default_factory=list)
    memory: list[dict[str, int]] = field(default_factory=list)


def run_index(directory: Path, rounds: int, pages: int = INDEX_PAGES) -> list[Row]:
    """The rows of `INDEX_GOALS`: memory per page, a clean start, a start after kill -9."""
    empty = Node(directory / "index-empty", dram_bytes=1 << 30, disk_bytes=1 << 30)
    full = Node(
        directory / "index", dram_bytes=1 << 30, disk_bytes=pages * _RECORD_BYTES + (4 << 30)
    )
    try:
        seen = _Starts(_start_cold(empty), empty.memory_bytes())
        empty.kill()
        filled = _fill(full, pages)
        how = ""
        for _ in range(rounds):
            full.stop()
            how = drop_page_cache(full.packs())
            seen.clean.append(_start_cold(full))
            seen.memory.append(full.memory_bytes())
            _check(full, pages)
            _store_some(full)
            full.kill()
            drop_page_cache(full.packs())
            seen.killed.append(_start_cold(full))
            _check(full, pages)
    finally:
        for node in (empty, full):
            node.kill()
            node.remove()
    detail = (
        f"{pages} durable, claimed pages of {_PAGE_BYTES} bytes, stored through the agent at "
        f"{pages / filled:.0f} a second; {how} before each start"
    )
    return _index_rows(pages, detail, seen)


def _index_rows(pages: int, detail: str, seen: _Starts) -> list[Row]:
    def per_page(kinds: Sequence[str]) -> list[float]:
        before = sum(seen.empty[kind] for kind in kinds)
        return [(sum(one[kind] for kind in kinds) - before) / pages for one in seen.memory]

    held, whole = per_page(("RssAnon", "RssShmem")), per_page(("VmRSS",))
    mapped = statistics.median(whole) - statistics.median(held)
    ram = row_of(
        "index_1m_ram",
        held,
        unit=INDEX_GOALS["index_1m_ram"].unit,
        limit=statistics.median(whole),
        target=INDEX_GOALS["index_1m_ram"].target,
        detail=(
            f"resident memory of the agent over that of an empty one, by pages; beside it with the "
            f"index file's mapping, whose {mapped:.0f} bytes a page are page cache; {detail}"
        ),
    )
    starts = []
    for name, seconds, words in (
        ("index_1m_start", seen.clean, "process start to first answer"),
        (
            "index_1m_restart",
            seen.killed,
            "the same after a kill -9 mid-store",
        ),
    ):
        starts.append(
            row_of(
                name,
                seconds,
                unit="s",
                limit=seen.empty_start,
                target=INDEX_GOALS[name].target,
                detail=f"{words}; beside it an empty agent; {detail}",
            )
        )
    stored = pages * _PAGE_BYTES
    return [replace(row, bytes=stored, page_bytes=_PAGE_BYTES) for row in (ram, *starts)]


def _start_cold(node: Node) -> float:
    return node.start(timeout_seconds=600.0)


def _fill(node: Node, pages: int) -> float:
    """Stores and claims all pages. Returns seconds."""
    node.start()
    engine = BenchEngine(node.settings.node_socket, _PAGE_BYTES)
    pool = HostPool(_CLAIMED_PAGES, _PAGE_BYTES)
    pool.fill()
    begun = time.perf_counter()
    for chunk in range(0, pages, _CHUNK_PAGES):
        chunk_keys = []
        for first in range(chunk, min(pages, chunk + _CHUNK_PAGES), _CLAIMED_PAGES):
            name, numbers = f"session {first}", range(min(_CLAIMED_PAGES, pages - first))
            keys = engine.keys(engine.hashes(name, numbers))
            claim(node, name, keys)
            engine.store(name, pool, numbers)
            chunk_keys += keys
        for at in range(0, len(chunk_keys), _CLAIMED_PAGES):
            wait_durable(node, chunk_keys[at : at + _CLAIMED_PAGES], 600.0)
    engine.close()
    return time.perf_counter() - begun


def _store_some(node: Node) -> None:
    """Pages that are being written when the agent is killed."""
    engine = BenchEngine(node.settings.node_socket, _PAGE_BYTES)
    pool = HostPool(_CLAIMED_PAGES, _PAGE_BYTES)
    name = f"late {time.time_ns()}"
    claim(node, name, engine.keys(engine.hashes(name, range(_CLAIMED_PAGES))))
    engine.store(name, pool, range(_CLAIMED_PAGES))
    engine.close()


def _check(node: Node, pages: int) -> None:
    """The first and the last session are found whole."""
    engine = BenchEngine(node.settings.node_socket, _PAGE_BYTES)
    for first in (0, (pages - 1) // _CLAIMED_PAGES * _CLAIMED_PAGES):
        count = min(_CLAIMED_PAGES, pages - first)
        found = engine.transfer.find(engine.hashes(f"session {first}", range(count)))
        if found != count:
            raise BenchFailed(f"{found} of {count} pages of session {first} were found")
    engine.close()
