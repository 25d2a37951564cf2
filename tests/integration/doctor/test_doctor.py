"""`agentmem doctor` on a real node: with its agent running, stopped, and silent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmem.pages.record import record_bytes
from agentmem.store.pack import PACK_HEADER_BYTES
from tests.integration.node.conftest import (
    PAGE_BYTES,
    Agent,
    eventually,
    keys_of,
    load,
    loads_right,
    payload_of,
    store,
)

PAGES = range(12)
RECORD = record_bytes(PAGE_BYTES)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(tmp_path)
    agent.env = {"AGENTMEM_DRAM_BYTES": str(64 << 20), "AGENTMEM_DISK_BYTES": str(64 << 20)}
    agent.start()
    try:
        engine, client = agent.engine(), agent.client()
        agent.keep(PAGES)
        assert store(engine, PAGES) == [True] * len(PAGES)
        assert client.wait_durable(keys_of(PAGES), 10) == []
        client.drop_dram()
        yield agent
    finally:
        agent.end()


def examine(agent: Agent, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "agentmem", "doctor", "--json", *arguments],
        env={**os.environ, "AGENTMEM_DATA_DIR": str(agent.data_dir), **agent.env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def check(report: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [each for each in report["checks"] if each["name"] == name]
    return found


def pack_of(agent: Agent) -> Path:
    (pack,) = agent.packs.glob("pack-*")
    return pack


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def stop(agent: Agent) -> None:
    for transfer in agent._transfers:
        transfer.close()
    agent.stop()


@pytest.mark.parametrize("running", [True, False])
def test_a_flipped_byte_is_reported_as_that_page_and_only_once(agent: Agent, running: bool) -> None:
    if not running:
        stop(agent)
    assert examine(agent, "--verify")[0] == 0
    pack = pack_of(agent)
    numbers = {key.hex(): number for number, key in enumerate(keys_of(PAGES))}
    flip(pack, PACK_HEADER_BYTES + 5 * RECORD + 9_000)
    code, report = examine(agent, "--verify")
    assert (code, report["healthy"]) == (1, False)
    (bad,) = report["bad_pages"]
    assert (bad["tier"], bad["path"], bad["repaired"]) == ("disk", str(pack), True)
    assert bad["offset"] == PACK_HEADER_BYTES + 5 * RECORD
    assert numbers[bad["key"]] == 5
    code, report = examine(agent, "--verify")
    assert (code, report["healthy"], report["bad_pages"]) == (0, True, [])
    assert check(report, "checksums_disk")["values"]["pages"] == len(PAGES) - 1
    if not running:
        agent.start()
    engine = agent.engine()
    assert load(engine, PAGES)[:6] == [*(payload_of(n) for n in range(5)), None]
    assert store(engine, [5]) == [True]
    assert agent.client().wait_durable(keys_of(PAGES), 10) == []
    assert loads_right(engine, PAGES)


def test_a_page_in_dram_is_checked_too(agent: Agent) -> None:
    engine = agent.engine()
    more = range(20, 25)
    assert store(engine, more) == [True] * 5  # cache only: nothing claims these
    found = [
        (slab, offset)
        for slab in agent.slabs.glob("slab-*")
        if (offset := slab.read_bytes().find(payload_of(22)[:64])) >= 0
    ]
    ((slab, offset),) = found
    flip(slab, offset + 100)
    code, report = examine(agent, "--verify")
    assert code == 1
    assert [(bad["tier"], bad["path"]) for bad in report["bad_pages"]] == [("dram", str(slab))]
    assert examine(agent, "--verify")[0] == 0
    assert load(engine, [22]) == [None]


def test_bytes_that_nothing_refers_to_are_destroyed_and_an_old_records_page_stays_gone(
    agent: Agent,
) -> None:
    pack = pack_of(agent)
    copy = pack.read_bytes()
    client = agent.client()
    client.unclaim("session", keys_of([3]))
    record = copy[PACK_HEADER_BYTES + 3 * RECORD :][:RECORD]
    with pack.open("r+b") as file:  # as if the deletion had never reached the medium
        file.seek(PACK_HEADER_BYTES + 3 * RECORD)
        file.write(record)
    code, report = examine(agent)
    assert code == 1
    assert "destroyed" in check(report, "index")["repairs"][0]
    assert payload_of(3)[:64] not in pack.read_bytes()
    assert examine(agent)[0] == 0
    assert load(agent.engine(), [3]) == [None]


def test_a_claimed_page_that_the_index_lost_is_taken_in_again(agent: Agent) -> None:
    pack = pack_of(agent)
    stop(agent)
    record = pack.read_bytes()[PACK_HEADER_BYTES + 7 * RECORD :][:RECORD]
    flip(pack, PACK_HEADER_BYTES + 7 * RECORD + 9_000)
    assert examine(agent, "--verify")[0] == 1  # quarantined: the index has it no more
    assert examine(agent)[0] == 0  # and by now its bytes are destroyed for sure
    with pack.open("r+b") as file:
        file.seek(PACK_HEADER_BYTES + 7 * RECORD)
        file.write(record)
    code, report = examine(agent)
    assert code == 1
    assert "1 claimed pages taken in" in check(report, "index")["repairs"][0]
    assert examine(agent, "--verify")[0] == 0
    agent.start()
    assert loads_right(agent.engine(), PAGES)


def test_a_torn_tail_is_cut_off(agent: Agent) -> None:
    stop(agent)
    pack = pack_of(agent)
    size = PACK_HEADER_BYTES + len(PAGES) * RECORD
    with pack.open("r+b") as file:
        file.seek(size)
        file.write(b"torn" * 5000)
    code, report = examine(agent)
    assert code == 1
    assert check(report, "node")["values"]["cut_bytes"] >= 20_000
    assert pack.stat().st_size == size
    assert examine(agent)[0] == 0


def test_an_owner_that_does_not_answer_means_that_nothing_could_be_checked(agent: Agent) -> None:
    agent.signal(signal.SIGSTOP)
    code, report = examine(agent)
    assert code == 2
    assert check(report, "node")["status"] == "failed"
    agent.signal(signal.SIGCONT)
    eventually(lambda: examine(agent)[0] == 0)


def test_where_no_agent_ran_there_is_nothing_to_check(tmp_path: Path) -> None:
    code, report = examine(Agent(tmp_path / "nowhere"))
    assert (code, report["healthy"]) == (2, False)
