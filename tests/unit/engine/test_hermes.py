"""The small parser that stands in for SGLang's in tests of what lies above the engine."""

from __future__ import annotations

import json

import pytest

from agentmem.engine.output import (
    OutputSpec,
    Piece,
    PlainText,
    ReasoningPiece,
    TextPiece,
    ToolCallPiece,
    ToolChoice,
)
from agentmem.testing.hermes import HermesParser, open_hermes_parser

TOOLS = [{"type": "function", "function": {"name": "f"}}]
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "é <b>"}}\n</tool_call>'

UNKNOWN = '<tool_call>{"name": "g", "arguments": {}}</tool_call>'


async def parse(text: str, cut: int, spec: OutputSpec) -> list[Piece]:
    parser = HermesParser(spec)
    pieces: list[Piece] = []
    for at in range(0, len(text), cut):
        pieces += await parser.push(text[at : at + cut])
    pieces += await parser.finish()
    await parser.aclose()
    return pieces


def summary(pieces: list[Piece]) -> tuple[str, str, list[str]]:
    text = "".join(piece.text for piece in pieces if isinstance(piece, TextPiece))
    thoughts = "".join(piece.text for piece in pieces if isinstance(piece, ReasoningPiece))
    calls: list[str] = []
    for piece in pieces:
        if isinstance(piece, ToolCallPiece):
            if piece.name is not None:
                assert piece.index == len(calls)
                calls.append("")
            calls[piece.index] += piece.arguments
    return text, thoughts, calls


@pytest.mark.parametrize("cut", [1, 4, 1000])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a < b <", ("a < b <", "", 0)),
        ("text \n", ("text \n", "", 0)),
        (f"<think>hm</think>Hi.\n{CALL}\n{CALL}", ("Hi.", "hm", 2)),
        ("<think>no end", ("", "no end", 0)),
        ("<tool_call>{bad}</tool_call> x", ("<tool_call>{bad}</tool_call> x", "", 0)),
        (UNKNOWN, (UNKNOWN, "", 0)),
        (CALL[:30], (CALL[:30], "", 0)),
    ],
)
async def test_replies(text: str, cut: int, expected: tuple[str, str, int]) -> None:
    said, thoughts, calls = summary(await parse(text, cut, OutputSpec(tools=TOOLS)))
    assert (said, thoughts, len(calls)) == expected
    assert all(json.loads(arguments) == {"a": "é <b>"} for arguments in calls)


async def test_without_tools_calls_are_text() -> None:
    for spec in (OutputSpec(), OutputSpec(tools=TOOLS, tool_choice=ToolChoice("none"))):
        assert summary(await parse(CALL, 3, spec)) == (CALL, "", [])
    assert isinstance(await open_hermes_parser(OutputSpec(reasoning=False)), PlainText)
