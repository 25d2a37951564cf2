"""Contexts over HTTP: made once, begun with by sessions and requests."""

from __future__ import annotations

from typing import Any

import pytest

from agentmem.testing.gateway import Client, RunningGateway
from tests.integration.gateway.chatting import WEATHER, complete, post, stream, user
from tests.integration.gateway.conftest import PAGE_TOKENS, check_error, until_async

CONTEXTS = "/v1/contexts"
RANDOM_ID = "ctx_01m87y8r24vqk6tcrffb0r88gw"


async def make(client: Client, **body: Any) -> dict[str, Any]:
    body = {"documents": [{"title": "Manual", "text": "Press the button. " * 40}], **body}
    response = await client.http.post(CONTEXTS, json=body)
    assert response.status_code == 201, response.text
    made: dict[str, Any] = response.json()
    return made


class TestObjects:
    async def test_made_shown_listed_deleted(self, client: Client) -> None:
        first = await make(client, name="manual", metadata={"a": "b"}, retention="persistent")
        assert first["id"].startswith("ctx_")
        assert (first["object"], first["name"], first["model"]) == ("context", "manual", "fake")
        assert first["pages"] == first["tokens"] // PAGE_TOKENS
        assert first["retention"] == "persistent"
        assert first["created_at"] < first["kv_expires_at"] < first["expires_at"]
        second = await make(client)
        listed = (await client.http.get(CONTEXTS, params={"limit": 1})).json()
        assert [one["id"] for one in listed["data"]] == [second["id"]]
        assert listed["has_more"]
        rest = await client.http.get(CONTEXTS, params={"after": listed["last_id"]})
        assert [one["id"] for one in rest.json()["data"]] == [first["id"]]

        async def durable() -> bool:
            shown = (await client.http.get(f"{CONTEXTS}/{first['id']}")).json()
            return bool(shown["durable_position"] == shown["pages"] * PAGE_TOKENS)

        await until_async(durable)
        deleted = (await client.http.delete(f"{CONTEXTS}/{first['id']}")).json()
        assert (deleted["object"], deleted["deleted"]) == ("context.deleted", True)
        for response in (
            await client.http.get(f"{CONTEXTS}/{first['id']}"),
            await client.http.delete(f"{CONTEXTS}/{first['id']}"),
        ):
            assert check_error(response, 404)["code"] == "context_not_found"

    async def test_messages_and_tools(self, client: Client) -> None:
        made = await make(
            client,
            documents=[],
            instructions="be brief",
            tools=[WEATHER],
            messages=[user("read this"), {"role": "assistant", "content": "done"}],
        )
        session = await client.create(context=made["id"])
        turn = await client.turn(session, '[[call: get_weather {"city":"Oslo"}]]', max_tokens=200)
        # The context's tools are the session's.
        assert turn["message"]["tool_calls"][0]["function"]["name"] == "get_weather"
        assert turn["finish_reason"] == "tool_calls"
        assert not turn["rebased"]

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({}, "messages"),
            ({"documents": []}, "messages"),
            ({"documents": [{"title": "x"}]}, "documents[0].text"),
            ({"documents": [{"text": "x", "pages": 3}]}, "documents[0].pages"),
            ({"documents": [{"text": "x" * 20_000}]}, "messages"),
            ({"messages": [user(7)]}, "messages[0].content"),
            ({"documents": [{"text": "x"}], "retention": "forever"}, "retention"),
            ({"documents": [{"text": "x"}], "name": "y" * 201}, "name"),
            ({"documents": [{"text": "x"}], "store": True}, "store"),
        ],
    )
    async def test_what_is_refused(self, client: Client, body: dict[str, Any], param: str) -> None:
        error = check_error(await client.http.post(CONTEXTS, json=body), 400)
        assert error["param"] == param
        assert (await client.http.get(CONTEXTS)).json()["data"] == []

    @pytest.mark.parametrize("context_id", ["x", "ctx_", RANDOM_ID, "ctx_%00"])
    async def test_ids_that_are_none(self, client: Client, context_id: str) -> None:
        error = check_error(await client.http.get(f"{CONTEXTS}/{context_id}"), 404)
        assert error["code"] == "context_not_found"

    async def test_others_see_nothing(self, client: Client, gateway: RunningGateway) -> None:
        made = await make(client)
        async with await gateway.client("rival") as rival:
            assert (await rival.http.get(CONTEXTS)).json()["data"] == []
            check_error(await rival.http.get(f"{CONTEXTS}/{made['id']}"), 404)
            check_error(await rival.http.delete(f"{CONTEXTS}/{made['id']}"), 404)
            check_error(await post(rival, user("x"), context=made["id"]), 404)
            response = await rival.http.post("/v1/sessions", json={"context": made["id"]})
            assert check_error(response, 404)["code"] == "context_not_found"


class TestBeginning:
    async def test_requests_share_what_was_computed(
        self, client: Client, gateway: RunningGateway
    ) -> None:
        made = await make(client)
        gateway.engine.flush()
        for index in range(3):
            completion = await complete(client, user(f"question {index}"), context=made["id"])
            usage = completion["usage"]
            assert usage["prompt_tokens_details"]["cached_tokens"] >= made["pages"] * PAGE_TOKENS
            session = await client.get(usage["agentmem"]["session_id"])
            assert session["context"] == made["id"]

    async def test_a_request_streams_from_it_too(self, client: Client) -> None:
        made = await make(client)
        chunks = await stream(
            client, user("x"), context=made["id"], stream_options={"include_usage": True}
        )
        cached = chunks[-1]["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached == made["pages"] * PAGE_TOKENS

    async def test_a_session_begins_with_it_and_outlives_it(self, client: Client) -> None:
        made = await make(client)
        session = await client.create(context=made["id"], retention="archive")
        shown = await client.get(session)
        assert (shown["context"], shown["retention"]) == (made["id"], "archive")
        assert (shown["turns"], shown["tokens"]) == (0, made["tokens"])
        first = await client.turn(session, "hello")
        assert first["number"] == 1
        assert first["usage"]["cached_tokens"]["hbm"] >= made["pages"] * PAGE_TOKENS
        assert (await client.http.delete(f"{CONTEXTS}/{made['id']}")).status_code == 200
        second = await client.turn(session, "again")
        assert second["number"] == 2
        assert sum(second["usage"]["cached_tokens"].values()) >= made["pages"] * PAGE_TOKENS

    async def test_turns_of_such_a_session_show_the_context_first(self, client: Client) -> None:
        made = await make(client)
        session = await client.create(context=made["id"])
        await client.turn(session, "hello")
        listed = (await client.http.get(f"/v1/sessions/{session}/turns")).json()["data"]
        assert [turn["number"] for turn in listed] == [0, 1]
        assert listed[0]["message"] is None
        assert "Press the button" in listed[0]["messages"][0]["content"]

    async def test_another_model_is_refused(self, client: Client) -> None:
        made = await make(client)
        ok = await complete(client, user("x"), context=made["id"], model="gpt-4o")
        assert ok["model"] == "fake"
        response = await post(client, user("x"), context=made["id"], model="robot")
        assert check_error(response, 404)["code"] == "model_not_found"
