"""Workers, engine and node agent that fail: a clear 503, and the log where it was."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from agentmem.testing.gateway import Client, RunningGateway
from tests.integration.gateway.conftest import check_error, settled

SESSIONS = "/v1/sessions"
RANDOM_ID = "ses_01m87y8r24vqk6tcrffb0r88gw"
MESSAGE = {"role": "user", "content": "hello"}


@pytest.fixture
async def session(client: Client) -> str:
    session_id = await client.create()
    await client.turn(session_id, "hello")
    await settled(client, session_id)
    return session_id


class TestWorkers:
    async def test_503_while_no_worker_is_ready(
        self, gateway: RunningGateway, client: Client, session: str
    ) -> None:
        before = await client.get(session)
        worker = gateway.worker.worker
        async with gateway.catalog.transaction() as tx:
            await tx.workers.remove(worker.id)
            await tx.workers.register(replace(worker, state="draining"))
        await asyncio.sleep(0.6)
        for path in (f"{session}/turns", f"{session}/resume"):
            response = await client.http.post(f"{SESSIONS}/{path}", json={"messages": [MESSAGE]})
            error = check_error(response, 503)
            assert error["code"] == "no_worker_ready"
            assert int(response.headers["retry-after"]) >= 1
        ready = await client.http.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["parts"]["catalog"] == "ready"
        assert "draining" in ready.json()["parts"]["workers"]
        # What needs no worker goes on, and the session's lease is not stuck.
        assert await client.get(session) == before
        assert (await client.http.post(SESSIONS)).status_code == 201

    async def test_503_before_any_worker(self, gateway: RunningGateway, client: Client) -> None:
        async with gateway.catalog.transaction() as tx:
            await tx.workers.remove(gateway.worker.worker.id)
        await asyncio.sleep(0.6)
        response = await client.http.post(SESSIONS)
        check_error(response, 503)
        assert "retry-after" in response.headers

    async def test_a_silent_worker_is_not_ready(
        self, gateway: RunningGateway, client: Client, session: str
    ) -> None:
        gateway.gateway.router._silence_seconds_max = 0.001
        response = await client.post_turn(session, "hello")
        check_error(response, 503)
        assert "silent" in (await client.http.get("/readyz")).json()["parts"]["workers"]

    async def test_engine_failure_is_503(
        self, gateway: RunningGateway, client: Client, session: str
    ) -> None:
        before = await client.get(session)
        gateway.engine.script.fail_after_tokens = 0
        response = await client.post_turn(session, "hello")
        assert check_error(response, 503)["code"] == "engine_failed"
        assert "retry-after" in response.headers
        assert await client.get(session) == before

    async def test_a_turn_that_takes_too_long_is_ended(
        self, gateway: RunningGateway, client: Client, session: str
    ) -> None:
        before = await client.get(session)
        gateway.engine.script.stall = asyncio.Event()
        response = await client.post_turn(session, "hello")
        assert "3 s" in check_error(response, 503)["message"]
        assert gateway.engine.aborted == [gateway.engine.calls[-1].request_id]
        assert await client.get(session) == before

    async def test_a_node_agent_that_is_down_is_503_where_it_is_needed(
        self, gateway: RunningGateway, client: Client, session: str
    ) -> None:
        gateway.pages.down = True
        for method, path in (("GET", "residency"), ("POST", "hibernate")):
            response = await client.http.request(method, f"{SESSIONS}/{session}/{path}")
            assert check_error(response, 503)["code"] == "node_unavailable"
        parts = (await client.http.get("/readyz")).json()["parts"]
        assert parts["node"] != "ready"
        assert parts["workers"] == "ready"

    async def test_an_unforeseen_error_tells_no_internals(
        self, gateway: RunningGateway, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def broken(*_args: object) -> None:
            raise RuntimeError("secret detail")

        monkeypatch.setattr(gateway.gateway.service, "get", broken)
        error = check_error(await client.http.get(f"{SESSIONS}/{RANDOM_ID}"), 500)
        assert error["code"] == "internal_error"
        assert "secret" not in error["message"]
