"""A medium that fails costs misses; storing goes on by itself when it is well again."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from tests.faults.media import FAULTS, fail_repeatedly
from tests.faults.rig import Rig
from tests.integration.node.conftest import eventually, keys_of, load, loads_right, store


def test_every_kind_of_failing_medium(tmp_path: Path) -> None:
    totals = fail_repeatedly(tmp_path, 1, rounds=len(FAULTS))
    assert totals["faults"] == len(FAULTS)
    for reason in ("disk_full", "disk_failed", "disk_read_only", "no_descriptors"):
        assert totals[f"refused_{reason}"] >= 1, totals


def test_an_engine_without_descriptors_misses_and_reads_again_later(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 1)
    try:
        rig.start()
        engine, client = rig.engine(), rig.agent.client()
        rig.agent.keep(range(5))
        assert store(engine, range(5)) == [True] * 5
        assert client.wait_durable(keys_of(range(5)), 10) == []
        client.drop_dram()
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free_descriptor(), before[1]))
        try:
            assert load(engine, range(5)) == [None] * 5
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        eventually(lambda: loads_right(engine, range(5)))
    finally:
        rig.end()


def lowest_free_descriptor() -> int:
    fd = os.open("/dev/null", os.O_RDONLY)
    os.close(fd)
    return fd
