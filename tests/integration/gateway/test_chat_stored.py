"""What `store` keeps of a completion, how it is read and deleted, and what a repeat gets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agentmem.testing.gateway import Client, RunningGateway
from tests.integration.gateway.chatting import CHAT, WEATHER, complete, post, stream, user
from tests.integration.gateway.conftest import check_error, until, until_async

CALL = '[[call: get_weather {"city":"Oslo"}]]'


async def turns_of(gateway: RunningGateway, client: Client) -> int:
    async with gateway.catalog.reading() as tx:
        return await tx.turns.count(client.tenant_id)


class TestStored:
    async def test_is_read_as_it_was_answered(self, client: Client) -> None:
        for body in (
            {"n": 2, "seed": 1, "logprobs": True, "top_logprobs": 1, "metadata": {"a": "b"}},
            {"tools": [WEATHER], "max_tokens": 200},
            {"functions": [WEATHER["function"]], "max_tokens": 200},
        ):
            completion = await complete(client, user(CALL), store=True, **body)
            response = await client.http.get(f"{CHAT}/{completion['id']}")
            assert response.status_code == 200
            assert response.json() == completion

    async def test_streamed_is_read_too(self, client: Client) -> None:
        chunks = await stream(client, user("[[reply: hello]]"), store=True)
        stored = (await client.http.get(f"{CHAT}/{chunks[0]['id']}")).json()
        assert stored["choices"][0]["message"]["content"] == "hello"
        assert stored["created"] == chunks[0]["created"]

    async def test_messages(self, client: Client) -> None:
        told = [{"role": "system", "content": "be kind"}, user("one")]
        first = await complete(client, *told)
        told += [first["choices"][0]["message"], user("two")]
        completion = await complete(client, *told, store=True)
        path = f"{CHAT}/{completion['id']}/messages"
        listed = (await client.http.get(path)).json()
        assert [one["role"] for one in listed["data"]] == ["system", "user", "assistant", "user"]
        assert [one["content"] for one in listed["data"]] == [one["content"] for one in told]
        assert listed["data"][0]["id"] == listed["first_id"] == f"{completion['id']}-0"
        page = (await client.http.get(path, params={"limit": 3, "order": "desc"})).json()
        assert page["has_more"]
        rest = await client.http.get(path, params={"after": page["last_id"], "order": "desc"})
        assert [one["id"] for one in rest.json()["data"]] == [listed["first_id"]]
        error = check_error(await client.http.get(path, params={"after": "x"}), 400)
        assert error["param"] == "after"

    async def test_delete_takes_the_turn_along(
        self, client: Client, gateway: RunningGateway
    ) -> None:
        completion = await complete(client, user("tell me"), store=True, n=2)
        assert await turns_of(gateway, client) == 2
        path = f"{CHAT}/{completion['id']}"
        deleted = (await client.http.delete(path)).json()
        assert deleted == {
            "id": completion["id"],
            "object": "chat.completion.deleted",
            "deleted": True,
        }
        assert await turns_of(gateway, client) == 0
        for response in (
            await client.http.get(path),
            await client.http.delete(path),
            await client.http.get(f"{path}/messages"),
        ):
            assert check_error(response, 404)["code"] == "chat_completion_not_found"
        session = completion["usage"]["agentmem"]["session_id"]
        check_error(await client.http.get(f"/v1/sessions/{session}"), 404)

    async def test_delete_while_busy_can_be_tried_again(
        self, client: Client, gateway: RunningGateway
    ) -> None:
        completion = await complete(client, user("tell me"), store=True, n=2)
        path = f"{CHAT}/{completion['id']}"
        session = completion["usage"]["agentmem"]["session_id"]
        gateway.engine.script.stall = asyncio.Event()
        resuming = asyncio.create_task(client.post_turn(session, "go on"))
        await until(lambda: len(gateway.engine.calls) == 3)
        assert check_error(await client.http.delete(path), 409)["code"] == "session_busy"
        assert (await client.http.get(path)).status_code == 200
        gateway.engine.script.stall.set()
        assert (await resuming).status_code == 201
        assert (await client.http.delete(path)).status_code == 200
        check_error(await client.http.get(path), 404)
        # What goes on from it stays, and so does the turn that it builds on.
        assert (await client.get(session))["turns"] == 2

    async def test_others_see_nothing(self, client: Client, gateway: RunningGateway) -> None:
        completion = await complete(client, user("secret"), store=True)
        async with await gateway.client("rival") as rival:
            path = f"{CHAT}/{completion['id']}"
            foreign = check_error(await rival.http.get(path), 404)
            check_error(await rival.http.delete(path), 404)
            unknown = f"{CHAT}/chatcmpl-{'0' * 26}"
            nothing = check_error(await rival.http.get(unknown), 404)
        assert foreign["code"] == nothing["code"]
        assert (await client.http.get(path)).status_code == 200

    @pytest.mark.parametrize("completion_id", ["x", "chatcmpl-", "resp_" + "0" * 26, "%00"])
    async def test_ids_that_are_none(self, client: Client, completion_id: str) -> None:
        check_error(await client.http.get(f"{CHAT}/{completion_id}"), 404)

    async def test_listing_and_changing_are_refused_in_a_sentence(self, client: Client) -> None:
        completion = await complete(client, user("x"), store=True)
        listed = await client.http.get(CHAT)
        changed = await client.http.post(f"{CHAT}/{completion['id']}", json={"metadata": {}})
        for response in (listed, changed):
            error = check_error(response, 400)
            assert error["code"] == "unsupported_parameter"
            assert error["message"].endswith(".")


class TestNotStored:
    async def test_unset_keeps_the_log_but_is_not_read(
        self, client: Client, gateway: RunningGateway
    ) -> None:
        completion = await complete(client, user("tell me"))
        check_error(await client.http.get(f"{CHAT}/{completion['id']}"), 404)
        assert await turns_of(gateway, client) == 1

    async def test_false_keeps_nothing(self, client: Client, gateway: RunningGateway) -> None:
        completion = await complete(client, user("tell me"), store=False)
        check_error(await client.http.get(f"{CHAT}/{completion['id']}"), 404)
        assert await turns_of(gateway, client) == 0
        agentmem = completion["usage"]["agentmem"]
        assert agentmem["session_id"] is None
        assert agentmem["expires_at"] is None
        assert completion["usage"]["prompt_tokens_details"]["cache_write_tokens"] == 0


class TestRetention:
    @pytest.mark.parametrize(
        ("body", "name"),
        [
            ({}, None),
            ({"retention": "archive"}, "archive"),
            ({"prompt_cache_options": {"ttl": "30m"}}, "ephemeral"),
            ({"prompt_cache_options": {"mode": "explicit", "ttl": "12h"}}, "standard"),
            ({"prompt_cache_retention": "in_memory"}, "ephemeral"),
            ({"prompt_cache_retention": "24h"}, "persistent"),
            ({"prompt_cache_retention": "24h", "prompt_cache_options": {"ttl": "30m"}},
             "ephemeral"),
        ],
    )  # fmt: skip
    async def test_classes(self, client: Client, body: dict[str, Any], name: str | None) -> None:
        completion = await complete(client, user("tell me"), **body)
        agentmem = completion["usage"]["agentmem"]
        assert agentmem["retention"] == name
        session = await client.get(agentmem["session_id"])
        assert (session["retention"], session["origin"]) == (name, "request")
        assert abs(session["expires_at"] - agentmem["expires_at"]) <= 1
        assert abs(session["kv_expires_at"] - agentmem["kv_expires_at"]) <= 1

    async def test_a_breakpoint_has_a_term_too(self, client: Client) -> None:
        mark = {"mode": "explicit", "ttl": "12h"}
        part = {"type": "text", "text": "long", "prompt_cache_breakpoint": mark}
        completion = await complete(client, user([part]))
        assert completion["usage"]["agentmem"]["retention"] == "standard"


class TestRepeats:
    async def test_a_key_gets_the_same_answer(
        self, client: Client, gateway: RunningGateway
    ) -> None:
        headers = {"Idempotency-Key": "once"}
        body: dict[str, Any] = {"n": 2, "headers": headers}
        first = await complete(client, user("tell me"), **body)
        again = await complete(client, user("tell me"), **body)
        assert again == first
        streamed = await stream(client, user("tell me"), n=2)
        assert streamed[0]["id"] != first["id"]
        response = await post(client, user("tell me more"), **body)
        assert check_error(response, 409)["code"] == "idempotency_conflict"
        assert response.headers["x-should-retry"] == "false"
        assert await turns_of(gateway, client) == 4

    async def test_an_sdk_that_tries_again(self, client: Client, gateway: RunningGateway) -> None:
        first = await complete(client, user("hi"), headers={"x-stainless-retry-count": "0"})
        again = await complete(client, user("hi"), headers={"x-stainless-retry-count": "1"})
        other = await complete(client, user("hi"), headers={"x-stainless-retry-count": "0"})
        assert again == first
        assert other["id"] != first["id"]
        assert await turns_of(gateway, client) == 2

    async def test_one_usage_event_for_each_turn(
        self, client: Client, gateway: RunningGateway
    ) -> None:
        for _ in range(3):
            await complete(client, user("hi"), headers={"Idempotency-Key": "k"})

        async def told() -> bool:
            return await turns_of(gateway, client) == 1

        await until_async(told)

    async def test_a_header_that_says_nothing(self, client: Client) -> None:
        response = await post(client, user("hi"), headers={"Idempotency-Key": "x" * 256})
        assert check_error(response, 400)["param"] == "Idempotency-Key"
