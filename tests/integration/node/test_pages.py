"""Pages through a whole agent: stored, durable, found again after every kind of death."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agentmem.core import Tier
from agentmem.errors import NodeUnavailable
from agentmem.pages.record import HEADER_BYTES, record_bytes
from tests.integration.node.conftest import (
    AGENT,
    PAGE_BYTES,
    Agent,
    buffers_of,
    eventually,
    hashes_of,
    keys_of,
    load,
    loads_right,
    payload_of,
    store,
)

TEN = range(10)


def test_claimed_pages_become_durable_by_themselves_and_survive_a_kill(agent: Agent) -> None:
    engine, client = agent.engine(), agent.client()
    agent.keep(range(5))
    assert store(engine, TEN) == [True] * 10
    agent.keep(TEN)  # those that are there already, too
    assert engine.find(hashes_of(range(12))) == 10
    assert loads_right(engine, TEN)
    eventually(lambda: client.wait_durable(keys_of(TEN), 0) == [], 2)
    agent.kill()
    assert (engine.find(hashes_of(TEN)), load(engine, TEN)) == (0, [None] * 10)
    agent.start()
    assert client.wait_durable(keys_of(TEN), 0) == []
    assert {r.tiers for r in client.residency(keys_of(TEN))} == {frozenset({Tier.DRAM, Tier.DISK})}
    eventually(lambda: engine.find(hashes_of(TEN)) == 10)
    assert loads_right(engine, TEN)
    assert client.drop_dram().pages == 10
    assert loads_right(engine, TEN)
    assert engine.counters()["loaded_disk_pages"] == 10
    assert store(engine, range(10, 12)) == [True] * 2  # its slabs are its own as before
    assert loads_right(engine, range(12))


def test_pages_that_nothing_claims_are_cache_and_lie_in_no_pack(agent: Agent) -> None:
    engine, client = agent.engine(), agent.client()
    assert store(engine, TEN) == [True] * 10
    assert loads_right(engine, TEN)
    assert client.wait_durable(keys_of(TEN), 0.5) == list(TEN)
    agent.kill()
    agent.start()
    eventually(lambda: engine.find(hashes_of(TEN)) == 10)
    assert loads_right(engine, TEN)
    assert client.wait_durable(keys_of(TEN), 0.5) == list(TEN)
    assert not any(
        payload_of(n)[:64] in p.read_bytes()
        for p in agent.packs.glob("*")
        if p.is_file()
        for n in TEN
    )
    agent.keep(range(3))
    assert client.wait_durable(keys_of(TEN), 0.5) == list(range(3, 10))
    assert client.stats()["unclaimed_pages"] == 10
    agent.stop()  # the queue is empty: it does not wait for what nobody claims
    agent.start()
    assert [r.durable for r in client.residency(keys_of(TEN))] == [n < 3 for n in TEN]


def test_an_engine_stores_while_the_agent_is_dead(agent: Agent) -> None:
    engine, client = agent.engine(), agent.client()
    agent.keep(TEN)
    agent.kill()
    assert store(engine, TEN) == [True] * 10
    assert store(engine, TEN) == [True] * 10  # not stored twice
    assert engine.counters()["unacknowledged_pages"] == 10
    agent.start()
    assert client.wait_durable(keys_of(TEN), 10) == []
    eventually(lambda: engine.counters()["unacknowledged_pages"] == 0)
    assert loads_right(engine, TEN)
    assert engine.counters()["stored_pages"] == 10


def test_without_an_agent_there_are_misses_and_it_may_come_later(unstarted: Agent) -> None:
    engine = unstarted.engine()
    begin = time.monotonic()
    assert store(engine, TEN) == [False] * 10
    assert (engine.find(hashes_of(TEN)), load(engine, TEN)) == (0, [None] * 10)
    assert time.monotonic() - begin < 1
    unstarted.start()
    eventually(lambda: all(store(engine, TEN)))
    assert loads_right(engine, TEN)


def test_a_full_spool_refuses_and_says_so(agent: Agent) -> None:
    engine = agent.engine()
    eventually(lambda: engine.counters()["spool_slots"] > 0)
    agent.kill()
    eventually(lambda: engine.counters()["agent_silent"] == 1)
    slots = engine.counters()["spool_slots"]
    numbers = range(slots + 20)
    assert store(engine, numbers) == [number < slots for number in numbers]
    assert engine.counters()["store_refused_pages"] == 20
    agent.start()
    eventually(lambda: engine.find(hashes_of(numbers)) == slots)
    assert loads_right(engine, range(slots))


def test_an_agent_that_was_slow_once_still_grants_what_a_store_waits_for(agent: Agent) -> None:
    engine = agent.engine(store_deadline_seconds=10.0)
    agent.signal(signal.SIGSTOP)
    slots = engine.counters()["spool_slots"]
    goes_on = threading.Timer(0.6, agent.signal, (signal.SIGCONT,))
    goes_on.start()
    assert all(store(engine, range(slots + 40)))
    goes_on.join()
    assert engine.counters()["agent_silences"] == 1
    assert loads_right(engine, range(slots + 40))


def test_a_stopped_agent_costs_one_deadline_and_no_page(agent: Agent) -> None:
    engine = agent.engine(
        find_deadline_seconds=0.3, store_deadline_seconds=0.5, load_deadline_seconds=0.4
    )
    store(engine, TEN)
    calls = {
        "load": (0.4, lambda: load(engine, TEN) == [None] * 10),
        "find": (0.3, lambda: engine.find(hashes_of(TEN)) == 0),
        "store": (0.5, lambda: store(engine, range(10, 20)) == [True] * 10),
    }
    for first in calls:
        agent.signal(signal.SIGSTOP)
        for name in (first, *calls):
            deadline, miss = calls[name]
            begin = time.monotonic()
            assert miss(), name
            # The silence is known after the first call: later ones do not wait for it again.
            assert time.monotonic() - begin < (deadline if name == first else 0.1) + 0.2, name
        agent.signal(signal.SIGCONT)
        eventually(lambda: engine.find(hashes_of(range(20))) == 20)
    assert loads_right(engine, range(20))
    assert engine.counters()["agent_silences"] == 3


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_instant_nothing_durable_is_lost_and_nothing_torn_is_seen(
    agent: Agent, seed: int
) -> None:
    chance = random.Random(seed)
    engine, client = agent.engine(), agent.client()
    client.claim("all", keys_of(range(20_000)), time.time() + 1000)
    durable: set[int] = set()
    number = 0
    stopping = threading.Event()

    def watch() -> None:
        """What the agent says is durable, said before it dies."""
        while not stopping.is_set():
            asked = range(number)
            try:
                missing = set(client.wait_durable(keys_of(asked), 0.005))
            except NodeUnavailable:
                continue
            durable.update(n for n in asked if n not in missing)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(3):
            until = time.monotonic() + chance.uniform(0.02, 0.4)
            while time.monotonic() < until:
                count = chance.randint(1, 6)
                results = store(engine, range(number, number + count))
                number += results.index(False) if False in results else count
            agent.kill()
            acknowledged = set(durable)
            agent.start()
            residency = client.residency(keys_of(range(number)))
            assert all(residency[n].durable for n in acknowledged)
    finally:
        stopping.set()
        watcher.join()
    assert number > 3
    assert client.wait_durable(keys_of(range(number)), 10) == []
    client.drop_dram()
    eventually(lambda: engine.find(hashes_of(range(number))) == number)
    assert loads_right(engine, range(number))
    stats = client.stats()
    assert stats["corrupt_slot_headers"] == 0
    assert not any(value for name, value in stats.items() if name.startswith("quarantined"))


@pytest.mark.parametrize("seed", range(4, 7))
def test_what_is_durable_needs_no_shared_memory(agent: Agent, seed: int) -> None:
    """The host went down with the agent: only packs and index are left."""
    chance = random.Random(seed)
    engine, client = agent.engine(), agent.client()
    agent.keep(range(4000))
    number = 0
    until = time.monotonic() + chance.uniform(0.05, 0.4)
    while time.monotonic() < until:
        count = chance.randint(1, 8)
        assert store(engine, range(number, number + count)) == [True] * count
        number += count
    missing = set(client.wait_durable(keys_of(range(number)), 0))
    durable = [n for n in range(number) if n not in missing]
    agent.kill()
    shutil.rmtree(agent.slabs)
    agent.start()
    assert all(r.durable for r in client.residency(keys_of(durable)))
    eventually(lambda: engine.find(hashes_of([0])) == (0 in durable))
    assert loads_right(engine, durable)
    # Its slabs are gone, too: it notices, and stores into new ones.
    fresh = range(number, number + 5)
    eventually(lambda: all(store(engine, fresh)))
    assert client.wait_durable(keys_of(fresh), 5) == []
    assert loads_right(engine, fresh)


def test_flipped_bits_in_a_slab_are_a_miss_there_and_the_pack_serves_next(agent: Agent) -> None:
    engine, client = agent.engine(), agent.client()
    agent.keep(TEN)
    store(engine, TEN)
    assert client.wait_durable(keys_of(TEN), 5) == []
    damage(agent.slabs, 3)
    loaded = load(engine, TEN)
    assert loaded == [None if n == 3 else payload_of(n) for n in TEN]
    assert engine.counters()["corrupt_pages"] == 1
    stats = client.stats()
    assert (stats["corrupt_dram_pages"], stats["quarantined_dram_pages"]) == (1, 1)
    assert client.residency(keys_of([3]))[0].tiers == {Tier.DISK}
    assert loads_right(engine, TEN)


def test_flipped_bits_in_a_pack_are_a_miss_and_the_page_can_be_stored_again(agent: Agent) -> None:
    engine, client = agent.engine(), agent.client()
    agent.keep(TEN)
    store(engine, TEN)
    assert client.wait_durable(keys_of(TEN), 5) == []
    client.drop_dram()
    damage(agent.packs, 4)
    loaded = load(engine, TEN)
    assert loaded == [None if n == 4 else payload_of(n) for n in TEN]
    assert client.stats()["quarantined_disk_pages"] == 1
    assert engine.find(hashes_of(TEN)) == 4
    assert store(engine, [4]) == [True]
    assert client.wait_durable(keys_of(TEN), 5) == []
    assert loads_right(engine, TEN)


def test_a_page_that_rots_before_it_is_written_never_becomes_durable(agent: Agent) -> None:
    engine, client = agent.engine(), agent.client()
    agent.keep(TEN)
    agent.kill()
    store(engine, TEN)
    damage(agent.slabs, 5)
    agent.start()
    missing = client.wait_durable(keys_of(TEN), 1)
    assert missing == [5]
    assert client.stats()["quarantined_dram_pages"] == 1
    assert engine.find(hashes_of(TEN)) == 5


def damage(directory: Path, number: int) -> None:
    """Flips a bit in the middle of a page's payload, wherever its bytes lie below a directory."""
    hits = 0
    for path in directory.iterdir():
        if not path.is_file():
            continue
        raw = path.read_bytes()
        at = raw.find(payload_of(number)[:64])
        if at >= 0:
            with path.open("r+b") as file:
                file.seek(at + PAGE_BYTES // 2)
                file.write(bytes([raw[at + PAGE_BYTES // 2] ^ 1]))
            hits += 1
    assert hits == 1


def test_a_clean_stop_makes_the_queue_durable(agent: Agent) -> None:
    engine = agent.engine()
    agent.keep(range(30))
    store(engine, range(30))
    agent.stop()
    size = sum(path.stat().st_size for path in agent.packs.glob("pack-*"))
    assert size == HEADER_BYTES + 30 * record_bytes(PAGE_BYTES)
    assert not agent.socket.exists()
    agent.start()
    assert agent.client().stats()["disk_pages"] == 30


def test_a_clean_stop_without_engines_leaves_no_shared_memory(agent: Agent) -> None:
    engine, other = agent.engine(), agent.engine("other")
    agent.keep(TEN)
    store(engine, TEN)
    engine.close()
    agent.stop()
    assert len(list(agent.slabs.iterdir())) >= 1  # the other engine lives on
    agent.start()
    eventually(lambda: other.find(hashes_of(TEN)) == 10)
    other.close()
    agent.stop()
    assert not agent.slabs.exists()
    agent.start()
    assert loads_right(agent.engine(), TEN)


def test_a_second_agent_is_refused_the_directory(agent: Agent) -> None:
    env = {**os.environ, "AGENTMEM_DATA_DIR": str(agent.data_dir)}
    other = subprocess.run(
        [sys.executable, "-c", AGENT], env=env, capture_output=True, text=True, check=False
    )
    assert other.returncode != 0
    assert "another node agent owns" in other.stderr
    agent.client().ping()


def test_store_needs_the_right_sizes(agent: Agent) -> None:
    engine = agent.engine()
    buffers = buffers_of(TEN)
    buffers[2] = buffers[2][:1]
    assert engine.store(hashes_of(TEN), buffers) == [n != 2 for n in TEN]
    assert engine.find(hashes_of(TEN)) == 2
    small = [[memoryview(bytearray(10))] for _ in range(2)]
    assert engine.load(hashes_of(range(2)), small) == [False] * 2
    assert engine.store([b"short"], buffers_of([1])) == [False]  # type: ignore[list-item]
    assert engine.find([b"short"]) == 0  # type: ignore[list-item]
    assert engine.store([], []) == []
