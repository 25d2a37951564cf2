"""Tenant B with A's id gets what it gets for a random id: the same 404, on every route."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest
from fastapi.routing import APIRoute

from agentmem.api.sessions import sessions_router
from agentmem.testing.gateway import Client, RunningGateway
from tests.integration.gateway.conftest import check_error, settled

# Headers that differ from reply to reply, whatever is asked.
UNLIKE = ("date", "x-request-id", "openai-processing-ms")
RANDOM_ID = "ses_01m87y8r24vqk6tcrffb0r88gw"
MESSAGE = {"role": "user", "content": "hello"}
ROUTES = sorted(
    (method, route.path)
    for route in sessions_router(service=None).routes  # type: ignore[arg-type]
    if isinstance(route, APIRoute)
    for method in route.methods or ()
    if "{session_id}" in route.path
)


@pytest.fixture
async def other(gateway: RunningGateway) -> AsyncIterator[Client]:
    async with await gateway.client("other") as made:
        yield made


def test_the_routes_are_all_here() -> None:
    assert len(ROUTES) == 8


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_another_tenants_id_is_as_good_as_a_random_one(
    gateway: RunningGateway, client: Client, other: Client, method: str, path: str
) -> None:
    session = await client.create()
    await client.turn(session, "hello " * 30)
    before = await settled(client, session)
    body = {"messages": [MESSAGE]} if (method, path[-6:]) == ("POST", "/turns") else None
    answers = []
    for session_id in (session, RANDOM_ID):
        response = await other.http.request(
            method, path.replace("{session_id}", session_id), json=body
        )
        error = check_error(response, 404)
        assert error["code"] == "session_not_found"
        headers = {k: v for k, v in response.headers.items() if k not in UNLIKE}
        answers.append((response.text.replace(session_id, "ID"), headers))
    assert answers[0] == answers[1]
    assert await client.get(session) == before
    assert len(gateway.engine.calls) == 1


async def test_lists_and_cursors_are_the_tenants_own(client: Client, other: Client) -> None:
    session = await client.create()
    await client.turn(session, "hello")
    (turn,) = (await client.http.get(f"/v1/sessions/{session}/turns")).json()["data"]
    assert (await other.http.get("/v1/sessions")).json()["data"] == []
    error = check_error(await other.http.get(f"/v1/sessions?after={session}"), 400)
    assert error["param"] == "after"
    mine = await other.create()
    path = f"/v1/sessions/{mine}/turns?after={turn['id']}"
    assert check_error(await other.http.get(path), 400)["param"] == "after"


async def test_lists_go_on_where_they_were(client: Client) -> None:
    sessions = [await client.create() for _ in range(5)]
    for order, expected in (("asc", sessions), ("desc", sessions[::-1])):
        seen: list[str] = []
        after = ""
        while True:
            query = f"limit=2&order={order}" + (f"&after={after}" if after else "")
            page = (await client.http.get(f"/v1/sessions?{query}")).json()
            seen += [item["id"] for item in page["data"]]
            assert page["first_id"] == page["data"][0]["id"]
            after = page["last_id"]
            if not page["has_more"]:
                break
        assert seen == expected
    for _ in range(5):
        await client.turn(sessions[0], "hello")
    numbers: list[int] = []
    after = ""
    for _ in range(3):
        query = "limit=2" + (f"&after={after}" if after else "")
        page = (await client.http.get(f"/v1/sessions/{sessions[0]}/turns?{query}")).json()
        numbers += [item["number"] for item in page["data"]]
        after = page["last_id"]
    assert numbers == [1, 2, 3, 4, 5]
    newest = (await client.http.get(f"/v1/sessions/{sessions[0]}/turns?order=desc&limit=2")).json()
    assert [item["number"] for item in newest["data"]] == [5, 4]
    assert newest["has_more"]


async def test_salts_differ_and_stay_on_the_server(
    gateway: RunningGateway, client: Client, other: Client
) -> None:
    bodies = []
    for each in (client, other):
        session = await each.create()
        bodies.append(str(await each.turn(session, "hello")))
        bodies.append(str(await each.get(session)))
    salts = {call.salt for call in gateway.engine.calls}
    assert len(salts) == 2
    for salt in salts:
        assert re.fullmatch(r"[0-9a-f]{64}", salt)
        assert not any(salt in body for body in bodies)
