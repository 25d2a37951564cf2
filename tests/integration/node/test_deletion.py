"""Claims and deletion through a whole agent: what is deleted is nowhere any more."""

from __future__ import annotations

import time

from agentmem.core import Tier
from agentmem.node.answers import Deleted
from agentmem.node.transfer import PageTransfer
from tests.integration.node.conftest import (
    PAGE_BYTES,
    Agent,
    eventually,
    hashes_of,
    keys_of,
    load,
    loads_right,
    payload_of,
    store,
)

TEN = range(10)
MARK = slice(100, 164)


def anywhere(agent: Agent, numbers: range) -> list[int]:
    """Pages of which bytes are found in slabs or packs."""
    found = agent.bytes_below()
    return [number for number in numbers if payload_of(number)[MARK] in found]


def test_unclaimed_pages_are_gone_from_slabs_and_packs(agent: Agent) -> None:
    engine, client = agent.engine(), agent.client()
    store(engine, TEN)
    client.claim("session", keys_of(TEN), time.time() + 100)
    client.claim("other", keys_of(range(3)), time.time() + 100)
    assert client.wait_durable(keys_of(TEN), 5) == []
    assert anywhere(agent, TEN) == list(TEN)
    assert client.unclaim("session", keys_of(TEN)) == Deleted(7, 7 * PAGE_BYTES)
    assert anywhere(agent, TEN) == [0, 1, 2]
    assert engine.find(hashes_of(TEN)) == 3
    assert loads_right(engine, range(3))
    assert [bool(r.tiers) for r in client.residency(keys_of(TEN))] == [n < 3 for n in TEN]
    assert client.unclaim("session", keys_of(TEN)) == Deleted(0, 0)
    assert client.unclaim("other", keys_of(range(3))) == Deleted(3, 3 * PAGE_BYTES)
    assert anywhere(agent, TEN) == []
    stats = client.stats()
    assert (stats["dram_pages"], stats["disk_pages"], stats["disk_reserved_bytes"]) == (0, 0, 0)


def test_pages_only_on_disk_leave_nothing_behind_in_shared_memory(agent: Agent) -> None:
    engine, client = agent.engine(), agent.client()
    agent.keep(TEN)
    store(engine, TEN)
    assert client.wait_durable(keys_of(TEN), 5) == []
    client.drop_dram()
    assert anywhere(agent, TEN) == list(TEN)
    assert client.unclaim("session", keys_of(TEN)).pages == 10
    assert anywhere(agent, TEN) == []


def test_a_deleted_page_can_be_stored_again(agent: Agent) -> None:
    engine, client = agent.engine(), agent.client()
    store(engine, TEN)
    client.unclaim("session", keys_of(TEN))
    agent.keep(TEN)
    assert store(engine, TEN) == [True] * 10
    assert client.wait_durable(keys_of(TEN), 5) == []
    assert loads_right(engine, TEN)


def test_a_deleted_page_that_is_being_read_is_invisible_at_once_and_gone_after(
    agent: Agent,
) -> None:
    engine, client, reader = agent.engine(), agent.client(), agent.client()
    agent.keep(TEN)
    store(engine, TEN)
    assert client.wait_durable(keys_of(TEN), 5) == []
    client.drop_dram(keys_of(range(5, 10)))
    located = reader.locate(keys_of(TEN))
    assert [page.tier for page in located.pages] == [Tier.DRAM] * 5 + [Tier.DISK] * 5
    assert client.unclaim("session", keys_of(TEN)).pages == 10
    assert (engine.find(hashes_of(TEN)), load(engine, [0])) == (0, [None])
    assert anywhere(agent, TEN) == list(TEN)
    reader.release(located.hold_id, loaded={})
    eventually(lambda: anywhere(agent, TEN) == [])


def test_read_holds_end_with_their_connection(agent: Agent) -> None:
    engine, client, reader = agent.engine(), agent.client(), agent.client()
    agent.keep(TEN)
    store(engine, TEN)
    assert client.wait_durable(keys_of(TEN), 5) == []
    reader.locate(keys_of(TEN))
    client.unclaim("session", keys_of(TEN))
    assert client.stats()["read_holds"] == 1
    reader.close()
    eventually(lambda: client.stats()["read_holds"] == 0)
    eventually(lambda: anywhere(agent, TEN) == [])


def test_a_deletion_survives_a_kill(agent: Agent) -> None:
    engine, client = agent.engine(), agent.client()
    store(engine, TEN)
    client.claim("session", keys_of(TEN), time.time() + 100)
    assert client.wait_durable(keys_of(TEN), 5) == []
    client.unclaim("session", keys_of(range(5)))
    agent.kill()
    agent.start()
    assert [r.durable for r in client.residency(keys_of(TEN))] == [n >= 5 for n in TEN]
    assert anywhere(agent, TEN) == list(range(5, 10))


def test_a_copy_that_arrives_after_the_deletion_is_destroyed(agent: Agent) -> None:
    """An engine committed the page before, but could not tell the agent until after."""
    engine, client = agent.engine(), agent.client()
    announce = silence(engine)
    store(engine, TEN)
    assert client.unclaim("session", keys_of(TEN)) == Deleted(0, 0)
    del engine._feeder.announce  # type: ignore[method-assign]
    assert engine._feeder.announce == announce
    engine._feeder.wake()
    eventually(lambda: client.stats()["late_deleted_pages"] == 10)
    assert anywhere(agent, TEN) == []
    assert engine.find(hashes_of(TEN)) == 0


def silence(engine: PageTransfer) -> object:
    """Keeps an engine from announcing what it stores."""
    announce = engine._feeder.announce
    engine._feeder.announce = lambda *_, **__: set()  # type: ignore[method-assign]
    return announce


def test_an_expired_claim_protects_nothing(agent: Agent) -> None:
    engine, client = agent.engine(), agent.client()
    store(engine, TEN)
    client.claim("short", keys_of(TEN), time.time() + 0.05)
    time.sleep(0.06)
    assert client.unclaim("session", keys_of(TEN)).pages == 10
    assert anywhere(agent, TEN) == []
