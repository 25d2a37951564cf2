"""Hibernate, resume, residency, fork, delete."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from agentmem.config import Settings
from agentmem.core import PageKey
from agentmem.testing.gateway import Client, RunningGateway, running_gateway
from tests.integration.gateway.conftest import PAGE_TOKENS, check_error, settled, until, until_async

EMPTY = {"hbm": 0, "dram": 0, "disk": 0, "object": 0}


@pytest.fixture
async def session(client: Client) -> str:
    session_id = await client.create()
    await client.turn(session_id, "hello " * 30)
    return session_id


async def post(client: Client, session_id: str, action: str, **body: Any) -> dict[str, Any]:
    path = f"/v1/sessions/{session_id}/{action}"
    response = await client.http.post(path, json=body or None)
    assert response.is_success, response.text
    result: dict[str, Any] = response.json()
    return result


async def session_of_length(client: Client, remainder: int) -> str:
    """A session whose log is `remainder` tokens over a multiple of the page size."""
    session = await client.create()
    turn = await client.turn(session, "hello " * 30, max_tokens=1, ignore_eos=True)
    log = turn["usage"]["prompt_tokens"] + 1
    other = await client.create()
    more = (remainder - log) % PAGE_TOKENS
    await client.turn(other, "hello " * 30, max_tokens=1 + more, ignore_eos=True)
    assert (await client.get(other))["tokens"] % PAGE_TOKENS == remainder
    return other


class TestHibernate:
    async def test_all_pages_are_durable(
        self, gateway: RunningGateway, client: Client, session: str
    ) -> None:
        gateway.pages.durable_delay_seconds = 0.1
        turn = await client.turn(session, "more " * 20)
        log = turn["usage"]["prompt_tokens"] + turn["usage"]["output_tokens"]
        done = await post(client, session, "hibernate")
        pages = (log - 1) // PAGE_TOKENS
        assert done["pages"] == pages
        assert done["bytes"] == pages * PAGE_TOKENS * gateway.worker.worker.kv_bytes_per_token
        assert done["tokens"] == log
        assert done["durable_position"] == pages * PAGE_TOKENS
        assert 0.05 < done["seconds"] < 0.5
        shown = await client.get(session)
        assert shown["state"] == "hibernated"
        assert shown["durable_position"] == done["durable_position"]
        assert gateway.engine.sessions == set()
        assert gateway.pages.claims[session] >= set(_keys(gateway))

    async def test_a_log_that_ends_on_a_page_gets_its_last_page(
        self, gateway: RunningGateway, client: Client
    ) -> None:
        session = await session_of_length(client, 0)
        log = (await client.get(session))["tokens"]
        assert (await client.get(session))["pages"] == log // PAGE_TOKENS - 1
        done = await post(client, session, "hibernate")
        assert done["pages"] == log // PAGE_TOKENS
        assert gateway.engine.calls[-1].sampling.max_tokens == 0
        assert len(gateway.engine.calls[-1].token_ids) == log
        shown = await client.get(session)
        assert shown["pages"] == log // PAGE_TOKENS
        assert shown["durable_position"] == log

    @pytest.mark.parametrize("remainder", [1, PAGE_TOKENS - 1])
    async def test_other_logs_send_nothing(
        self, gateway: RunningGateway, client: Client, remainder: int
    ) -> None:
        session = await session_of_length(client, remainder)
        calls = len(gateway.engine.calls)
        done = await post(client, session, "hibernate")
        assert done["pages"] == done["tokens"] // PAGE_TOKENS
        assert len(gateway.engine.calls) == calls

    async def test_by_the_deadline_the_missing_pages_are_named(
        self, gateway: RunningGateway, client: Client, session: str
    ) -> None:
        keys = list(gateway.pages.pages)
        for lost in (keys[1], keys[2]):
            del gateway.pages.pages[lost]
        gateway.engine.script.fail_after_tokens = 0  # or they would be made again
        response = await client.http.post(f"/v1/sessions/{session}/hibernate")
        error = check_error(response, 503)
        assert error["code"] == "not_durable"
        assert f"2 of {len(keys)} pages" in error["message"]
        assert "page 1, 2" in error["message"]
        assert "0.5 s" in error["message"]
        assert "retry-after" in response.headers
        shown = await client.get(session)
        assert shown["state"] == "active"

    async def test_works_without_a_worker(
        self, gateway: RunningGateway, client: Client, session: str
    ) -> None:
        async with gateway.catalog.transaction() as tx:
            worker = gateway.worker.worker
            await tx.workers.heartbeat(worker.id, worker.generation, state="dead")
        gateway.engine.dead = True
        done = await post(client, session, "hibernate")
        assert done["bytes"] > 0

    async def test_a_session_without_turns(self, client: Client) -> None:
        session = await client.create()
        done = await post(client, session, "hibernate")
        assert (done["pages"], done["tokens"], done["durable_position"]) == (0, 0, 0)
        assert (await post(client, session, "resume"))["tokens"] == 0
        assert (await client.get(session))["state"] == "active"


class TestDurability:
    async def test_comes_without_asking(
        self, gateway: RunningGateway, client: Client, session: str
    ) -> None:
        gateway.pages.durable_delay_seconds = 0.05
        for _ in range(3):
            await client.turn(session, "more " * 10)
        log = (await client.get(session))["tokens"]

        async def durable() -> bool:
            shown = await client.get(session)
            return bool(shown["durable_position"] == (log - 1) // PAGE_TOKENS * PAGE_TOKENS)

        await until_async(durable)
        await until(lambda: gateway.gateway.service._tracker.watching == 0)

    async def test_a_lost_page_holds_the_position_back(
        self, gateway: RunningGateway, client: Client
    ) -> None:
        gateway.pages.drop = 1
        session = await client.create()
        await client.turn(session, "hello " * 30)
        await until(lambda: gateway.gateway.service._tracker.watching == 0)
        assert (await client.get(session))["durable_position"] == 0
        text = (await client.http.get("/metrics")).text
        assert "agentmem_durability_given_up_total 1.0" in text


class TestResume:
    async def test_says_what_came_from_where(
        self, gateway: RunningGateway, client: Client, session: str
    ) -> None:
        await post(client, session, "hibernate")
        gateway.engine.flush()
        log = (await client.get(session))["tokens"]
        done = await post(client, session, "resume")
        full = (log - 1) // PAGE_TOKENS * PAGE_TOKENS
        assert done["tokens"] == log
        assert done["cached_tokens"] == {**EMPTY, "disk": full}
        assert done["recomputed_tokens"] == log - 1 - full
        assert gateway.engine.sessions == {session}
        assert (await client.get(session))["state"] == "active"
        usage = (await client.turn(session, "go on"))["usage"]
        assert usage["cached_tokens"] == {**EMPTY, "hbm": log // PAGE_TOKENS * PAGE_TOKENS}

    async def test_a_resumed_turn_equals_the_uninterrupted_one(
        self, gateway: RunningGateway, client: Client
    ) -> None:
        outputs = []
        for interrupted in (False, True):
            session = await client.create()
            await client.turn(session, "hello " * 30)
            if interrupted:
                await post(client, session, "hibernate")
                gateway.engine.flush()
                await post(client, session, "resume")
            outputs.append(await client.turn(session, "go on", logprobs=True))
        assert outputs[0]["output_ids"] == outputs[1]["output_ids"]
        assert outputs[0]["logprobs"] == outputs[1]["logprobs"]

    async def test_resumes_of_more_tokens_than_the_host_pool_takes_wait_in_line(
        self, settings: Settings
    ) -> None:
        small = settings.model_copy(update={"hbm_tokens": 1_024})
        async with running_gateway(small) as gateway, await gateway.client("acme") as client:
            sessions = [await client.create() for _ in range(4)]
            for session in sessions:
                await client.turn(session, "hello " * 100)
                await post(client, session, "hibernate")
            tokens = (await client.get(sessions[0]))["durable_position"]
            limit = gateway.worker.worker.host_pool_tokens // 2
            gateway.engine.flush()
            gateway.engine.prefill_seconds_per_token = 1e-3
            gate = gateway.gateway.router._assignments[gateway.worker.worker.id].gate
            highest = 0

            async def watch() -> None:
                nonlocal highest
                while True:
                    highest = max(highest, gate.held)
                    await asyncio.sleep(0.001)

            watching = asyncio.create_task(watch())
            await asyncio.gather(*(post(client, session, "resume") for session in sessions))
            watching.cancel()
            assert tokens * 4 > limit >= highest >= tokens
            assert gate.held == 0

    async def test_after_a_restart_of_the_engine_nothing_is_taken_for_warm(
        self, gateway: RunningGateway, client: Client, session: str
    ) -> None:
        await client.turn(session, "more")
        gate = gateway.gateway.router._assignments[gateway.worker.worker.id].gate
        gateway.engine.sessions.clear()
        async with gateway.catalog.transaction() as tx:
            # As a worker process does that starts its engine again: the same row, a new URL.
            assert await tx.workers.update(replace(gateway.worker.worker, url="fake:again"))
        await settled(client, session)
        await asyncio.sleep(0.6)
        await client.turn(session, "go on")
        assert gateway.engine.sessions == {session}
        assert gateway.gateway.router._assignments[gateway.worker.worker.id].gate is not gate


class TestResidency:
    async def test_per_tier(self, gateway: RunningGateway, client: Client, session: str) -> None:
        log = (await client.get(session))["tokens"]
        pages = (log - 1) // PAGE_TOKENS
        await settled(client, session)
        lost = list(gateway.pages.pages)[-1]
        del gateway.pages.pages[lost]
        found = (await client.http.get(f"/v1/sessions/{session}/residency")).json()
        share = {
            "pages": pages - 1,
            "tokens": (pages - 1) * PAGE_TOKENS,
            "bytes": (pages - 1) * gateway.pages.page_bytes,
        }
        assert found["tiers"] == {
            "dram": share,
            "disk": share,
            "object": {"pages": 0, "tokens": 0, "bytes": 0},
        }
        assert (found["pages"], found["durable_pages"]) == (pages, pages - 1)


class TestFork:
    async def test_shares_the_log_and_goes_its_own_way(
        self, gateway: RunningGateway, client: Client, session: str
    ) -> None:
        second = await client.turn(session, "more")
        before = await settled(client, session)
        fork = await post(client, session, "fork")
        assert fork["parent"] == {"session_id": session, "turn": 2}
        assert (fork["turns"], fork["tokens"]) == (2, before["tokens"])
        listed = (await client.http.get(f"/v1/sessions/{fork['id']}/turns")).json()["data"]
        assert listed[1] == {**second, "session_id": fork["id"]}
        pages = dict(gateway.pages.pages)
        assert set(pages) >= gateway.pages.claims[fork["id"]] == gateway.pages.claims[session]
        one = await client.turn(session, "next")
        other = await client.turn(fork["id"], "next")
        assert one["output_ids"] == other["output_ids"]
        assert one["id"] != other["id"]
        await client.turn(fork["id"], "further")
        assert (await client.get(session))["turns"] == 3
        assert (await client.get(fork["id"]))["turns"] == 4

    async def test_at_a_turn(self, gateway: RunningGateway, client: Client, session: str) -> None:
        first = (await client.get(session))["tokens"]
        await client.turn(session, "more")
        fork = await post(client, session, "fork", turn=1, metadata={"kind": "branch"})
        assert (fork["turns"], fork["tokens"]) == (1, first)
        assert fork["metadata"] == {"kind": "branch"}
        turn = await client.turn(fork["id"], "otherwise", expected_turn=2)
        prompt = list(gateway.engine.calls[-1].token_ids)
        assert prompt[:first] == list(gateway.engine.calls[1].token_ids)[:first]
        assert turn["number"] == 2
        # Recomputed at most the part of a page: the parent's pages are the fork's.
        assert turn["usage"]["recomputed_tokens"] < PAGE_TOKENS

    async def test_at_nothing(self, client: Client, session: str) -> None:
        fork = await post(client, session, "fork", turn=0)
        assert (fork["turns"], fork["tokens"], fork["pages"]) == (0, 0, 0)
        assert (await client.turn(fork["id"], "hello"))["number"] == 1

    async def test_outlives_its_parent(
        self, gateway: RunningGateway, client: Client, session: str
    ) -> None:
        await client.turn(session, "more " * 20)
        fork = (await post(client, session, "fork", turn=1))["id"]
        shared = set(gateway.pages.claims[fork])
        assert shared
        gone = (await client.http.delete(f"/v1/sessions/{session}")).json()
        assert gone["pages_deleted"] > 0
        assert set(gateway.pages.pages) == shared
        async with gateway.catalog.reading() as tx:
            assert await tx.turns.count(client.tenant_id) == 1
        assert (await client.turn(fork, "still here"))["number"] == 2
        listed = (await client.http.get(f"/v1/sessions/{fork}/turns")).json()["data"]
        assert [turn["number"] for turn in listed] == [1, 2]
        await client.http.delete(f"/v1/sessions/{fork}")
        async with gateway.catalog.reading() as tx:
            assert await tx.turns.count(client.tenant_id) == 0
        assert gateway.pages.pages == {}


class TestDelete:
    async def test_frees_everything(
        self, gateway: RunningGateway, client: Client, session: str
    ) -> None:
        pages = len(gateway.pages.pages)
        gone = (await client.http.delete(f"/v1/sessions/{session}")).json()
        assert gone == {
            "id": session,
            "object": "session.deleted",
            "deleted": True,
            "pages_deleted": pages,
            "bytes_deleted": pages * gateway.pages.page_bytes,
        }
        assert gateway.pages.pages == {}
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/turns"), ("POST", "/resume")):
            response = await client.http.request(method, f"/v1/sessions/{session}{path}")
            check_error(response, 404)

    async def test_the_last_page_of_a_log_at_a_pages_edge_goes_too(
        self, gateway: RunningGateway, client: Client
    ) -> None:
        session = await session_of_length(client, 0)
        await post(client, session, "resume")  # makes that page
        pages = (await client.get(session))["tokens"] // PAGE_TOKENS
        await client.http.delete(f"/v1/sessions/{session}")
        (keys,) = (keys for claim_id, keys in gateway.pages.unclaimed if claim_id == session)
        assert len(keys) == pages

    async def test_an_agent_that_is_down_is_told_later(
        self, gateway: RunningGateway, client: Client, session: str
    ) -> None:
        gateway.gateway.service._unclaimer._interval_seconds = 0.05
        gateway.pages.down = True
        response = await client.http.delete(f"/v1/sessions/{session}")
        assert response.status_code == 200
        assert response.json()["pages_deleted"] == 0
        check_error(await client.http.get(f"/v1/sessions/{session}"), 404)
        async with gateway.catalog.reading() as tx:
            assert await tx.unclaims.count() == 1
        assert gateway.pages.pages
        await asyncio.sleep(1.2)  # the loop has tried, and failed
        gateway.pages.down = False
        await until(lambda: not gateway.pages.pages, 5.0)

        async def worked_off() -> bool:
            async with gateway.catalog.reading() as tx:
                return await tx.unclaims.count() == 0

        await until_async(worked_off)

    async def test_what_is_left_is_worked_off_after_a_restart(self, settings: Settings) -> None:
        async with running_gateway(settings) as first, await first.client("acme") as client:
            session = await client.create()
            await client.turn(session, "hello " * 30)
            first.pages.down = True
            await client.http.delete(f"/v1/sessions/{session}")
            async with first.catalog.reading() as tx:
                assert await tx.unclaims.count() == 1
        async with running_gateway(settings) as second:

            async def worked_off() -> bool:
                async with second.catalog.reading() as tx:
                    return await tx.unclaims.count() == 0

            await until_async(worked_off, 5.0)
            assert [claim_id for claim_id, _ in second.pages.unclaimed] == [session]


def _keys(gateway: RunningGateway) -> list[PageKey]:
    return list(gateway.pages.pages)
