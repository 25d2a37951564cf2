"""Engines that die while they store: a page is whole or not there."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from tests.faults.rig import Broken, Rig
from tests.integration.node.conftest import eventually, keys_of, load

_STORING = """
import sys
from pathlib import Path
from tests.integration.node.conftest import Agent, store
agent = Agent(Path(sys.argv[1]))
engine = agent.engine(sys.argv[2], slots=0)
print("ready", flush=True)
first = int(sys.argv[3])
while True:
    stored = store(engine, range(first, first + 4))
    print(first, int(all(stored)), flush=True)
    first += 4
"""


def kill_engines_repeatedly(directory: Path, seed: int, *, kills: int) -> Counter[str]:
    """Kills engines at random instants; what they were told is stored is there and right."""
    rig = Rig(directory, seed, AGENTMEM_DRAM_BYTES=str(256 << 20))
    totals: Counter[str] = Counter()
    try:
        rig.start()
        for number in range(kills):
            first = 10_000 * number
            accepted = _store_until_killed(rig, number, first)
            _check(rig, list(range(first, first + 4 * len(accepted) + 8)), accepted)
            totals["kills"] += 1
            totals["accepted_pages"] += 4 * sum(accepted)
    finally:
        rig.end()
    totals["loaded_pages"] = rig.loaded_pages
    return totals


def _store_until_killed(rig: Rig, number: int, first: int) -> list[bool]:
    """For each batch of four that the engine finished, whether it was told that all are stored."""
    child = subprocess.Popen(
        [sys.executable, "-c", _STORING, str(rig.agent.data_dir), f"doomed-{number}", str(first)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
    )
    assert child.stdout is not None
    with child.stdout as told:
        if told.readline() != b"ready\n":
            raise Broken(f"seed {rig.seed}: the engine did not start")
        time.sleep(rig.dice.uniform(0.0, 0.2))
        child.kill()
        lines = told.read().splitlines()
    child.wait()
    whole = [line.split() for line in lines]
    return [line[1] == b"1" for line in whole if len(line) == 2]


def _check(rig: Rig, numbers: list[int], accepted: list[bool]) -> None:
    engine, client = rig.engine(listening=True), rig.agent.client(timeout_seconds=20.0)
    sure = [n for n, at in zip(numbers, range(len(numbers)), strict=True) if _is(accepted, at // 4)]
    eventually(lambda: not any(client.missing(keys_of(sure))), 20)
    for number in numbers:
        rig.expect_right(load(engine, [number]), [number])
    after = b""
    while True:
        reply = client.verify("dram", after)
        if reply.bad:
            raise Broken(f"seed {rig.seed}: half-written pages were visible: {reply.bad}")
        after = reply.after
        if not after:
            break
    if client.stats()["corrupt_slot_headers"]:
        raise Broken(f"seed {rig.seed}: half-written headers were committed")
    client.close()


def _is(accepted: list[bool], batch: int) -> bool:
    return batch < len(accepted) and accepted[batch]
