"""What happens to sessions by themselves: durable, hibernated when idle, gone past their term."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text

from agentmem.catalog.ids import now_us
from agentmem.core import SessionId
from agentmem.sessions.lapse import Lapse
from agentmem.testing.gateway import Client, RunningGateway, running_gateway
from tests.integration.gateway.conftest import gateway_settings, settled, until, until_async


def lapse_of(gateway: RunningGateway) -> Lapse:
    return gateway.gateway.service._lapse


async def execute(gateway: RunningGateway, statement: str, **values: object) -> list[object]:
    async with gateway.catalog.transaction() as tx:
        result = await tx.sessions._connection.execute(text(statement), values)
        return [tuple(row) for row in result] if result.returns_rows else []


async def counts(gateway: RunningGateway) -> dict[str, int]:
    names = ("sessions", "turns", "usage_events", "leases")
    rows = {n: await execute(gateway, f"SELECT COUNT(*) FROM {n}") for n in names}
    return {name: found[0][0] for name, found in rows.items()}  # type: ignore[index]


@pytest.fixture
async def quick(tmp_path: Path) -> AsyncIterator[RunningGateway]:
    """A gateway whose sessions are idle after 0.8 s."""
    settings = gateway_settings(tmp_path).model_copy(update={"idle_hibernate_seconds": 0.8})
    async with running_gateway(settings, token_seconds=0.02) as running:
        yield running


class TestBehind:
    async def leave_behind(self, gateway: RunningGateway, client: Client) -> str:
        """A session whose turn was committed and whose pages nobody claims."""
        gateway.pages.down = True
        session = await client.create()
        await client.turn(session, "hello " * 30)
        tracker = gateway.gateway.service._tracker
        await tracker.forget(SessionId(session))  # as if the gateway had been killed here
        gateway.pages.down = False
        return session

    async def test_what_a_killed_gateway_left_behind_becomes_durable(
        self, gateway: RunningGateway, client: Client
    ) -> None:
        session = await self.leave_behind(gateway, client)
        lapse = lapse_of(gateway)
        assert await lapse.watch_behind() == 0, "too young: its gateway looks after it"
        assert await lapse.watch_behind(young_seconds=0) == 1
        shown = await settled(client, session)
        assert shown["durable_position"] > 0
        assert gateway.pages.claims[session]
        assert await lapse.watch_behind(young_seconds=0) == 0

    async def test_at_the_start_of_a_gateway(self, tmp_path: Path) -> None:
        settings = gateway_settings(tmp_path)
        async with running_gateway(settings) as gateway, await gateway.client("acme") as client:
            session = await self.leave_behind(gateway, client)
            kept = gateway.pages
        async with running_gateway(settings, pages=kept) as gateway:
            await until(lambda: session in gateway.pages.claims)
            async with await gateway.client("acme") as client:
                await settled(client, session)

    async def test_pages_that_do_not_come_back_are_not_waited_for_forever(
        self, gateway: RunningGateway, client: Client
    ) -> None:
        session = await self.leave_behind(gateway, client)
        gateway.pages.pages.clear()
        lapse, tracker = lapse_of(gateway), gateway.gateway.service._tracker
        for _ in range(3):
            assert await lapse.watch_behind(young_seconds=0) == 1
            assert lapse.oldest_seconds() > 0
            await tracker.forget(SessionId(session))
        assert await lapse.watch_behind(young_seconds=0) == 0
        assert lapse.oldest_seconds() > 0, "it is not durable for all that"
        metrics = (await client.http.get("/metrics")).text
        oldest = metrics.split("\nagentmem_durability_oldest_seconds ")[1].split()[0]
        assert float(oldest) > 0

    async def test_without_a_promise_there_is_nothing_to_do(
        self, gateway: RunningGateway, client: Client
    ) -> None:
        session = await self.leave_behind(gateway, client)
        statement = "UPDATE sessions SET kv_retention_seconds = 0 WHERE id = :id"
        await execute(gateway, statement, id=session)
        assert await lapse_of(gateway).watch_behind(young_seconds=0) == 0
        assert lapse_of(gateway).oldest_seconds() == 0


class TestIdle:
    async def test_hibernates_by_itself_and_the_next_turn_wakes_it(
        self, quick: RunningGateway
    ) -> None:
        async with await quick.client("acme") as client:
            session = await client.create()
            await client.turn(session, "hello " * 30)
            before = await settled(client, session)
            assert (before["state"], session in quick.engine.sessions) == ("active", True)

            async def hibernated() -> bool:
                return bool((await client.get(session))["state"] == "hibernated")

            await until_async(hibernated)
            # The state is written first: the engine hears of it a moment later.
            await until(lambda: session not in quick.engine.sessions)
            after = await client.get(session)
            assert after == {**before, "state": "hibernated"}
            claims = set(quick.pages.claims[session])
            assert await lapse_of(quick).hibernate_idle() == 0
            assert quick.pages.claims[session] == claims
            assert (await client.turn(session, "more"))["number"] == 2
            assert (await client.get(session))["state"] in ("active", "running")
            metrics = (await client.http.get("/metrics")).text
            assert 'agentmem_sessions_hibernated_total{cause="idle"} 1.0' in metrics

    async def test_never_while_a_turn_runs(self, quick: RunningGateway) -> None:
        async with await quick.client("acme") as client:
            session = await client.create()
            await client.turn(session, "hello")
            events = asyncio.create_task(
                client.stream(session, "more", max_tokens=110, ignore_eos=True)
            )
            await asyncio.sleep(1.5)
            assert not events.done()
            assert await lapse_of(quick).hibernate_idle() == 0
            shown = await client.get(session)
            assert shown["state"] in ("active", "running")
            name, data = (await events)[-1]
            assert name == "turn.completed", data
            assert (await client.get(session))["turns"] == 2

    async def test_not_before_it_is_durable_and_then_it_is_tried_again(
        self, quick: RunningGateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("agentmem.sessions.lapse._POSTPONE_SECONDS_MIN", 0.1)
        async with await quick.client("acme") as client:
            session = await client.create()
            quick.pages.durable_delay_seconds = 1.5
            await client.turn(session, "hello " * 30)
            lapse = lapse_of(quick)
            await until(lambda: session in lapse._postponed, 3.0)
            assert (await client.get(session))["state"] == "active"
            assert session in quick.engine.sessions

            async def hibernated() -> bool:
                return bool((await client.get(session))["state"] == "hibernated")

            await until_async(hibernated)
            await until(lambda: lapse._postponed == {})
            metrics = (await client.http.get("/metrics")).text
            assert 'agentmem_lapse_failures_total{operation="hibernate"}' in metrics

    async def test_what_is_used_meanwhile_stays(
        self, gateway: RunningGateway, client: Client
    ) -> None:
        """A turn between looking and letting go."""
        session = await client.create()
        await client.turn(session, "hello " * 30)
        await settled(client, session)
        async with gateway.catalog.reading() as tx:
            row = await tx.sessions.get(client.tenant_id, session)
        await client.turn(session, "more")
        assert not await lapse_of(gateway)._hibernation.hibernate_idle(row, lambda _: False)
        assert (await client.get(session))["state"] == "active"
        assert session in gateway.engine.sessions


class TestExpiry:
    async def expire(self, gateway: RunningGateway, session: str) -> None:
        statement = "UPDATE sessions SET expires_at = :at WHERE id = :id"
        await execute(gateway, statement, at=now_us() - 1, id=session)

    async def test_a_session_past_its_term_is_gone_but_not_what_it_used(
        self, gateway: RunningGateway, client: Client
    ) -> None:
        session, other = await client.create(), await client.create()
        for each in (session, other):
            await client.turn(each, f"hello {each} " * 10)
            await settled(client, each)
        await self.expire(gateway, session)
        assert await lapse_of(gateway).expire() == 1
        assert (await client.http.get(f"/v1/sessions/{session}")).status_code == 404
        assert await counts(gateway) == {"sessions": 1, "turns": 1, "usage_events": 2, "leases": 1}
        assert set(gateway.pages.claims) == {other}
        assert set(gateway.pages.pages) == gateway.pages.claims[other]
        assert await lapse_of(gateway).expire() == 0
        metrics = (await client.http.get("/metrics")).text
        assert 'agentmem_expired_total{kind="session"} 1.0' in metrics

    async def test_what_a_fork_builds_on_stays(
        self, gateway: RunningGateway, client: Client
    ) -> None:
        session = await client.create()
        await client.turn(session, "hello " * 30)
        await settled(client, session)
        fork = (await client.http.post(f"/v1/sessions/{session}/fork")).json()["id"]
        await settled(client, fork)
        await self.expire(gateway, session)
        assert await lapse_of(gateway).expire() == 1
        assert (await counts(gateway))["turns"] == 1
        assert set(gateway.pages.pages) == gateway.pages.claims[fork]
        turn = await client.turn(fork, "more")
        assert turn["number"] == 2

    async def test_a_turn_that_came_in_between_prolongs(
        self, gateway: RunningGateway, client: Client
    ) -> None:
        session = await client.create()
        await client.turn(session, "hello")
        deletion = lapse_of(gateway)._deletion
        assert not await deletion.expire(client.tenant_id, SessionId(session), now_us=now_us())
        assert (await client.get(session))["turns"] == 1

    async def test_not_while_a_turn_runs(self, quick: RunningGateway) -> None:
        async with await quick.client("acme") as client:
            session = await client.create()
            events = asyncio.create_task(
                client.stream(session, "more", max_tokens=30, ignore_eos=True)
            )
            await asyncio.sleep(0.2)
            await self.expire(quick, session)
            assert await lapse_of(quick).expire() == 1  # found, and left alone
            assert (await events)[-1][0] == "turn.completed"
            assert (await client.get(session))["turns"] == 1
            assert await lapse_of(quick).expire() == 0


class TestUnnamed:
    """Sessions that no id of a client leads to: their turns take no lease."""

    @staticmethod
    async def chat(client: Client, text: str, **body: object) -> dict[str, object]:
        content = {"model": "fake", "messages": [{"role": "user", "content": text}], **body}
        response = await client.http.post("/v1/chat/completions", json=content)
        assert response.status_code == 200, response.text
        answer: dict[str, object] = response.json()
        return answer

    async def test_hibernates_without_a_lease(self, quick: RunningGateway) -> None:
        async with await quick.client("acme") as client:
            answer = await self.chat(client, "hello " * 30, max_tokens=8)
            session = answer["usage"]["agentmem"]["session_id"]  # type: ignore[index]

            async def hibernated() -> bool:
                return bool((await client.get(session))["state"] == "hibernated")

            await until_async(hibernated)
            # The state is written first: the engine hears of it a moment later.
            await until(lambda: session not in quick.engine.sessions)
            [(generation,)] = await execute(  # type: ignore[misc]
                quick, "SELECT generation FROM leases WHERE session_id = :id", id=session
            )
            assert generation == 0

    async def test_neither_hibernates_nor_expires_while_a_turn_runs(
        self, quick: RunningGateway
    ) -> None:
        async with await quick.client("acme") as client:
            first = {"role": "user", "content": "hello"}
            answer = await self.chat(client, "hello", max_tokens=8)
            session = answer["usage"]["agentmem"]["session_id"]  # type: ignore[index]
            reply = answer["choices"][0]["message"]["content"]  # type: ignore[index]
            told = [first, {"role": "assistant", "content": reply}, {**first, "content": "more"}]
            turn = asyncio.create_task(
                self.chat(client, "", messages=told, max_tokens=110, ignore_eos=True)
            )
            await asyncio.sleep(1.5)
            assert not turn.done()
            assert (await client.get(session))["state"] == "active"
            await TestExpiry().expire(quick, session)
            assert await lapse_of(quick).expire() == 1  # found, and left alone
            more = (await turn)["usage"]["agentmem"]  # type: ignore[index]
            assert (more["session_id"], more["turn"]) == (session, 2)
            assert (await client.get(session))["turns"] == 2
