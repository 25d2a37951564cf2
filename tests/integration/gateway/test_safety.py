"""Repeats, disconnects, concurrency: one turn, or none, and never half of one."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import httpx2
import pytest

from agentmem.catalog.ids import now_us
from agentmem.config import Settings
from agentmem.testing.gateway import Client, RunningGateway, running_gateway
from tests.integration.gateway.conftest import check_error, settled, until, until_async

LONG = {"max_tokens": 1_000, "ignore_eos": True}


@pytest.fixture
async def session(client: Client) -> str:
    session_id = await client.create()
    await client.turn(session_id, "hello")
    await settled(client, session_id)
    return session_id


async def is_free(client: Client, session_id: str) -> bool:
    return bool((await client.get(session_id))["state"] != "running")


class TestExpectedTurn:
    async def test_a_committed_turn_is_returned_not_repeated(
        self, gateway: RunningGateway, client: Client, session: str
    ) -> None:
        first = await client.turn(session, "again", expected_turn=2, logprobs=True)
        calls = len(gateway.engine.calls)
        assert await client.turn(session, "again", expected_turn=2, logprobs=True) == first
        events = await client.stream(session, "again", expected_turn=2, logprobs=True)
        assert [name for name, _ in events] == ["turn.created", "turn.delta", "turn.completed"]
        assert events[0][1]["id"] == first["id"]
        assert events[1][1]["token_ids"] == first["output_ids"]
        assert events[1][1]["logprobs"] == first["logprobs"]
        assert events[1][1]["text"] == first["message"]["content"]
        assert events[2][1] == first
        assert len(gateway.engine.calls) == calls
        assert (await client.get(session))["turns"] == 2

    async def test_an_older_turn_is_returned_too(self, client: Client, session: str) -> None:
        (first,) = (await client.http.get(f"/v1/sessions/{session}/turns")).json()["data"]
        await client.turn(session, "again")
        assert await client.turn(session, "hello", expected_turn=1) == first

    @pytest.mark.parametrize(
        "change", [{"max_tokens": 9}, {"temperature": 0.5}, {"seed": 1}, {"logprobs": True}]
    )
    async def test_another_body_is_a_conflict(
        self, client: Client, session: str, change: dict[str, Any]
    ) -> None:
        for body in ({"text": "other"}, {"text": "hello", **change}):
            response = await client.post_turn(session, expected_turn=1, **body)
            error = check_error(response, 409)
            assert error["code"] == "turn_conflict"
            assert "retry-after" not in response.headers
            assert response.headers["x-should-retry"] == "false"

    async def test_a_number_beyond_the_next_one_is_a_conflict(
        self, client: Client, session: str
    ) -> None:
        response = await client.post_turn(session, "again", expected_turn=3)
        assert "next one is 2" in check_error(response, 409)["message"]
        assert (await client.get(session))["turns"] == 1

    async def test_a_repeat_joins_the_turn_that_is_running(
        self, gateway: RunningGateway, client: Client, session: str
    ) -> None:
        stall = gateway.engine.script.stall = asyncio.Event()
        first = asyncio.create_task(client.turn(session, "again", expected_turn=2))
        await until(lambda: len(gateway.engine.calls) == 2)
        second = asyncio.create_task(client.stream(session, "again", expected_turn=2))
        other = await client.post_turn(session, "other", expected_turn=2)
        assert check_error(other, 409)["code"] == "turn_conflict"
        await asyncio.sleep(0.1)
        stall.set()
        assert (await second)[-1][1] == await first
        assert len(gateway.engine.calls) == 2
        assert (await client.get(session))["turns"] == 2

    async def test_a_failed_turn_can_be_sent_again(
        self, gateway: RunningGateway, client: Client, session: str
    ) -> None:
        gateway.engine.script.fail_after_tokens = 1
        check_error(await client.post_turn(session, "again", expected_turn=2), 503)
        assert (await client.turn(session, "again", expected_turn=2))["number"] == 2


class TestDisconnect:
    async def test_a_stream_that_is_left_is_aborted(
        self, gateway: RunningGateway, client: Client, session: str
    ) -> None:
        before = await client.get(session)
        gateway.engine.token_seconds = 0.01
        async with client.streaming(session, "again", **LONG) as events:
            async for name, _ in events:
                if name == "turn.delta":
                    break
        # Long before the turn's own time is over.
        await until(lambda: len(gateway.engine.aborted) == 1, 1.0)
        await until_async(lambda: is_free(client, session))
        assert await client.get(session) == before
        assert (await client.turn(session, "again"))["number"] == 2

    async def test_a_plain_request_that_is_left_is_aborted(
        self, gateway: RunningGateway, client: Client, session: str
    ) -> None:
        before = await client.get(session)
        gateway.engine.token_seconds = 0.01
        with pytest.raises(httpx2.TimeoutException):
            await client.post_turn(session, "again", timeout=0.2, **LONG)
        # Long before the turn's own time is over.
        await until(lambda: len(gateway.engine.aborted) == 1, 1.0)
        await until_async(lambda: is_free(client, session))
        assert await client.get(session) == before

    @pytest.mark.parametrize("stream", [True, False])
    async def test_with_expected_turn_it_runs_on_and_commits(
        self, gateway: RunningGateway, client: Client, session: str, stream: bool
    ) -> None:
        gateway.engine.token_seconds = 0.01
        body = {"max_tokens": 50, "ignore_eos": True, "expected_turn": 2}
        if stream:
            async with client.streaming(session, "again", **body) as events:
                await anext(events)
        else:
            with pytest.raises(httpx2.TimeoutException):
                await client.post_turn(session, "again", timeout=0.1, **body)
        assert (await client.get(session))["state"] == "running"
        await until_async(lambda: is_free(client, session))
        assert (await client.get(session))["turns"] == 2
        assert gateway.engine.aborted == []
        calls = len(gateway.engine.calls)
        turn = await client.turn(session, "again", **body)
        assert len(turn["output_ids"]) == 50
        assert len(gateway.engine.calls) == calls

    async def test_one_of_two_listeners_may_leave(
        self, gateway: RunningGateway, client: Client, session: str
    ) -> None:
        gateway.engine.token_seconds = 0.01
        body = {"max_tokens": 40, "ignore_eos": True, "expected_turn": 2}
        async with client.streaming(session, "again", **body) as events:
            await anext(events)
            second = asyncio.create_task(client.turn(session, "again", **body))
            await asyncio.sleep(0.05)
        assert len((await second)["output_ids"]) == 40


class TestConcurrency:
    async def test_two_turns_at_once_make_one_conflict(
        self, gateway: RunningGateway, client: Client, session: str
    ) -> None:
        gateway.engine.token_seconds = 0.005
        responses = await asyncio.gather(
            *(client.post_turn(session, text, ignore_eos=True) for text in ("a", "b"))
        )
        assert sorted(response.status_code for response in responses) == [201, 409]
        (busy,) = (response for response in responses if response.status_code == 409)
        assert check_error(busy, 409)["code"] == "session_busy"
        assert int(busy.headers["retry-after"]) >= 1
        assert (await client.get(session))["turns"] == 2

    async def test_nothing_else_gets_the_session_while_a_turn_runs(
        self, gateway: RunningGateway, client: Client, session: str
    ) -> None:
        stall = gateway.engine.script.stall = asyncio.Event()
        turn = asyncio.create_task(client.turn(session, "again"))
        await until(lambda: len(gateway.engine.calls) == 2)
        assert (await client.get(session))["state"] == "running"
        for method, path in (("POST", "/hibernate"), ("POST", "/resume"), ("DELETE", "")):
            response = await client.http.request(method, f"/v1/sessions/{session}{path}")
            check_error(response, 409)
            assert "retry-after" in response.headers
        fork = (await client.http.post(f"/v1/sessions/{session}/fork")).json()
        assert fork["turns"] == 1
        stall.set()
        assert (await turn)["number"] == 2

    async def test_many_sessions_at_once(self, client: Client) -> None:
        sessions = await asyncio.gather(*(client.create() for _ in range(20)))
        turns = await asyncio.gather(
            *(client.turn(session, f"hello {i}") for i, session in enumerate(sessions))
        )
        assert {turn["number"] for turn in turns} == {1}

    async def test_a_long_turn_keeps_its_lease(
        self, gateway: RunningGateway, client: Client, session: str
    ) -> None:
        gateway.gateway.service._leases._seconds = 0.3
        async with gateway.catalog.transaction() as tx:
            await tx.leases.acquire(client.tenant_id, session, "someone", seconds=0.05)  # type: ignore[arg-type]
        stall = gateway.engine.script.stall = asyncio.Event()
        await asyncio.sleep(0.1)  # that lease has run out, and nobody released it
        renewing = asyncio.create_task(gateway.gateway.service._leases.run())
        turn = asyncio.create_task(client.turn(session, "again"))
        await asyncio.sleep(0.8)
        check_error(await client.post_turn(session, "other"), 409)
        stall.set()
        assert (await turn)["number"] == 2
        renewing.cancel()

    async def test_a_turn_that_lost_its_lease_is_not_kept(
        self, gateway: RunningGateway, client: Client, session: str
    ) -> None:
        before = await client.get(session)
        stall = gateway.engine.script.stall = asyncio.Event()
        turn = asyncio.create_task(client.post_turn(session, "again"))
        await until(lambda: len(gateway.engine.calls) == 2)
        async with gateway.catalog.transaction() as tx:
            for owner in await tx.leases.owners():
                await tx.leases.release_owner(owner)
            lease = await tx.leases.acquire(client.tenant_id, session, "thief", seconds=60)  # type: ignore[arg-type]
            assert lease is not None
        stall.set()
        response = await turn
        assert check_error(response, 409)["code"] == "lease_lost"
        assert "retry-after" in response.headers
        async with gateway.catalog.transaction() as tx:
            assert await tx.leases.release(lease)
        assert await client.get(session) == before

    async def test_a_dead_gateways_lease_is_free_at_once(
        self, gateway: RunningGateway, client: Client, session: str
    ) -> None:
        program = "from agentmem.sessions.owner import make_owner; print(make_owner())"
        dead = subprocess.check_output([sys.executable, "-c", program], text=True).strip()
        async with gateway.catalog.transaction() as tx:
            assert await tx.leases.acquire(client.tenant_id, session, dead, seconds=3_600)  # type: ignore[arg-type]
        assert (await client.turn(session, "again"))["number"] == 2


class TestShutdown:
    async def test_running_turns_finish(self, settings: Settings) -> None:
        body = {"max_tokens": 50, "ignore_eos": True, "expected_turn": 1}
        async with running_gateway(settings, token_seconds=0.01) as first:
            client = await first.client("acme")
            session, detached = await client.create(), await client.create()
            running = asyncio.create_task(client.turn(session, "hello", **body))
            with pytest.raises(httpx2.TimeoutException):
                await client.post_turn(
                    detached, "hello", timeout=0.1, **{**body, "max_tokens": 120}
                )
            await until(lambda: len(first.engine.calls) == 2)
        # The connection was still open, so the gateway waited for the turn and answered it.
        assert len((await running)["output_ids"]) == 50
        await client.http.aclose()
        async with running_gateway(settings) as second, await second.client("acme") as client:
            assert (await client.get(session))["turns"] == 1
            assert (await client.get(detached))["turns"] == 1

    async def test_turns_that_take_longer_are_ended_and_leave_nothing(
        self, settings: Settings
    ) -> None:
        quick = settings.model_copy(update={"shutdown_seconds_max": 0.2})
        async with running_gateway(quick) as first, await first.client("acme") as client:
            session = await client.create()
            first.engine.script.stall = asyncio.Event()
            with pytest.raises(httpx2.TimeoutException):
                await client.post_turn(session, "x", timeout=0.1, expected_turn=1)
        begun = now_us()
        async with running_gateway(settings) as second, await second.client("acme") as client:
            assert now_us() - begun < 2e6
            turn = await client.turn(session, "x", expected_turn=1)
            assert turn["number"] == 1
