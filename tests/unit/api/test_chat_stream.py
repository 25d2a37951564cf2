"""Chunks of a completion, and the fast path that most of them take."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from typing import Any

from agentmem.api.chat.stream import StreamPlan, completion_events
from agentmem.catalog.records import Turn
from agentmem.core import SessionId, TenantId, TurnId
from agentmem.engine.output import Piece, ReasoningPiece, TextPiece, ToolCallPiece
from agentmem.errors import EngineFailed
from agentmem.sessions.runs import TurnCompleted, TurnCreated, TurnDelta, TurnFailed, TurnRun

CALLS = [{"id": "call_1_0", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


def turn(reply: dict[str, Any], *, finish_reason: str = "stop") -> Turn:
    return Turn(
        id=TurnId("turn_1"),
        tenant_id=TenantId("ten_1"),
        session_id=SessionId("ses_1"),
        parent_turn_id=None,
        number=1,
        keep=0,
        tokens=array("I", [1, 2, 3]),
        prompt_tokens=2,
        log_tokens=3,
        rebased=False,
        messages=[],
        reply={"role": "assistant", **reply},
        finish_reason=finish_reason,
        sampling={},
        usage={
            "prompt_tokens": 2,
            "output_tokens": 1,
            "cached_tokens": {"hbm": 1, "dram": 0, "disk": 0, "object": 0},
            "recomputed_tokens": 0,
            "ttft_seconds": 0.1,
            "total_seconds": 0.2,
        },
        logprobs=None,
        body_hash="",
        created_at=5_000_000,
    )


def run(
    pieces: Sequence[tuple[Piece, ...]], reply: dict[str, Any], *, fails: bool = False
) -> TurnRun:
    made = TurnRun(1, "", retryable=False)
    made.publish(TurnCreated(TurnId("turn_1"), 1, SessionId("ses_1"), 5_000_000, 2))
    for one in pieces:
        made.publish(TurnDelta(one, (7,), (-0.5,), (((7, -0.5), (8, -1.5)),)))
    if fails:
        made.publish(TurnFailed(EngineFailed("The worker died.")))
    else:
        made.publish(TurnCompleted(turn(reply)))
    return made


async def chunks(plan: StreamPlan, *runs: TurnRun) -> list[dict[str, Any]]:
    """All chunks; the stream ends with [DONE]."""
    events = [data async for data in completion_events(plan, [one.listen() for one in runs])]
    assert events[-1] == b"data: [DONE]\n\n"
    assert all(data.startswith(b"data: ") and data.endswith(b"\n\n") for data in events)
    assert all(b"\n" not in data[:-2] for data in events)
    return [json.loads(data.removeprefix(b"data: ")) for data in events[:-1]]


def deltas(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one["choices"][0]["delta"] for one in found]


async def test_text() -> None:
    text = ['he said "hi"\n', " \u2028 é \U0001f600"]
    reply = run([(TextPiece(one),) for one in text], {"content": "".join(text)})
    found = await chunks(StreamPlan("chatcmpl-1", "fake"), reply)
    assert deltas(found) == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": text[0]},
        {"content": text[1]},
        {},
    ]
    assert [one["choices"][0]["finish_reason"] for one in found] == [None, None, None, "stop"]
    head = {"id", "object", "created", "model", "service_tier", "system_fingerprint", "choices"}
    assert all(set(one) == head for one in found)
    assert {one["created"] for one in found} == {5}


async def test_the_fast_path_says_the_same_as_the_other_one() -> None:
    reply = run([(TextPiece("a"),)], {"content": "a"})
    quick = await chunks(StreamPlan("chatcmpl-1", "fake"), reply)
    slow = await chunks(StreamPlan("chatcmpl-1", "fake", obfuscate=True), reply)
    assert all(isinstance(one.pop("obfuscation"), str) for one in slow)
    assert quick == slow


async def test_usage_only_where_asked_for() -> None:
    reply = run([(TextPiece("a"),)], {"content": "a"})
    found = await chunks(StreamPlan("chatcmpl-1", "fake", include_usage=True), reply)
    assert [one["usage"] for one in found[:-1]] == [None] * 3
    assert found[-1]["choices"] == []
    assert found[-1]["usage"]["total_tokens"] == 3
    assert found[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] == 1


async def test_thinking_and_calls() -> None:
    pieces = [
        (ReasoningPiece("hm"),),
        (TextPiece("so"), ToolCallPiece(0, "f", "")),
        (ToolCallPiece(0, None, "{"), ToolCallPiece(0, None, "}")),
        (ToolCallPiece(1, "g", "{}"),),
    ]
    reply = run(pieces, {"content": "so", "tool_calls": CALLS})
    found = await chunks(StreamPlan("chatcmpl-1", "fake"), reply)
    first = {"index": 0, "id": "call_1_0", "type": "function"}
    second = {"index": 1, "id": "call_1_1", "type": "function"}
    assert deltas(found)[1:] == [
        {"reasoning_content": "hm"},
        {"content": "so", "tool_calls": [{**first, "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
        {"tool_calls": [{**second, "function": {"name": "g", "arguments": "{}"}}]},
        {},
    ]
    assert found[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_a_function_in_the_old_way() -> None:
    pieces = [(ToolCallPiece(0, "f", "{"),), (ToolCallPiece(0, None, "}"),)]
    reply = run(pieces, {"content": None, "tool_calls": CALLS})
    found = await chunks(StreamPlan("chatcmpl-1", "fake", legacy=True), reply)
    assert deltas(found)[1:] == [
        {"function_call": {"name": "f", "arguments": "{"}},
        {"function_call": {"arguments": "}"}},
        {},
    ]
    assert found[-1]["choices"][0]["finish_reason"] == "function_call"


async def test_logprobs_of_tokens_without_text_are_shown_too() -> None:
    reply = run([(), (TextPiece("ab"),)], {"content": "ab"})
    plan = StreamPlan("chatcmpl-1", "fake", token_text=lambda token: bytes([token + 90]))
    found = await chunks(plan, reply)
    assert deltas(found)[1] == {"content": ""}
    shown = found[2]["choices"][0]["logprobs"]
    assert shown["refusal"] is None
    assert shown["content"] == [
        {
            "token": "a",
            "bytes": [97],
            "logprob": -0.5,
            "top_logprobs": [
                {"token": "a", "bytes": [97], "logprob": -0.5},
                {"token": "b", "bytes": [98], "logprob": -1.5},
            ],
        }
    ]


async def test_nothing_certain_is_no_chunk() -> None:
    reply = run([(), (TextPiece("ab"),)], {"content": "ab"})
    assert len(await chunks(StreamPlan("chatcmpl-1", "fake"), reply)) == 3


async def test_a_failure_is_the_last_event() -> None:
    reply = run([(TextPiece("a"),)], {}, fails=True)
    found = await chunks(StreamPlan("chatcmpl-1", "fake", include_usage=True), reply)
    assert found[-1] == {
        "error": {
            "message": "The worker died.",
            "type": "service_unavailable_error",
            "param": None,
            "code": "engine_failed",
        }
    }


async def test_choices_are_told_apart_and_counted_once() -> None:
    runs = [run([(TextPiece(text),)], {"content": text}) for text in ("a", "b")]
    found = await chunks(StreamPlan("chatcmpl-1", "fake", include_usage=True), *runs)
    for index, text in enumerate("ab"):
        own = [one for one in found[:-1] if one["choices"][0]["index"] == index]
        assert "".join(delta.get("content", "") for delta in deltas(own)) == text
        assert own[-1]["choices"][0]["finish_reason"] == "stop"
    usage = found[-1]["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (2, 2)
    assert len(usage["agentmem"]["choices"]) == 2
