"""One reply taken apart: thinking first, then calls, as SGLang's chat completions do it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentmem.engine.output import Piece, ReasoningPiece, TextPiece, ToolCallPiece
from agentmem.engine.sglang.parsing.calls import CallParser
from agentmem.engine.sglang.parsing.segments import Segments

ReasoningDetector = Any
"""sglang.srt.parser.reasoning_parser.BaseReasoningFormatDetector"""


class ReplyParser:
    """`reasoning` and `calls` are None where the reply has none of these."""

    def __init__(self, reasoning: ReasoningDetector | None, calls: CallParser | None) -> None:
        self._reasoning = reasoning
        self._calls = calls
        marks = [] if reasoning is None else _marks(reasoning)
        self._segments = Segments(marks)
        self._thought = False
        self._said = False

    def push(self, text: str) -> list[Piece]:
        """More text; returns what became certain."""
        if self._reasoning is None:
            return _joined(self._say(text))
        self._segments.push(text)
        pieces: list[Piece] = []
        while segment := self._segments.take():
            pieces += self._think(segment)
        return _joined(pieces)

    def finish(self) -> list[Piece]:
        """The rest."""
        pieces: list[Piece] = []
        if self._reasoning is not None:
            while segment := self._segments.take(final=True):
                pieces += self._think(segment)
            end = self._reasoning.finish()
            pieces += self._divided(end.reasoning_text, end.normal_text)
        if self._calls is not None:
            pieces += self._calls.finish()
        return _joined(pieces)

    def _think(self, segment: str) -> list[Piece]:
        assert self._reasoning is not None, "there is thinking"
        result = self._reasoning.parse_streaming_increment(segment)
        return self._divided(result.reasoning_text, result.normal_text)

    def _divided(self, reasoning: str | None, text: str | None) -> list[Piece]:
        pieces: list[Piece] = []
        if reasoning:
            self._thought = True
            pieces.append(ReasoningPiece(reasoning))
        return pieces + self._say(text or "")

    def _say(self, text: str) -> list[Piece]:
        if self._thought and not self._said:
            text = text.lstrip()  # blank lines that part the reply from the thoughts
        if not text:
            return []
        self._said = True
        return [TextPiece(text)] if self._calls is None else self._calls.push(text)


def _marks(reasoning: ReasoningDetector) -> list[str]:
    names = ("think_start_token", "think_end_token", "tool_start_token")
    return [str(getattr(reasoning, name, "") or "") for name in names]


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbours of one kind as one piece."""
    joined: list[Piece] = []
    for piece in pieces:
        both = _both(joined[-1], piece) if joined else None
        if both is None:
            joined.append(piece)
        else:
            joined[-1] = both
    return joined


def _both(one: Piece, next_one: Piece) -> Piece | None:
    """Two pieces as one; None where they are of different kinds."""
    if isinstance(one, TextPiece) and isinstance(next_one, TextPiece):
        return TextPiece(one.text + next_one.text)
    if isinstance(one, ReasoningPiece) and isinstance(next_one, ReasoningPiece):
        return ReasoningPiece(one.text + next_one.text)
    if not isinstance(one, ToolCallPiece) or not isinstance(next_one, ToolCallPiece):
        return None
    if one.index != next_one.index or next_one.name is not None:
        return None
    return ToolCallPiece(one.index, one.name, one.arguments + next_one.arguments)
