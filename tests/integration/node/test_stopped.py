"""The agent stopped (SIGSTOP) at bad moments and continued: misses in time, no late write."""

from __future__ import annotations

import random
import signal
import threading
import time

import pytest

from agentmem.node.transfer import PageTransfer
from tests.integration.node.conftest import (
    PAGE_BYTES,
    Agent,
    eventually,
    hashes_of,
    keys_of,
    loads_right,
    payload_of,
    store,
)

MANY = range(16)
SCRIBBLE = bytes(PAGE_BYTES - 1) + b"\x01"
# How late a call may be beyond its deadlines on a busy machine.
SLACK_SECONDS = 5.0


def impatient(agent: Agent) -> PageTransfer:
    return agent.engine(
        find_deadline_seconds=0.2, store_deadline_seconds=0.5, load_deadline_seconds=0.5
    )


@pytest.mark.parametrize("tier", ["dram", "disk"])
@pytest.mark.parametrize("seed", range(4))
def test_stopped_amid_loads_no_byte_lands_in_memory_with_a_new_owner(
    agent: Agent, tier: str, seed: int
) -> None:
    chance = random.Random(seed)
    engine, client = impatient(agent), agent.client()
    if tier == "disk":
        agent.keep(MANY)
    store(engine, MANY)
    if tier == "disk":
        assert client.wait_durable(keys_of(MANY), 10) == []
        client.drop_dram()
    targets = [bytearray(PAGE_BYTES) for _ in MANY]
    buffers = [[memoryview(target)] for target in targets]
    stopping = threading.Timer(chance.uniform(0, 0.01), agent.signal, [signal.SIGSTOP])
    stopping.start()
    longest = served = 0.0
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        begin = time.monotonic()
        results = engine.load(hashes_of(MANY), buffers)
        longest = max(longest, time.monotonic() - begin)
        for number, target, good in zip(MANY, targets, results, strict=True):
            served += good
            assert not good or bytes(target) == payload_of(number)
        # The call has returned: the memory belongs to somebody else from now on.
        for target in targets:
            target[:] = SCRIBBLE
    stopping.join()
    agent.signal(signal.SIGCONT)
    assert longest < 0.5 + SLACK_SECONDS, "a stopped agent stalls nobody beyond the deadline"
    client.ping()
    eventually(lambda: client.stats()["read_holds"] == 0)
    assert [bytes(target) for target in targets] == [SCRIBBLE] * len(targets)
    counters = engine.counters()
    assert not counters.get("load_failed"), "misses, not errors"
    eventually(lambda: loads_right(engine, MANY))


@pytest.mark.parametrize("seed", range(4))
def test_stopped_amid_stores_the_engine_goes_on_and_no_page_is_torn(
    agent: Agent, seed: int
) -> None:
    chance = random.Random(seed)
    engine, client = impatient(agent), agent.client()
    stopping = threading.Timer(chance.uniform(0, 0.02), agent.signal, [signal.SIGSTOP])
    stopping.start()
    safe: list[int] = []
    for first in range(0, 32, 4):
        numbers = range(first, first + 4)
        begin = time.monotonic()
        results = store(engine, numbers)
        assert time.monotonic() - begin < 0.5 + SLACK_SECONDS
        safe += [number for number, kept in zip(numbers, results, strict=True) if kept]
    stopping.join()
    assert safe, "what fits in the spool is safe without the agent"
    begin = time.monotonic()
    assert engine.find(hashes_of([1000])) == 0
    assert time.monotonic() - begin < 0.2 + SLACK_SECONDS
    agent.signal(signal.SIGCONT)
    assert not engine.counters().get("store_failed")
    eventually(lambda: client.missing(keys_of(safe)) == [False] * len(safe))
    eventually(lambda: loads_right(engine, safe))


def test_an_engine_that_dies_while_the_agent_is_stopped_is_cleaned_up_after(agent: Agent) -> None:
    engine, client = agent.engine(), agent.client()
    store(engine, MANY)
    reader = agent.client()
    reader.locate(keys_of(MANY))
    agent.signal(signal.SIGSTOP)
    reader.close()
    agent.signal(signal.SIGCONT)
    eventually(lambda: client.stats()["read_holds"] == 0)
    assert loads_right(engine, MANY)


def test_stopped_and_continued_over_and_over_all_that_was_kept_comes_back(agent: Agent) -> None:
    engine, client = impatient(agent), agent.client()
    agent.keep(range(64))
    kept: list[int] = []
    for first in range(0, 48, 8):
        agent.signal(signal.SIGSTOP)
        numbers = range(first, first + 8)
        kept += [n for n, safe in zip(numbers, store(engine, numbers), strict=True) if safe]
        agent.signal(signal.SIGCONT)
        eventually(lambda: engine.counters()["agent_silent"] == 0)
    assert kept
    assert client.wait_durable(keys_of(kept), 20) == []
    client.drop_dram()
    eventually(lambda: loads_right(engine, kept))
