from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given

from agentmem.api.responses.events import Event, Extras, ResponseEncoder
from agentmem.api.responses.objects import Ending, Head, ended_with
from agentmem.api.responses.schemas import ResponseBody
from agentmem.engine.output import Piece, ReasoningPiece, TextPiece, ToolCallPiece
from agentmem.sessions.replay import pack_deltas, replayed_run
from agentmem.sessions.runs import TurnCompleted, TurnCreated, TurnDelta
from tests.unit.sessions.test_replay import replies, turn_of

USAGE = {
    "prompt_tokens": 9,
    "output_tokens": 4,
    "cached_tokens": {"hbm": 2, "dram": 3, "disk": 0, "object": 0},
    "cache_write_tokens": 4,
    "recomputed_tokens": 0,
    "ttft_seconds": 0.5,
    "total_seconds": 2.25,
    "retention": "ephemeral",
    "expires_at": 1_900_000_000,
}
HEAD = Head("resp_1", ResponseBody(input="Hi.").echo("m"))
ONE, TWO = ToolCallPiece(0, "f", '{"a":'), ToolCallPiece(1, "g", "{}")


def encoded(deltas: list[TurnDelta], extras: Extras | None = None, **fields: Any) -> list[Event]:
    turn = replace(turn_of(deltas), usage=USAGE, created_at=5_000_000, **fields)
    encoder = ResponseEncoder(HEAD, extras or Extras())
    created = TurnCreated(turn.id, 1, turn.session_id, turn.created_at, 9)
    events = [*encoder.created(created)]
    for delta in deltas:
        events += encoder.delta(delta)
    return [*events, *encoder.ended(ended_with(turn))]


def deltas_of(*pieces: Piece) -> list[TurnDelta]:
    return [TurnDelta((piece,), (number,)) for number, piece in enumerate(pieces)]


def kinds(events: list[Event]) -> list[str]:
    return [kind.removeprefix("response.") for kind, _ in events]


@given(replies())
def test_any_reply_makes_a_stream_in_order(deltas: list[TurnDelta]) -> None:
    events = encoded(deltas)
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
    assert all(kind == data["type"] for kind, data in events)
    assert kinds(events)[:2] == ["created", "in_progress"]
    final = events[-1][1]["response"]
    done = [data["item"] for kind, data in events if kind == "response.output_item.done"]
    added = [data["item"] for kind, data in events if kind == "response.output_item.added"]
    assert [item["id"] for item in added] == [item["id"] for item in final["output"]]
    assert sorted(done, key=lambda item: item["id"]) == sorted(
        final["output"], key=lambda item: item["id"]
    )
    for index, item in enumerate(final["output"]):
        told = "".join(
            data["delta"] for _, data in events if "delta" in data and data["output_index"] == index
        )
        assert told == item.get("arguments", told)
        assert all(told == part["text"] for part in item.get("content", ()))


@given(replies())
async def test_told_once_more_it_is_the_same_stream(deltas: list[TurnDelta]) -> None:
    turn = replace(turn_of(deltas), usage=USAGE)
    listener = replayed_run(turn, pack_deltas(deltas), "resp_1").listen()
    again = [event async for event in listener]
    assert isinstance(again[0], TurnCreated)
    assert again[1:] == [*deltas, TurnCompleted(turn)]


def test_thinking_text_and_calls() -> None:
    more = ToolCallPiece(0, None, "1}")
    events = encoded(
        deltas_of(ReasoningPiece("hm"), TextPiece("A"), TextPiece("B"), ONE, more, TWO)
    )
    assert kinds(events)[2:] == [
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    final = events[-1][1]["response"]
    assert [item["type"] for item in final["output"]] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
    ]
    call = final["output"][2]
    assert (call["name"], call["arguments"]) == ("f", '{"a":1}')
    assert call["call_id"].startswith("call_")
    assert all(item["status"] == "completed" for item in final["output"])


def test_the_object_counts_and_tells_times() -> None:
    final = encoded(deltas_of(TextPiece("A")))[-1][1]["response"]
    assert final["usage"]["input_tokens_details"] == {
        "cached_tokens": 5,
        "cache_write_tokens": 4,
        "cache_write_tokens_details": {"ttl_30m_tokens": 4, "ttl_12h_tokens": 0},
    }
    assert final["usage"]["total_tokens"] == 13
    assert (final["created_at"], final["completed_at"]) == (5, 7)
    assert final["expires_at"] == 1_900_000_000


def test_what_was_cut_is_incomplete() -> None:
    events = encoded(deltas_of(TextPiece("A"), ONE), finish_reason="length")
    kind, data = events[-1]
    assert kind == "response.incomplete"
    final = data["response"]
    assert final["incomplete_details"] == {"reason": "max_output_tokens"}
    assert final["completed_at"] is None
    assert [item["status"] for item in final["output"]] == ["completed", "incomplete"]


def test_a_failure_ends_what_was_begun() -> None:
    for ending in (Ending("failed", error={"code": "server_error", "message": "x"}),
                   Ending("cancelled")):  # fmt: skip
        encoder = ResponseEncoder(HEAD)
        turn = turn_of([])
        events = [*encoder.created(TurnCreated(turn.id, 1, turn.session_id, 0, 9))]
        events += encoder.delta(TurnDelta((TextPiece("A"),)))
        events += encoder.ended(ending)
        assert kinds(events)[-4:] == [
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "failed",
        ]
        final = events[-1][1]["response"]
        assert final["status"] == ending.status
        assert final["error"] == ending.error
        assert final["usage"] is None
        assert final["output"][0]["status"] == "incomplete"


def test_log_probabilities_go_with_the_text() -> None:
    deltas = [
        TurnDelta((ReasoningPiece("hm"),), (1,), (-1.0,)),
        TurnDelta((), (2,), (-2.0,), (((2, -2.0), (9, -3.0)),)),
        TurnDelta((TextPiece("é"),), (3,), (-3.0,)),
        TurnDelta((TextPiece("B"),), (4,), (-4.0,)),
        TurnDelta((), (5,), (-5.0,)),
    ]
    events = encoded(deltas, Extras(token_text=lambda token: bytes([64 + token])))
    told = [data["logprobs"] for kind, data in events if kind.endswith("output_text.delta")]
    assert [[one["token"] for one in part] for part in told] == [["B", "C"], ["D"]]
    assert told[0][0]["top_logprobs"] == [
        {"token": "B", "bytes": [66], "logprob": -2.0},
        {"token": "I", "bytes": [73], "logprob": -3.0},
    ]
    text = events[-1][1]["response"]["output"][1]["content"][0]
    assert text["logprobs"] == [*told[0], *told[1]]


def test_sealed_thinking_and_padding_only_where_asked_for() -> None:
    deltas = deltas_of(ReasoningPiece("hm"), TextPiece("A"))
    plain = encoded(deltas)
    assert "obfuscation" not in plain[4][1]
    assert "encrypted_content" not in plain[-1][1]["response"]["output"][0]
    full = encoded(deltas, Extras(seal=lambda text: f"sealed {text}", obfuscate=True))
    assert full[-1][1]["response"]["output"][0]["encrypted_content"] == "sealed hm"
    assert [kind for kind, data in full if "obfuscation" in data] == [
        "response.reasoning_text.delta",
        "response.output_text.delta",
    ]
    lengths = [len(data["delta"] + data["obfuscation"]) + 2 for _, data in full if "delta" in data]
    assert lengths == [32, 32]
