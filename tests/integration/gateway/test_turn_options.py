"""What turns of a named session take besides messages, and what sessions say of themselves."""

from __future__ import annotations

import json
from typing import Any

from agentmem.testing.gateway import Client, RunningGateway
from tests.integration.gateway.chatting import WEATHER
from tests.integration.gateway.conftest import check_error

CALL = '[[think: hm]] [[call: get_weather {"city":"Zürich"}]]'


class TestTurns:
    async def test_tools(self, client: Client) -> None:
        session = await client.create()
        first = await client.turn(session, CALL, tools=[WEATHER], max_tokens=200)
        assert first["finish_reason"] == "tool_calls"
        assert first["message"]["reasoning_content"] == "hm"
        (call,) = first["message"]["tool_calls"]
        answer = {"role": "tool", "tool_call_id": call["id"], "content": "[[reply: sunny]]"}
        response = await client.http.post(
            f"/v1/sessions/{session}/turns",
            json={"messages": [answer], "tools": [WEATHER], "max_tokens": 20},
        )
        second = response.json()
        assert second["message"]["content"] == "sunny"
        assert second["messages"] == [answer]
        assert not second["rebased"]

    async def test_tools_streamed(self, client: Client) -> None:
        session = await client.create()
        events = await client.stream(session, CALL, tools=[WEATHER], max_tokens=200)
        deltas = [data for name, data in events if name == "turn.delta"]
        assert "".join(delta.get("reasoning", "") for delta in deltas) == "hm"
        pieces = [call for delta in deltas for call in delta.get("tool_calls", ())]
        assert (pieces[0]["index"], pieces[0]["name"]) == (0, "get_weather")
        arguments = "".join(piece["arguments"] for piece in pieces)
        assert json.loads(arguments) == {"city": "Zürich"}
        turn = events[-1][1]
        assert turn["message"]["tool_calls"][0]["id"] == pieces[0]["id"]
        ids = [token for delta in deltas for token in delta["token_ids"]]
        assert ids == turn["output_ids"]

    async def test_alternatives(self, client: Client) -> None:
        session = await client.create()
        options: dict[str, Any] = {"logprobs": True, "top_logprobs": 2, "max_tokens": 4}
        events = await client.stream(session, "hello", **options)
        turn = events[-1][1]
        deltas = [data for name, data in events if name == "turn.delta"]
        told = [one for delta in deltas for one in delta["top_logprobs"]]
        assert told == turn["top_logprobs"]
        assert [len(one) for one in told] == [2] * 4
        assert set(told[0][0]) == {"token_id", "logprob"}
        plain = await client.turn(session, "again")
        assert plain["top_logprobs"] is None

    async def test_a_format(self, client: Client) -> None:
        session = await client.create()
        turn = await client.turn(
            session, "hello", response_format={"type": "json_object"}, max_tokens=40
        )
        assert isinstance(json.loads(turn["message"]["content"]), dict)

    async def test_sampling_reaches_the_engine(
        self, client: Client, gateway: RunningGateway
    ) -> None:
        session = await client.create()
        await client.turn(
            session,
            "hello",
            frequency_penalty=0.5,
            presence_penalty=-0.5,
            logit_bias={"7": -100},
        )
        sampling = gateway.engine.calls[-1].sampling
        assert (sampling.frequency_penalty, sampling.presence_penalty) == (0.5, -0.5)
        assert sampling.logit_bias == {7: -100}

    async def test_headers(self, client: Client) -> None:
        session = await client.create()
        await client.turn(session, "hello " * 30)
        response = await client.post_turn(session, "again")
        usage = response.json()["usage"]
        restored = sum(usage["cached_tokens"].values())
        assert restored > 0
        assert response.headers["x-agentmem-cache"] == (
            f"tier=hbm;restored={restored};recomputed={usage['recomputed_tokens']}"
        )

    async def test_a_key_makes_repeating_safe(self, client: Client) -> None:
        session = await client.create()
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
        path, headers = f"/v1/sessions/{session}/turns", {"Idempotency-Key": "k"}
        first = await client.http.post(path, json=body, headers=headers)
        again = await client.http.post(path, json=body, headers=headers)
        assert again.json() == first.json()
        other = await client.create()
        elsewhere = await client.http.post(
            f"/v1/sessions/{other}/turns", json=body, headers=headers
        )
        assert elsewhere.json()["id"] != first.json()["id"]
        assert (await client.get(session))["turns"] == 1


class TestSessions:
    async def test_terms(self, client: Client) -> None:
        named = await client.get(await client.create(retention="ephemeral"))
        assert named["retention"] == "ephemeral"
        assert named["kv_retention_seconds"] == 1_800
        assert named["expires_at"] - named["created_at"] == 86_400
        assert named["kv_expires_at"] - named["updated_at"] == 1_800
        single = await client.get(await client.create(kv_retention_seconds=60))
        assert single["retention"] is None
        assert single["kv_expires_at"] - single["updated_at"] == 60
        assert (single["origin"], single["context"]) == ("session", None)

    async def test_use_renews_them(self, client: Client) -> None:
        session = await client.create(kv_retention_seconds=60, log_retention_seconds=120)
        turn = await client.turn(session, "hello")
        shown = await client.get(session)
        assert shown["expires_at"] - shown["updated_at"] == 120
        assert abs(turn["usage"]["expires_at"] - shown["expires_at"]) <= 1
        assert abs(turn["usage"]["kv_expires_at"] - shown["kv_expires_at"]) <= 1

    async def test_busy_says_when_to_try_again(
        self, client: Client, gateway: RunningGateway
    ) -> None:
        gateway.engine.token_seconds = 0.05
        session = await client.create()
        async with client.streaming(session, "hello", max_tokens=40, ignore_eos=True) as events:
            await anext(aiter(events))
            response = await client.post_turn(session, "me, too")
            assert check_error(response, 409)["code"] == "session_busy"
            assert response.headers["x-should-retry"] == "true"
            assert int(response.headers["retry-after"]) >= 1
            assert int(response.headers["retry-after-ms"]) >= 1
