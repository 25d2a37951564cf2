"""The store bench, small: it runs, and its rows say what they should."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agentmem.bench import (
    limits,
    store,
    store_disk,
    store_dram,
    store_index,
    store_object,
    store_system,
)
from agentmem.bench.limits import MIB, Memory, Setting, raw_read, raw_write
from agentmem.bench.report import Goal, missing_row, ratio_row, report, table
from agentmem.bench.store_system import HostPool, Shape
from agentmem.errors import InvalidRequest

TINY = Shape("tiny", "", 65_536, 24)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "READ_BLOCKS", (MIB,))
    monkeypatch.setattr(limits, "WRITE_BLOCKS", (MIB,))
    monkeypatch.setattr(limits, "THREADS", (2,))
    monkeypatch.setattr(store_disk, "_BUFFER_BYTES", 16 * MIB)
    monkeypatch.setattr(store_disk, "_TURNS_PER_ROUND", 3)
    monkeypatch.setattr(store_index, "_CALLS", {128: 20, 2048: 10})
    monkeypatch.setattr(store, "SHAPES", {"65536": TINY})


async def test_every_row_of_the_tiers_is_measured(tmp_path: Path) -> None:
    wanted = (*store_dram.ROWS, *store_disk.ROWS, *store_object.ROWS)
    result = await asyncio.to_thread(
        store.run_store_bench, rows=wanted, rounds=1, directory=tmp_path
    )
    rows = {row["name"]: row for row in result["results"]}
    assert list(rows) == list(wanted)
    for name, row in rows.items():
        assert row["why"] == "", name
        assert row["value"] > 0
        assert row["limit"] > 0
        assert row["page_bytes"] == TINY.page_bytes
    assert "disk_read_verified" in table(result)
    assert not list(tmp_path.iterdir())


async def test_finding_and_the_index_are_measured(tmp_path: Path) -> None:
    found = await asyncio.to_thread(store_index.run_find, tmp_path, ["find_128"], 1)
    assert [row.name for row in found] == [
        "find_128",
        "find_128_p99",
        "find_128_storing",
        "find_128_storing_p99",
    ]
    rows = await asyncio.to_thread(store_index.run_index, tmp_path, 1, 3000)
    assert [row.name for row in rows] == list(store_index.INDEX_GOALS)
    assert all(row.value is not None for row in rows)
    assert not list(tmp_path.iterdir())


async def test_a_part_that_fails_gives_rows_that_say_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> list[object]:
        raise store_system.BenchFailed("there is no disk")

    monkeypatch.setattr(store_disk, "run_disk", fails)
    result = await asyncio.to_thread(
        store.run_store_bench, rows=["durable_lag"], rounds=1, directory=tmp_path
    )
    (row,) = result["results"]
    assert (row["name"], row["value"], row["met"]) == ("durable_lag", None, False)
    assert row["why"] == "there is no disk"


def test_unknown_rows_and_sizes_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="no such row: speed"):
        store.run_store_bench(rows=["speed"])
    with pytest.raises(InvalidRequest, match="not 5"):
        store.run_store_bench(rows=["dram_read"], page_bytes="5")


def test_pages_of_a_pool_differ_and_are_compared_whole() -> None:
    one, other = HostPool(3, 8192), HostPool(3, 8192)
    one.fill()
    other.fill()
    assert one.equals(other)
    assert bytes(one.page(0)[0]) != bytes(one.page(1)[0])
    other.page(2)[1][2000] ^= 1
    assert not one.equals(other)


def test_a_raw_read_gives_what_was_written(tmp_path: Path) -> None:
    source, target = Memory(4 * MIB), Memory(4 * MIB)
    source.fill(bytes(range(256)) * 4096)
    assert raw_write(tmp_path / "raw", source, 4 * MIB, MIB, 2) > 0
    assert raw_read(tmp_path / "raw", target, 4 * MIB, MIB, 2) > 0
    assert source.equals(target)
    with pytest.raises(OSError, match="shorter"):
        raw_read(tmp_path / "raw", target, 8 * MIB, MIB, 2)


def test_a_ratio_is_what_is_compared_and_a_missing_row_is_not_met() -> None:
    goal = Goal("GB/s", 0.6)
    row = ratio_row("read", [5.0, 7.0, 6.0], [10.0, 10.0, 10.0], goal, detail="")
    assert (row.ratio, row.ratio_spread, row.value, row.met) == (0.6, (0.5, 0.7), 6.0, True)
    slow = ratio_row("read", [5.0], [10.0], goal, detail="")
    assert not slow.met
    missing = missing_row("read", "no disk", goal)
    assert not missing.met
    assert "not measured: no disk" in table(report([missing], rounds=1))
    assert str(Setting(MIB, 4, 2e9)) == "2.00 GB/s with 1 MiB x 4"
