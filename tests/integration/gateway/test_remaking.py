"""Pages that the engine holds and no tier has: hibernate makes them again."""

from __future__ import annotations

from agentmem.testing.gateway import Client, RunningGateway

from .conftest import PAGE_TOKENS, check_error, until


async def hibernate(client: Client, session: str) -> dict[str, int]:
    response = await client.http.post(f"/v1/sessions/{session}/hibernate")
    assert response.status_code == 200, response.text
    answer: dict[str, int] = response.json()
    return answer


async def test_a_session_with_the_same_beginning_as_a_deleted_one(
    gateway: RunningGateway, client: Client
) -> None:
    first = await client.create()
    await client.turn(first, "hello " * 60)
    await hibernate(client, first)
    await client.http.delete(f"/v1/sessions/{first}")
    await until(lambda: not gateway.pages.pages)
    second = await client.create()
    turn = await client.turn(second, "hello " * 60)
    assert turn["usage"]["cached_tokens"]["hbm"] > 0, "the engine still has them"
    answer = await hibernate(client, second)
    assert answer["pages"] == (answer["tokens"] - 1) // PAGE_TOKENS
    claimed = gateway.pages.claims[second]
    assert claimed <= set(gateway.pages.pages)
    assert set(gateway.pages.pages) == claimed, "nothing is left of the making"
    metrics = (await client.http.get("/metrics")).text
    assert f"agentmem_pages_remade_total {answer['pages']}.0" in metrics


async def test_only_what_is_missing_is_made(gateway: RunningGateway, client: Client) -> None:
    session = await client.create()
    await client.turn(session, "hello " * 60)
    await until(lambda: gateway.gateway.service._tracker.watching == 0)
    gateway.pages.pages.pop(list(gateway.pages.pages)[-2])
    computed = len(gateway.engine.calls)
    answer = await hibernate(client, session)
    assert answer["durable_position"] == answer["pages"] * PAGE_TOKENS
    assert len(gateway.engine.calls) == computed + 1, "one request made them"
    assert "agentmem_pages_remade_total 1.0" in (await client.http.get("/metrics")).text


async def test_an_engine_that_cannot_is_no_reason_to_fail_otherwise(
    gateway: RunningGateway, client: Client
) -> None:
    session = await client.create()
    await client.turn(session, "hello " * 60)
    await until(lambda: gateway.gateway.service._tracker.watching == 0)
    gateway.pages.pages.pop(next(iter(gateway.pages.pages)))
    gateway.engine.script.fail_after_tokens = 0
    response = await client.http.post(f"/v1/sessions/{session}/hibernate")
    error = check_error(response, 503)
    assert error["code"] == "not_durable"
    assert "page 0." in error["message"]
