"""A medium that fails for a while: engines see misses, nothing is lost, all goes on by itself."""

from __future__ import annotations

import errno
import time
from collections import Counter
from pathlib import Path

from tests.faults.rig import Broken, Rig
from tests.integration.node.conftest import eventually, hashes_of, keys_of, load, store

FAULTS: dict[str, dict[str, int]] = {
    "full": {"write_errno": errno.ENOSPC, "space_errno": errno.ENOSPC},
    "full_now_and_then": {"write_errno": errno.ENOSPC, "per_mille": 400},
    "write_fails": {"write_errno": errno.EIO},
    "sync_fails": {"sync_errno": errno.EIO},
    "sync_fails_now_and_then": {"sync_errno": errno.EIO, "per_mille": 300},
    "read_only": {
        "write_errno": errno.EROFS,
        "space_errno": errno.EROFS,
        "open_errno": errno.EROFS,
    },
    "no_descriptors": {"open_errno": errno.EMFILE},
    "everything_now_and_then": {
        "write_errno": errno.EIO,
        "sync_errno": errno.EIO,
        "open_errno": errno.EIO,
        "space_errno": errno.EIO,
        "read_errno": errno.EIO,
        "per_mille": 300,
    },
}
_RUN = 8


def fail_repeatedly(directory: Path, seed: int, *, rounds: int) -> Counter[str]:
    """One kind of fault after another, each for a while."""
    rig = Rig(directory, seed)
    totals: Counter[str] = Counter()
    try:
        rig.start()
        rig.medium.set(seed=seed)
        base: list[int] = list(range(1_000_000, 1_000_000 + _RUN))
        _store_durably(rig, base)
        for number in range(rounds):
            name = list(FAULTS)[number % len(FAULTS)]
            _fail_for_a_while(rig, name, number, base)
            totals[name] += 1
            totals["faults"] += 1
        for counter, value in rig.agent.client().stats().items():
            if counter.startswith("refused_"):
                totals[counter] += value
    finally:
        rig.end()
    totals["loaded_pages"] = rig.loaded_pages
    return totals


def _fail_for_a_while(rig: Rig, name: str, number: int, base: list[int]) -> None:
    engine, client = rig.engine(listening=True), rig.agent.client(timeout_seconds=5.0)
    run = list(range(number * _RUN, (number + 1) * _RUN))
    client.claim(f"run-{number}", keys_of(run), time.time() + 10_000)
    rig.medium.set(**FAULTS[name])
    if not all(store(engine, run)):
        raise Broken(f"seed {rig.seed}: {name}: dram does not take pages while the disk fails")
    if "per_mille" not in FAULTS[name]:
        eventually(lambda: client.stats()["write_behind_failing"] == 1)
    client.wait_durable(keys_of(run), 0.2)
    # Whatever the disk does, what dram has is served, and nothing wrong ever is.
    rig.expect_right(load(engine, run), run)
    rig.expect_right(load(engine, base), base)
    if not rig.alive:
        raise Broken(
            f"seed {rig.seed}: {name}: the agent died\n{rig.agent.log.read_text()[-2000:]}"
        )
    client.ping()
    rig.medium.heal()
    eventually(lambda: client.wait_durable(keys_of(run), 1.0) == [], 30)
    client.drop_dram()
    for pages in (run, base):
        # A page that could not be read may have been given up: it is then stored again.
        eventually(lambda pages=pages: _come_back(rig, pages), 30)
    eventually(lambda: client.stats()["write_behind_failing"] == 0)
    eventually(lambda: client.audit().findings == [], 10)
    client.unclaim(f"run-{number}", keys_of(run))
    if engine.find(hashes_of(run)):
        raise Broken(f"seed {rig.seed}: {name}: deleted pages are still found")
    client.close()


def _store_durably(rig: Rig, numbers: list[int]) -> None:
    engine, client = rig.engine(listening=True), rig.agent.client(timeout_seconds=10.0)
    client.claim("base", keys_of(numbers), time.time() + 10_000)
    eventually(lambda: all(store(engine, numbers)))
    eventually(lambda: client.wait_durable(keys_of(numbers), 5.0) == [])
    client.close()


def _come_back(rig: Rig, numbers: list[int]) -> bool:
    engine = rig.engine(listening=True)
    pages = load(engine, numbers)
    rig.expect_right(pages, numbers)
    if None in pages:
        store(engine, numbers)
    return None not in pages
