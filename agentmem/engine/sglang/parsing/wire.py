"""What client and server say: one JSON value a line, one connection for each reply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from agentmem.engine.output import (
    OutputSpec,
    Piece,
    ReasoningPiece,
    TextPiece,
    ToolCallPiece,
    ToolChoice,
)

# A line has a reply's tools at most, or one piece of its text.
LINE_BYTES_MAX = 8 << 20


class Spec(msgspec.Struct, omit_defaults=True):
    """`OutputSpec` on the wire."""

    tools: list[dict[str, Any]] = []
    mode: Literal["none", "auto", "required", "named"] = "auto"
    name: str | None = None
    parallel: bool = True
    reasoning: bool = True
    opening: str = ""


class Request(msgspec.Struct, omit_defaults=True):
    """One of: a parser is opened, a constraint asked for, or whether such a reply may begin with
    thoughts; text given, the text ended."""

    open: Spec | None = None
    constrain: Spec | None = None
    thinks: Spec | None = None
    push: str | None = None
    finish: bool = False


class Answer(msgspec.Struct, omit_defaults=True):
    """`pieces` as [kind, text] or ["call", index, name, arguments]; `constraint` as [kind, value,
    after_thinking]. `refused` says what is wrong with the request's tools, `failed` with us."""

    pieces: list[list[Any]] = []
    constraint: list[Any] | None = None
    thinks: bool = False
    refused: str | None = None
    failed: str | None = None


def spec_to_wire(spec: OutputSpec) -> Spec:
    """For the server."""
    return Spec(
        tools=[dict(tool) for tool in spec.tools],
        mode=spec.tool_choice.mode,
        name=spec.tool_choice.name,
        parallel=spec.parallel_tool_calls,
        reasoning=spec.reasoning,
        opening=spec.opening,
    )


def spec_from_wire(spec: Spec) -> OutputSpec:
    """From `spec_to_wire`."""
    choice = ToolChoice(spec.mode, spec.name)
    return OutputSpec(spec.tools, choice, spec.parallel, spec.reasoning, spec.opening)


def pieces_to_wire(pieces: Sequence[Piece]) -> list[list[Any]]:
    """For the client."""
    return [_to_wire(piece) for piece in pieces]


def _to_wire(piece: Piece) -> list[Any]:
    if isinstance(piece, ToolCallPiece):
        return ["call", piece.index, piece.name, piece.arguments]
    return ["text" if isinstance(piece, TextPiece) else "reasoning", piece.text]


def pieces_from_wire(rows: Sequence[Sequence[Any]]) -> list[Piece]:
    """From `pieces_to_wire`."""
    return [_from_wire(row) for row in rows]


def _from_wire(row: Sequence[Any]) -> Piece:
    if row[0] == "call":
        return ToolCallPiece(row[1], row[2], row[3])
    return TextPiece(row[1]) if row[0] == "text" else ReasoningPiece(row[1])
