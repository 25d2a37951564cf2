"""Chat Completions over HTTP: replies, choices, tools, formats, streams."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from agentmem.testing.gateway import Client, RunningGateway
from tests.integration.gateway.chatting import WEATHER, complete, post, stream, text_of, user
from tests.integration.gateway.conftest import check_error, until

CALL = '[[call: get_weather {"city":"Zürich"}]]'


class TestReplies:
    async def test_the_object(self, client: Client) -> None:
        response = await post(client, user("[[reply: hi there]]"), metadata={"run": "1"})
        completion = response.json()
        assert completion["id"].startswith("chatcmpl-")
        assert completion["object"] == "chat.completion"
        assert completion["model"] == "fake"
        assert completion["service_tier"] == "default"
        assert completion["metadata"] == {"run": "1"}
        assert completion["choices"] == [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "hi there",
                    "refusal": None,
                    "annotations": [],
                },
                "finish_reason": "stop",
                "logprobs": None,
            }
        ]
        usage = completion["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert set(usage["prompt_tokens_details"]) >= {"cached_tokens", "cache_write_tokens"}
        assert usage["agentmem"]["turn"] == 1
        assert usage["agentmem"]["expires_at"] > completion["created"]
        assert response.headers["x-agentmem-cache"] == "tier=none;restored=0;recomputed=0"
        assert int(response.headers["openai-processing-ms"]) >= 1

    async def test_a_resent_history_goes_on_in_the_same_session(self, client: Client) -> None:
        told = [user("word " * 60)]
        first = await complete(client, *told)
        told += [first["choices"][0]["message"], user("and then?")]
        response = await post(client, *told)
        second = response.json()["usage"]
        assert second["agentmem"]["session_id"] == first["usage"]["agentmem"]["session_id"]
        assert second["agentmem"]["turn"] == 2
        known = first["usage"]["total_tokens"]
        assert second["prompt_tokens_details"]["cached_tokens"] >= 0.9 * known
        assert response.headers["x-agentmem-cache"].startswith("tier=hbm;restored=")

    async def test_cut_at_max_tokens(self, client: Client) -> None:
        for name in ("max_tokens", "max_completion_tokens"):
            limits: dict[str, Any] = {"max_tokens": None, name: 3}
            completion = await complete(client, user("[[reply: one two three four]]"), **limits)
            assert completion["choices"][0]["finish_reason"] == "length"
            assert completion["usage"]["completion_tokens"] == 3

    async def test_stop(self, client: Client) -> None:
        for stop in ("three", ["nothing", "three"]):
            completion = await complete(client, user("[[reply: one two three four]]"), stop=stop)
            assert completion["choices"][0]["message"]["content"] == "one two "
            assert completion["choices"][0]["finish_reason"] == "stop"

    async def test_logprobs(self, client: Client) -> None:
        completion = await complete(client, user("[[reply: ça va]]"), logprobs=True, top_logprobs=2)
        entries = completion["choices"][0]["logprobs"]["content"]
        assert len(entries) == completion["usage"]["completion_tokens"]
        said = b"".join(bytes(entry["bytes"]) for entry in entries[:-1])
        assert said.decode() == "ça va"
        assert all(entry["logprob"] <= 0 for entry in entries)
        assert all(len(entry["top_logprobs"]) == 2 for entry in entries)

    async def test_roles_and_parts(self, client: Client, gateway: RunningGateway) -> None:
        parts = [{"type": "text", "text": "first"}, {"type": "text", "text": "second"}]
        await complete(
            client,
            {"role": "developer", "content": "be brief", "name": "boss"},
            user(parts),
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            user("go on"),
        )
        async with gateway.catalog.reading() as tx:
            session = (await tx.sessions.list(client.tenant_id, after=None, limit=1))[0]
            assert session.head_turn_id is not None
            turn = (await tx.turns.chain(client.tenant_id, session.head_turn_id))[-1]
        assert [(one["role"], one["content"]) for one in turn.messages] == [
            ("system", "be brief"),
            ("user", "first\nsecond"),
            ("assistant", "no"),
            ("user", "go on"),
        ]


class TestChoices:
    async def test_each_is_a_reply_of_its_own(self, client: Client) -> None:
        completion = await complete(client, user("tell me"), n=3, seed=7, max_tokens=8)
        texts = [choice["message"]["content"] for choice in completion["choices"]]
        assert [choice["index"] for choice in completion["choices"]] == [0, 1, 2]
        assert len(set(texts)) == 3
        usage = completion["usage"]
        assert usage["completion_tokens"] == 24
        single = await complete(client, user("tell me"), seed=7, max_tokens=8)
        assert single["choices"][0]["message"]["content"] == texts[0]
        assert single["usage"]["prompt_tokens"] == usage["prompt_tokens"]

    async def test_streamed(self, client: Client) -> None:
        whole = await complete(client, user("tell me"), n=2, seed=7, max_tokens=8)
        chunks = await stream(client, user("tell me"), n=2, seed=7, max_tokens=8)
        for choice in whole["choices"]:
            assert text_of(chunks, choice["index"]) == choice["message"]["content"]

    async def test_too_many_at_once(self, client: Client) -> None:
        assert check_error(await post(client, user("x"), n=9), 400)["param"] == "n"

    async def test_when_one_fails_all_end(self, client: Client, gateway: RunningGateway) -> None:
        gateway.engine.token_seconds = 0.02
        gateway.engine.script.fail_after_tokens = 10
        response = await post(client, user("tell me"), n=3, max_tokens=1_000, ignore_eos=True)
        error = check_error(response, 503)
        assert error["code"] == "engine_failed"
        await until(lambda: len(gateway.engine.aborted) == 3)


class TestTools:
    async def test_a_round_trip(self, client: Client) -> None:
        told: list[dict[str, Any]] = [user(f"[[think: hm]] {CALL}")]
        first = await complete(client, *told, tools=[WEATHER], max_tokens=200)
        choice = first["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] is None
        assert choice["message"]["reasoning_content"] == "hm"
        (call,) = choice["message"]["tool_calls"]
        assert call["type"] == "function"
        assert call["function"]["name"] == "get_weather"
        assert json.loads(call["function"]["arguments"]) == {"city": "Zürich"}
        told += [
            # As clients resend it: without the thinking, with keys of their own order.
            {"role": "assistant", "content": None, "tool_calls": [call], "annotations": []},
            {"role": "tool", "tool_call_id": call["id"], "content": "[[reply: sunny]]"},
        ]
        second = await complete(client, *told, tools=[WEATHER])
        assert second["choices"][0]["message"]["content"] == "sunny"
        agentmem = second["usage"]["agentmem"]
        assert agentmem["session_id"] == first["usage"]["agentmem"]["session_id"]

    async def test_streamed(self, client: Client) -> None:
        chunks = await stream(client, user(CALL), tools=[WEATHER], max_tokens=200)
        pieces = [
            call
            for chunk in chunks
            for call in chunk["choices"][0]["delta"].get("tool_calls") or ()
        ]
        assert [set(piece) for piece in pieces[:1]] == [{"index", "id", "type", "function"}]
        arguments = "".join(piece["function"]["arguments"] for piece in pieces)
        assert json.loads(arguments) == {"city": "Zürich"}
        assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"

    async def test_required_and_named(self, client: Client) -> None:
        named = {"type": "function", "function": {"name": "get_weather"}}
        allowed = {"mode": "required", "tools": [named]}
        for choice in (
            "required",
            named,
            {"type": "allowed_tools", "allowed_tools": allowed},
        ):
            completion = await complete(
                client, user("weather?"), tools=[WEATHER], tool_choice=choice, max_tokens=200
            )
            (call,) = completion["choices"][0]["message"]["tool_calls"]
            assert call["function"]["name"] == "get_weather"

    async def test_functions_as_they_were(self, client: Client) -> None:
        functions = [WEATHER["function"]]
        told: list[dict[str, Any]] = [user(CALL)]
        first = await complete(client, *told, functions=functions, max_tokens=200)
        choice = first["choices"][0]
        assert choice["finish_reason"] == "function_call"
        assert choice["message"]["function_call"]["name"] == "get_weather"
        assert "tool_calls" not in choice["message"]
        told += [
            choice["message"],
            {"role": "function", "name": "get_weather", "content": "[[reply: sunny]]"},
        ]
        second = await complete(client, *told, functions=functions)
        assert second["choices"][0]["message"]["content"] == "sunny"
        assert second["usage"]["agentmem"]["turn"] == 2

    async def test_a_json_schema(self, client: Client) -> None:
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        completion = await complete(
            client,
            user("give me"),
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "answer", "strict": True, "schema": schema},
            },
        )
        assert isinstance(json.loads(completion["choices"][0]["message"]["content"])["n"], int)


class TestStreams:
    async def test_says_the_same_as_the_whole(self, client: Client) -> None:
        whole = await complete(client, user("tell me"), seed=3, max_tokens=12)
        chunks = await stream(
            client, user("tell me"), seed=3, max_tokens=12, stream_options={"include_usage": True}
        )
        assert text_of(chunks) == whole["choices"][0]["message"]["content"]
        assert chunks[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
        usage = chunks[-1]["usage"]
        assert usage["completion_tokens"] == whole["usage"]["completion_tokens"]
        assert len({chunk["id"] for chunk in chunks}) == 1

    async def test_logprobs_are_all_there(self, client: Client) -> None:
        chunks = await stream(
            client, user("tell me"), seed=3, max_tokens=12, logprobs=True, top_logprobs=1
        )
        found = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"]]
        assert sum(len(one["content"]) for one in found if one) == 12

    async def test_a_failure_in_the_middle(self, client: Client, gateway: RunningGateway) -> None:
        gateway.engine.script.fail_after_tokens = 3
        chunks = await stream(client, user("tell me"), ignore_eos=True)
        assert chunks[-1]["error"]["code"] == "engine_failed"
        assert text_of(chunks)

    async def test_a_failure_before_anything_was_sent_is_an_answer(
        self, client: Client, gateway: RunningGateway
    ) -> None:
        for choices in (1, 2):
            gateway.engine.script.fail_after_tokens = 0
            response = await post(client, user("tell me"), stream=True, n=choices)
            assert check_error(response, 503)["code"] == "engine_failed"
            assert response.headers["x-should-retry"] == "true"

    async def test_a_slow_prompt_does_not_hold_the_stream_back(
        self, client: Client, gateway: RunningGateway
    ) -> None:
        gateway.engine.script.stall = asyncio.Event()
        body = {"messages": [user("tell me")], "max_tokens": 4, "stream": True}
        async with client.http.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.aiter_lines()
            async with asyncio.timeout(2.5):
                assert '"role":"assistant"' in await anext(lines)
            gateway.engine.script.stall.set()
            assert [line async for line in lines if line][-1] == "data: [DONE]"

    async def test_leaving_aborts_the_turn(self, client: Client, gateway: RunningGateway) -> None:
        gateway.engine.token_seconds = 0.01
        body = {
            "messages": [user("tell me")],
            "max_tokens": 500,
            "ignore_eos": True,
            "stream": True,
        }
        async with client.http.stream("POST", "/v1/chat/completions", json=body) as response:
            async for line in response.aiter_lines():
                if "content" in line:
                    break
        await until(lambda: len(gateway.engine.aborted) == 1)

    async def test_leaving_the_whole_aborts_too(
        self, client: Client, gateway: RunningGateway
    ) -> None:
        gateway.engine.script.stall = asyncio.Event()
        task = asyncio.create_task(post(client, user("tell me"), n=2))
        await until(lambda: len(gateway.engine.calls) == 2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until(lambda: len(gateway.engine.aborted) == 2)


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"messages": [user([{"type": "image_url", "image_url": {"url": "x"}}])]},
         "messages[0].content[0]", "unsupported_parameter"),
        ({"messages": [{"role": "assistant", "audio": {"id": "x"}}]},
         "messages[0].audio", "unsupported_parameter"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]},
         "tools[0]", "unsupported_parameter"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]", "unsupported_parameter"),
        ({"web_search_options": {}}, "web_search_options", "unsupported_parameter"),
        ({"service_tier": "flex"}, "service_tier", "unsupported_parameter"),
        ({"verbosity": "low"}, "verbosity", "unsupported_parameter"),
        ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
        ({"colour": "red"}, "colour", "unknown_parameter"),
        ({"messages": [{"content": "x"}]}, "messages[0].role",
         "missing_required_parameter"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id",
         "missing_required_parameter"),
        ({"messages": [user("half \ud800")]}, "messages[0].content", "invalid_value"),
        ({"tools": [WEATHER] * 129}, "tools", "invalid_value"),
        ({"tools": [WEATHER, WEATHER]}, "tools", "invalid_value"),
        ({"tools": [WEATHER], "functions": [WEATHER["function"]]}, "functions", "invalid_value"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}, "tools": [WEATHER]},
         "tool_choice.function.name", "invalid_value"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "invalid_value"),
        ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"logit_bias": {"999999": 1}}, "logit_bias", "invalid_value"),
        ({"max_tokens": 100_000}, "messages", "context_length_exceeded"),
    ],
)  # fmt: skip
async def test_what_is_refused(
    client: Client, gateway: RunningGateway, body: dict[str, Any], param: str, code: str
) -> None:
    content = json.dumps({"messages": [user("x")], **body})
    response = await client.http.post(
        "/v1/chat/completions", content=content, headers={"content-type": "application/json"}
    )
    error = check_error(response, 400)
    assert (error["param"], error["code"]) == (param, code)
    assert response.headers["x-should-retry"] == "false"
    assert gateway.engine.calls == []
