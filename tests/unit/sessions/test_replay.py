from __future__ import annotations

from array import array
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agentmem.catalog.records import Turn
from agentmem.engine.output import Piece, ReasoningPiece, TextPiece, ToolCallPiece
from agentmem.sessions.replay import pack_deltas, unpack_deltas
from agentmem.sessions.runs import TurnDelta
from tests.unit.catalog.conftest import make_session, make_turn

TURN = make_turn(make_session("ten_1"), None)  # type: ignore[arg-type]


def turn_of(deltas: list[TurnDelta]) -> Turn:
    """A turn whose reply is what the deltas made, as `sessions.reply` makes it."""
    text, thinking, calls = "", "", []
    for piece in (piece for delta in deltas for piece in delta.pieces):
        if isinstance(piece, TextPiece):
            text += piece.text
        elif isinstance(piece, ReasoningPiece):
            thinking += piece.text
        elif piece.index == len(calls):
            calls.append({"name": piece.name, "arguments": piece.arguments})
        else:
            calls[piece.index]["arguments"] += piece.arguments
    reply: dict[str, Any] = {"role": "assistant", "content": text or None}
    if thinking:
        reply["reasoning_content"] = thinking
    if calls:
        reply["tool_calls"] = [
            {"id": f"call_{n}", "type": "function", "function": call}
            for n, call in enumerate(calls)
        ]
    ids = [token for delta in deltas for token in delta.token_ids]
    alternatives = [list(one) for delta in deltas for one in delta.top_logprobs]
    return replace(
        TURN,
        reply=reply,
        tokens=array("I", [1, 2, 3, *ids]),
        prompt_tokens=3,
        log_tokens=3 + len(ids),
        logprobs=[value for delta in deltas for value in delta.logprobs] or None,
        top_logprobs=alternatives or None,
    )


@st.composite
def replies(draw: st.DrawFn, *, straight: bool = True) -> list[TurnDelta]:
    """Deltas with any pieces in any order; calls begin one after the other, and go on after that
    only where the reply is not `straight`."""
    logprobs = draw(st.booleans())
    calls, deltas = 0, []
    for _ in range(draw(st.integers(0, 8))):
        pieces: list[Piece] = []
        for kind in draw(st.lists(st.sampled_from("trnc"), max_size=4)):
            text = draw(st.text(max_size=6))
            if kind == "t":
                pieces.append(TextPiece(text))
            elif kind == "r":
                pieces.append(ReasoningPiece(text))
            elif kind == "n" or calls == 0:
                pieces.append(ToolCallPiece(calls, draw(st.text(min_size=1, max_size=5)), text))
                calls += 1
            else:
                first = calls - 1 if straight else 0
                pieces.append(ToolCallPiece(draw(st.integers(first, calls - 1)), None, text))
        ids = draw(st.lists(st.integers(0, 2**32 - 1), max_size=3))
        told = tuple(-0.5 * n for n in range(len(ids))) if logprobs else ()
        alternatives = tuple(((token, -1.0), (7, -2.5)) for token in ids) if logprobs else ()
        deltas.append(TurnDelta(tuple(pieces), tuple(ids), told, alternatives))
    return deltas


@given(replies(straight=False))
def test_deltas_come_back_as_they_were(deltas: list[TurnDelta]) -> None:
    assert unpack_deltas(turn_of(deltas), pack_deltas(deltas)) == deltas


def test_cuts_take_little_room() -> None:
    deltas = [TurnDelta((TextPiece(" word"),), (n,)) for n in range(1_000)]
    assert len(pack_deltas(deltas)) < 200
