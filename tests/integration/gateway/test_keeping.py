"""Pages expected and received: what SGLang dropped is counted, and made again in idle time."""

from __future__ import annotations

import asyncio

import pytest

from agentmem.sessions.keeping import Keeping
from agentmem.sessions.ports import LostPage
from agentmem.testing.gateway import Client, RunningGateway

from .conftest import PAGE_TOKENS, until


@pytest.fixture
def keeping(gateway: RunningGateway) -> Keeping:
    keeping = gateway.gateway.service._keeping
    keeping.first_seconds, keeping.again_seconds, keeping.pause_seconds = 0.05, 0.05, 0.05
    return keeping


async def value(client: Client, name: str) -> float:
    for line in (await client.http.get("/metrics")).text.splitlines():
        if line.startswith(f"agentmem_{name} "):
            return float(line.split()[-1])
    raise AssertionError(f"no metric {name}")


async def usage(client: Client, session: str) -> dict[str, object]:
    turns = (await client.http.get(f"/v1/sessions/{session}/turns?order=desc&limit=1")).json()
    found: dict[str, object] = turns["data"][0]["usage"]
    return found


async def test_pages_that_all_arrive_are_counted_and_nothing_is_made(
    gateway: RunningGateway, client: Client, keeping: Keeping
) -> None:
    session = await client.create()
    turn = await client.turn(session, "hello " * 60)
    tokens = turn["usage"]["prompt_tokens"] + turn["usage"]["output_tokens"]
    await until(lambda: not keeping.waiting)
    pages = (tokens - 1) // PAGE_TOKENS
    assert pages > 0
    assert await value(client, "pages_expected_total") == pages
    assert await value(client, "pages_received_total") == pages
    assert await value(client, "pages_missing_total") == 0
    assert (await usage(client, session)).get("pages") is None
    assert len(gateway.engine.calls) == 1


async def test_what_the_engine_dropped_is_made_again_by_itself(
    gateway: RunningGateway, client: Client, keeping: Keeping
) -> None:
    gateway.pages.drop = 3
    session = await client.create()
    await client.turn(session, "hello " * 60)
    await until(lambda: len(gateway.engine.calls) == 2)
    await until(lambda: not keeping.waiting)
    expected = await value(client, "pages_expected_total")
    assert await value(client, "pages_missing_total") == 3
    assert await value(client, "pages_received_total") == expected - 3
    assert (await usage(client, session))["pages"] == {
        "expected": expected,
        "received": expected - 3,
    }
    claimed = gateway.pages.claims[session]
    assert claimed == set(gateway.pages.pages), "all there, and nothing left of the making"
    await until(lambda: gateway.gateway.service._tracker.watching == 0)


async def test_a_busy_worker_is_let_be_and_a_turn_interrupts_the_making(
    gateway: RunningGateway, client: Client, keeping: Keeping
) -> None:
    gateway.pages.drop = 3
    dropped = await client.create()
    await client.turn(dropped, "hello " * 60)
    await until(lambda: bool(keeping._missed) or len(gateway.engine.calls) > 1)
    gateway.engine.prefill_seconds_per_token = 0.02
    # The making takes seconds now; a turn comes and ends it.
    await until(lambda: len(gateway.engine.calls) == 2)
    gateway.engine.prefill_seconds_per_token = 0.0
    gateway.engine.script.stall = asyncio.Event()
    other = await client.create()
    running = asyncio.create_task(client.turn(other, "other"))
    await until(lambda: gateway.engine.calls[1].request_id in gateway.engine.aborted)
    calls = len(gateway.engine.calls)
    await asyncio.sleep(0.3)
    assert len(gateway.engine.calls) == calls, "nothing is made while the turn runs"
    gateway.engine.script.stall.set()
    await running
    await until(lambda: not keeping.waiting)
    assert gateway.pages.claims[dropped] <= set(gateway.pages.pages)


async def test_the_pages_of_a_deleted_session_are_not_missed(
    gateway: RunningGateway, client: Client, keeping: Keeping
) -> None:
    keeping.first_seconds = 0.5
    session = await client.create()
    await client.turn(session, "hello " * 60)
    await client.http.delete(f"/v1/sessions/{session}")
    await until(lambda: not gateway.pages.pages)
    await until(lambda: not keeping.waiting)
    assert await value(client, "pages_missing_total") == 0
    assert len(gateway.engine.calls) == 1


async def test_an_agent_that_is_away_is_asked_again(
    gateway: RunningGateway, client: Client, keeping: Keeping
) -> None:
    gateway.pages.down = True
    session = await client.create()
    await client.turn(session, "hello " * 60)
    await asyncio.sleep(0.6)
    assert keeping.waiting == 1
    gateway.pages.down = False
    await until(lambda: not keeping.waiting)
    assert await value(client, "pages_missing_total") == 0


async def test_what_cannot_be_made_is_given_up(
    gateway: RunningGateway, client: Client, keeping: Keeping
) -> None:
    gateway.pages.drop = 1_000
    session = await client.create()
    await client.turn(session, "hello " * 60)
    assert session
    # A making waits for pages that never come: the bound of the test's own.
    await until(lambda: bool(keeping._missed))
    gateway.engine.dead = True
    await until(lambda: not keeping.waiting, seconds=10)
    gateway.engine.dead = False


async def test_what_the_agent_had_to_drop_is_made_again(
    gateway: RunningGateway, client: Client, keeping: Keeping
) -> None:
    session = await client.create()
    await client.turn(session, "hello " * 60)
    await until(lambda: not keeping.waiting)
    claimed = gateway.pages.claims[session]
    for key in list(claimed)[:2]:
        del gateway.pages.pages[key]
    gateway.pages.losses += [LostPage(1, session), LostPage(2, "no session")]
    await keeping.take_losses()
    assert keeping.waiting == 1
    await until(lambda: not keeping.waiting)
    assert claimed <= set(gateway.pages.pages)
    await keeping.take_losses()
    assert keeping.waiting == 0, "each loss is heard of once"
