"""What a real agent tells of itself is documented, and what ails it is said."""

from __future__ import annotations

import re
from pathlib import Path

from agentmem.node.calls import COUNTERS
from agentmem.sessions.node import NodePages
from tests.integration.node.conftest import Agent, eventually, keys_of, store

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


def test_every_gauge_of_the_agent_is_documented(agent: Agent) -> None:
    state = agent.client().state()
    gauges = set(re.findall(r"^\| `agentmem_node_(\w+)` \| gauge", PAGE.read_text(), re.MULTILINE))
    assert set(state.gauges) == gauges - {"up", "degraded"}
    assert set(state.counters) == set(COUNTERS)
    assert state.degraded == {}


def test_a_disk_that_takes_nothing_is_degraded_until_it_takes_pages(agent: Agent) -> None:
    engine, client = agent.engine(), agent.client()
    agent.keep(range(10))
    agent.packs.rename(agent.packs.with_name("away"))
    agent.packs.write_text("no folder")
    store(engine, range(10))
    eventually(lambda: "takes no pages" in client.state().degraded.get("disk", ""))
    agent.packs.unlink()
    agent.packs.with_name("away").rename(agent.packs)
    assert client.wait_durable(keys_of(range(10)), 20) == []
    assert client.state().degraded == {}


async def test_the_gateways_port_speaks_to_a_real_agent(agent: Agent) -> None:
    pages = NodePages(agent.socket)
    try:
        assert await pages.lost(0) == []
        assert (await pages.stats()).gauges["dram_pages"] == 0
    finally:
        await pages.aclose()
