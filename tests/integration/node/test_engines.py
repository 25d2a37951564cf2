"""Several engines on one agent, dead ones, and budgets that are too small for them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from agentmem.pages.record import record_bytes
from agentmem.pages.slab import AGENT_OWNER, decode_slab_header
from tests.integration.node.conftest import (
    PAGE_BYTES,
    Agent,
    eventually,
    hashes_of,
    keys_of,
    loads_right,
    store,
)

TEN = range(10)


def test_two_engines_share_what_either_stored(agent: Agent) -> None:
    one, two, client = agent.engine("one"), agent.engine("two"), agent.client()
    store(one, TEN)
    assert store(two, range(5, 15)) == [True] * 10
    assert two.counters()["store_held_pages"] == 5
    assert loads_right(two, range(15))
    assert loads_right(one, range(15))
    assert client.stats()["stored_duplicate_pages"] == 0


def test_of_two_engines_that_stored_alike_unseen_the_first_copy_stays(agent: Agent) -> None:
    one, two, client = agent.engine("one"), agent.engine("two"), agent.client()
    agent.signal(signal.SIGSTOP)
    assert store(one, TEN) == [True] * 10
    assert store(two, TEN) == [True] * 10
    agent.signal(signal.SIGCONT)
    for engine in (one, two):
        eventually(lambda engine=engine: engine.counters()["unacknowledged_pages"] == 0)
    assert client.stats()["stored_duplicate_pages"] == 10
    assert client.stats()["dram_pages"] == 10
    assert loads_right(two, TEN)


ENGINE = """
import sys
from pathlib import Path
from tests.integration.node.conftest import Agent, eventually, store
agent = Agent(Path(sys.argv[1]))
engine = agent.engine("doomed")
eventually(lambda: engine.counters()["spool_free_slots"] >= 36)
store(engine, range(5))
engine._feeder.announce = lambda *a, **k: set()  # from here on it tells the agent nothing
print(store(engine, range(5, 10)), flush=True)
sys.stdin.read()
"""


def test_a_dead_engines_slabs_are_adopted_with_all_its_pages(agent: Agent) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", ENGINE, str(agent.data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"[True, True, True, True, True]\n"
    engine, client = agent.engine(), agent.client()
    agent.keep(TEN)
    assert engine.find(hashes_of(TEN)) == 5
    child.kill()
    child.communicate()
    eventually(lambda: engine.find(hashes_of(TEN)) == 10)
    assert client.wait_durable(keys_of(TEN), 5) == []
    assert loads_right(engine, TEN)
    adopted = client.stats()["slabs_adopted"]
    assert adopted >= 2
    assert slabs_of_nobody(agent) > 0
    client.drop_dram()
    eventually(lambda: slabs_of_nobody(agent) == 0)


def slabs_of_nobody(agent: Agent) -> int:
    """Slabs that no engine owns any more."""
    found = 0
    for path in agent.slabs.glob("slab-??????"):
        with suppress(FileNotFoundError):  # deleted meanwhile
            header = decode_slab_header(path.read_bytes()[:4096])
            found += header.owner_engine_id == AGENT_OWNER
    return found


def test_a_small_dram_budget_evicts_what_is_durable(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    agent.env = {"AGENTMEM_DRAM_BYTES": str(3 << 20)}
    agent.start()
    try:
        engine, client = agent.engine(), agent.client()
        agent.keep(range(200))
        for start in range(0, 200, 10):
            assert store(engine, range(start, start + 10)) == [True] * 10
        assert client.wait_durable(keys_of(range(200)), 5) == []
        stats = client.stats()
        assert stats["dram_reserved_bytes"] <= 3 << 20
        assert stats["evicted_dram_pages"] >= 146
        assert stats["evicted_undurable_pages"] == 0
        assert loads_right(engine, range(200))
    finally:
        agent.end()


def test_a_small_dram_budget_holds_the_newest_of_what_nothing_claims(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    agent.env = {"AGENTMEM_DRAM_BYTES": str(3 << 20)}
    agent.start()
    try:
        engine, client = agent.engine(), agent.client()
        agent.keep(TEN)
        for start in range(0, 200, 10):
            assert store(engine, range(start, start + 10)) == [True] * 10
        assert client.wait_durable(keys_of(TEN), 5) == []
        stats = client.stats()
        assert stats["evicted_unclaimed_pages"] >= 136
        assert (stats["evicted_undurable_pages"], stats["disk_pages"]) == (0, 10)
        assert loads_right(engine, [*TEN, *range(190, 200)])
    finally:
        agent.end()


def test_an_engine_that_comes_late_gets_its_share(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    agent.env = {"AGENTMEM_DRAM_BYTES": str(6 << 20)}
    agent.start()
    try:
        one, client = agent.engine("one"), agent.client()
        agent.keep(range(500))
        for start in range(0, 200, 10):
            assert store(one, range(start, start + 10)) == [True] * 10
        assert client.wait_durable(keys_of(range(200)), 5) == []
        assert client.stats()["dram_reserved_bytes"] > 4.9 * 2**20
        two = agent.engine("two")
        for start in range(200, 300, 10):
            eventually(lambda start=start: all(store(two, range(start, start + 10))), 5)
            eventually(lambda start=start: all(store(one, range(start + 200, start + 210))), 5)
        assert client.stats()["slabs_asked_back"] >= 2
        assert one.counters()["slabs_given_back"] >= 2
        assert client.wait_durable(keys_of([*range(300), *range(400, 500)]), 5) == []
        assert loads_right(one, [*range(300), *range(400, 500)])
        given_back = one.counters()["slabs_given_back"]
        time.sleep(1.5)  # an even share is not passed to and fro
        assert one.counters()["slabs_given_back"] + two.counters().get("slabs_given_back", 0) == (
            given_back
        )
    finally:
        agent.end()


def test_a_budget_below_one_slab_gives_smaller_ones(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    agent.env = {"AGENTMEM_DRAM_BYTES": str(400_000)}
    agent.start()
    try:
        engine, client = agent.engine(slots=1), agent.client()
        agent.keep(range(20))
        for number in range(20):
            assert store(engine, [number]) == [True]
        assert client.wait_durable(keys_of(range(20)), 5) == []
        assert client.stats()["dram_reserved_bytes"] <= 400_000
        assert loads_right(engine, range(20))
    finally:
        agent.end()


def test_a_disk_that_takes_nothing_costs_pages_but_no_engine(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    agent.env = {
        "AGENTMEM_DRAM_BYTES": str(3 << 20),
        "AGENTMEM_DISK_BYTES": str(5 * record_bytes(PAGE_BYTES)),
    }
    agent.start()
    try:
        engine, client = agent.engine(), agent.client()
        client.claim("all", keys_of(range(200)), time.time() + 100)
        stored = [store(engine, range(start, start + 10)) for start in range(0, 100, 10)]
        stats = client.stats()
        assert stats["disk_pages"] <= 5
        assert stats["refused_disk_budget"] >= 1
        assert stats["evicted_undurable_pages"] >= 1
        assert all(stored[-1])
        assert loads_right(engine, range(90, 100))
        assert client.wait_durable(keys_of(range(100)), 0.1) != []
    finally:
        agent.end()
