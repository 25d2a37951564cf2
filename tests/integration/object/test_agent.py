"""A node agent with an object tier: pages go there and come back, from this host or another."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentmem.core import ClaimTerms, Tier
from agentmem.errors import StoreRefused
from agentmem.node.client import NodeClient
from tests.integration.node.conftest import (
    Agent,
    eventually,
    keys_of,
    load,
    loads_right,
    payload_of,
    store,
)
from tests.integration.object.conftest import Place

TEN = range(10)
TENANT = b"tenant tag of 16"
TERMS = ClaimTerms(TENANT)
MARK = slice(20_000, 20_064)


def agent_at(directory: Path, place: Place) -> Agent:
    directory.mkdir(parents=True, exist_ok=True)
    agent = Agent(directory)
    agent.env.update(place.environment())
    agent.start()
    return agent


@pytest.fixture
def agent(place: Place, tmp_path: Path) -> Iterator[Agent]:
    agent = agent_at(tmp_path / "host", place)
    try:
        yield agent
    finally:
        agent.end()


def keep(client: NodeClient, numbers: range, terms: ClaimTerms = TERMS) -> None:
    client.claim("session", keys_of(numbers), time.time() + 1000, terms=terms)
    assert client.wait_durable(keys_of(numbers), 10) == []


def tiers(client: NodeClient, numbers: range) -> list[set[Tier]]:
    return [set(entry.tiers) for entry in client.residency(keys_of(numbers))]


def demoted(agent: Agent) -> NodeClient:
    """Ten pages, in the object tier only."""
    client = agent.client()
    store(agent.engine(), TEN)
    keep(client, TEN)
    assert client.demote(keys_of(TEN), release=True, timeout_seconds=30) == []
    assert tiers(client, TEN) == [{Tier.OBJECT}] * 10
    assert all(entry.durable for entry in client.residency(keys_of(TEN)))
    return client


def test_demoted_pages_come_back_and_count_as_from_there(agent: Agent) -> None:
    client = demoted(agent)
    seq = client.loads().seq
    assert loads_right(agent.engine(), TEN)
    assert client.loads(keys_of(TEN), seq).tiers == [Tier.OBJECT] * 10
    eventually(lambda: all(Tier.DISK in found for found in tiers(client, TEN)))
    assert all(payload_of(n)[MARK] in agent.bytes_below() for n in TEN)
    stats = client.stats()
    assert (stats["object_pages"], stats["promoted_object_pages"]) == (10, 10)


def test_a_prefetch_brings_them_near(agent: Agent) -> None:
    client = demoted(agent)
    assert client.prefetch(keys_of(range(12)), Tier.DRAM, 10) == 10
    assert all(Tier.DRAM in found for found in tiers(client, TEN))
    client.drop_dram()
    eventually(lambda: all(Tier.DISK in found for found in tiers(client, TEN)))
    client.drop_dram()
    assert client.prefetch(keys_of(TEN), Tier.DRAM, 10) == 10
    assert client.stats()["promoted_disk_pages"] > 0
    assert loads_right(agent.engine(), TEN)


def test_everything_on_the_host_may_be_lost(agent: Agent) -> None:
    demoted(agent)
    agent.kill()
    shutil.rmtree(agent.slabs)
    for folder in ("packs", "objects", "keys"):
        shutil.rmtree(agent.data_dir / "node" / folder)
    agent.start()
    eventually(lambda: agent.client().find(keys_of(TEN)) == 10)
    assert loads_right(agent.engine(), TEN)


def test_another_host_reads_them(agent: Agent, place: Place, tmp_path: Path) -> None:
    demoted(agent)
    secrets = tmp_path / "other" / "secrets"
    secrets.parent.mkdir()
    shutil.copytree(agent.data_dir / "secrets", secrets)
    other = agent_at(tmp_path / "other", place)
    try:
        assert other.client().prefetch(keys_of(TEN), Tier.DRAM, 20) == 10
        assert loads_right(other.engine(), TEN)
    finally:
        other.end()


def test_deleted_pages_leave_every_tier(agent: Agent, place: Place) -> None:
    client = demoted(agent)
    assert loads_right(agent.engine(), TEN)
    client.unclaim("session", keys_of(TEN))
    assert tiers(client, TEN) == [set()] * 10
    assert load(agent.engine(), TEN) == [None] * 10
    eventually(lambda: client.stats()["object_packs_deleted"] == 1)
    assert not any(payload_of(n)[MARK] in agent.bytes_below() for n in TEN)


def test_pages_may_be_sealed_on_disk_too(agent: Agent) -> None:
    client, engine = agent.client(), agent.engine()
    store(engine, TEN)
    keep(client, TEN, TERMS._replace(encrypted=True))
    client.drop_dram()
    assert not any(payload_of(n)[MARK] in agent.bytes_below() for n in TEN)
    assert loads_right(engine, TEN)
    agent.kill()
    agent.start()
    assert loads_right(agent.engine(), TEN)
    assert agent.client().demote(keys_of(TEN), release=True, timeout_seconds=30) == []
    assert loads_right(agent.engine(), TEN)


def test_an_erased_tenants_pages_never_open_again(agent: Agent) -> None:
    client = demoted(agent)
    client.erase_tenant(TENANT)
    assert load(agent.engine(), TEN) == [None] * 10
    agent.kill()
    agent.start()
    assert load(agent.engine(), TEN) == [None] * 10


def test_without_an_object_tier_it_says_so(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    agent.start()
    try:
        client = agent.client()
        with pytest.raises(StoreRefused, match="no object tier"):
            client.demote(keys_of(TEN), release=True, timeout_seconds=5)
    finally:
        agent.end()


def test_archived_pages_leave_the_disk_by_themselves(agent: Agent) -> None:
    client = agent.client()
    store(agent.engine(), TEN)
    keep(client, TEN, TERMS._replace(retention="archive"))
    eventually(lambda: tiers(client, TEN) == [{Tier.OBJECT}] * 10)
    assert loads_right(agent.engine(), TEN)


def test_a_disk_that_fills_hands_its_least_used_pages_down(place: Place, tmp_path: Path) -> None:
    agent = Agent(tmp_path / "host")
    agent.data_dir.mkdir()
    agent.env.update(place.environment(), AGENTMEM_DISK_BYTES=str(40 * (4096 + 53_248)))
    agent.start()
    try:
        client, engine = agent.client(), agent.engine(slots=60)
        for start in range(0, 60, 6):
            numbers = range(start, start + 6)
            store(engine, numbers)
            client.claim(f"session {start}", keys_of(numbers), time.time() + 1000, terms=TERMS)
            eventually(lambda n=numbers: client.wait_durable(keys_of(n), 1) == [], 20)
        assert client.stats()["relieved_disk_pages"] > 0
        client.drop_dram()
        assert loads_right(engine, range(60))
        assert client.breaches() == []
    finally:
        agent.end()
