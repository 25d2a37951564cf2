"""Which archived pages are waited for, and what demotion does with other nodes' pages."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any, cast

import pytest

from agentmem.core import Tier
from agentmem.node import demotion
from agentmem.node.demotion import Demotion
from tests.integration.node.conftest import Agent, eventually, keys_of, loads_right, store
from tests.integration.object.conftest import Place
from tests.integration.object.test_agent import TEN, TERMS, agent_at, demoted, keep, tiers
from tests.unit.store.records import key_of


def waiting(monkeypatch: pytest.MonkeyPatch) -> tuple[Demotion, dict[bytes, object], list[float]]:
    """Demotion over a disk and a dram that hold what the test puts into one set."""
    now, held = [100.0], cast("dict[bytes, object]", {})
    monkeypatch.setattr(demotion.time, "monotonic", lambda: now[0])
    made = Demotion(cast(Any, held), cast(Any, {}), cast(Any, None))
    made.note_archived([key_of(n) for n in range(3)])
    return made, held, now


def test_deleted_pages_are_no_longer_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _held, _now = waiting(monkeypatch)
    made.note_deleted([key_of(0), key_of(9)])
    assert made.archived_pages == 2


async def test_pages_that_never_come_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    made, held, now = waiting(monkeypatch)
    held[key_of(1)] = object()
    await made._archive()
    assert made.archived_pages == 3
    now[0] += 601
    await made._archive()
    assert made.archived_pages == 1


def test_what_nothing_claims_any_more_leaves_the_store(place: Place, tmp_path: Path) -> None:
    agent = Agent(tmp_path / "host")
    agent.data_dir.mkdir()
    agent.env.update(place.environment(), AGENTMEM_OBJECT_LEFTOVER_SECONDS="0")
    agent.script = (
        "from agentmem.node.objectsweep import ObjectSweep\n"
        "ObjectSweep.__init__.__kwdefaults__['round_seconds'] = 0\n" + agent.script
    )
    agent.start()
    try:
        client = agent.client()
        store(agent.engine(), TEN)
        keep(client, TEN)
        client.claim("short", keys_of(range(5)), time.time() + 2, terms=TERMS)
        client.claim("session", keys_of(TEN), time.time() + 2, terms=TERMS)
        client.claim("long", keys_of(range(5)), time.time() + 1000, terms=TERMS)
        assert client.demote(keys_of(TEN), release=True, timeout_seconds=30) == []
        eventually(lambda: client.stats()["evicted_object_pages"] == 5, 20)
        eventually(lambda: client.stats()["object_packs_deleted"] == 1, 20)
        assert tiers(client, TEN) == [{Tier.OBJECT}] * 5 + [set()] * 5
        assert loads_right(agent.engine(), range(5))
    finally:
        agent.end()


def test_what_another_node_put_there_is_put_there_again(place: Place, tmp_path: Path) -> None:
    one = agent_at(tmp_path / "one", place)
    (tmp_path / "two").mkdir()
    two = None
    try:
        theirs = demoted(one)
        shutil.copytree(one.data_dir / "secrets", tmp_path / "two" / "secrets")
        two = agent_at(tmp_path / "two", place)
        client = two.client()
        assert client.prefetch(keys_of(TEN), Tier.DRAM, 20) == 10
        keep(client, TEN)
        assert client.demote(keys_of(TEN), release=True, timeout_seconds=30) == []
        assert tiers(client, TEN) == [{Tier.OBJECT}] * 10
        stats = client.stats()
        assert stats["object_own_bytes"] == stats["object_reserved_bytes"] > 0
        theirs.unclaim("session", keys_of(TEN))
        eventually(lambda: theirs.stats()["object_packs_deleted"] == 1)
        assert loads_right(two.engine(), TEN)
        assert client.breaches() == []
    finally:
        one.end()
        if two is not None:
            two.end()


def test_pages_that_are_being_read_leave_dram_too(tmp_path: Path) -> None:
    agent = agent_at(tmp_path / "host", Place(f"file://{tmp_path}/store", {}))
    try:
        client = agent.client()
        store(agent.engine(), TEN)
        keep(client, TEN)
        held = client.locate(keys_of(TEN))
        assert client.demote(keys_of(TEN), release=True, timeout_seconds=30) == []
        assert tiers(client, TEN) == [{Tier.OBJECT}] * 10
        client.release(held.hold_id, loaded={})
        assert loads_right(agent.engine(), TEN)
    finally:
        agent.end()
