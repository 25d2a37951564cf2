"""`/readyz` and `/metrics` tell how the node agent is; turns go on whatever it says."""

from __future__ import annotations

from agentmem.testing.gateway import Client, RunningGateway


async def test_metrics_tell_what_the_agent_counts(gateway: RunningGateway, client: Client) -> None:
    session = await client.create()
    await client.turn(session, "hello " * 60)
    gateway.gateway.node._asked_at = float("-inf")
    text = (await client.http.get("/metrics")).text
    assert "agentmem_node_up 1.0" in text
    assert f"agentmem_node_dram_pages {len(gateway.pages.pages)}.0" in text
    assert "# TYPE agentmem_node_loaded_dram_pages_total counter" in text


async def test_a_silent_agent_is_degraded_not_unready(
    gateway: RunningGateway, client: Client
) -> None:
    session = await client.create()
    assert (await client.http.get("/readyz")).json()["status"] == "ready"
    gateway.pages.down = True
    gateway.gateway.node._asked_at = float("-inf")
    answer = await client.http.get("/readyz")
    assert answer.status_code == 200
    body = answer.json()
    assert body["status"] == "degraded"
    assert body["degraded"] == {"node": "The node agent is down, as the test wants it."}
    text = (await client.http.get("/metrics")).text
    assert "agentmem_node_up 0.0" in text
    assert 'agentmem_node_degraded{part="node"} 1.0' in text
    assert "agentmem_node_dram_pages" not in text
    await client.turn(session, "hello")
    gateway.pages.down = False
    gateway.gateway.node._asked_at = float("-inf")
    assert (await client.http.get("/readyz")).json()["status"] == "ready"


async def test_a_failing_disk_is_said(gateway: RunningGateway, client: Client) -> None:
    gateway.pages.degraded["disk"] = "takes no pages: disk full"
    body = (await client.http.get("/readyz")).json()
    assert (body["status"], body["parts"]["node"]) == ("degraded", "ready")
    assert body["degraded"] == {"disk": "takes no pages: disk full"}


async def test_scrapes_ask_the_agent_once_a_second_at_most(
    gateway: RunningGateway, client: Client
) -> None:
    await client.http.get("/metrics")
    gateway.pages.down = True
    assert "agentmem_node_up 1.0" in (await client.http.get("/metrics")).text
