"""A small parser of Hermes' tool calls and `<think>`, in this process and without SGLang.

For tests of what lies above the engine: it takes complete calls only, so that a call's arguments
come in one piece, and `arguments_piece` characters at a time where that is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from agentmem.engine.output import (
    OutputParser,
    OutputSpec,
    Piece,
    PlainText,
    ReasoningPiece,
    TextPiece,
    ToolCallPiece,
)

_THINK, _THOUGHT = "<think>", "</think>"
_CALL, _CALLED = "<tool_call>", "</tool_call>"


class HermesParser:
    """Implements `engine.output.OutputParser`."""

    special_tokens = False

    def __init__(self, spec: OutputSpec, *, arguments_piece: int = 8) -> None:
        self._known = {tool["function"]["name"] for tool in spec.tools}
        if spec.tool_choice.mode == "none":
            self._known = set()
        self._arguments_piece = arguments_piece
        self._buffer = ""
        self._thinking = False
        self._calls = 0
        self._blank = ""

    async def push(self, text: str) -> Sequence[Piece]:
        """See `OutputParser.push`."""
        self._buffer += text
        pieces: list[Piece] = []
        while self._step(pieces):
            pass
        return pieces

    async def finish(self) -> Sequence[Piece]:
        """See `OutputParser.finish`: a call that did not end is text."""
        rest, self._buffer = self._buffer, ""
        if self._thinking:
            return (ReasoningPiece(rest),) if rest else ()
        rest = (self._blank if not self._calls or rest else "") + rest
        return (TextPiece(rest),) if rest else ()

    async def aclose(self) -> None:
        """See `OutputParser.aclose`."""

    def _step(self, pieces: list[Piece]) -> bool:
        """Takes the next certain part from the buffer; False when more text is needed."""
        marks = (_THOUGHT,) if self._thinking else (_THINK, *((_CALL,) if self._known else ()))
        found = [(at, mark) for mark in marks if (at := self._buffer.find(mark)) >= 0]
        if not found:
            kept = max(_partial(self._buffer, mark) for mark in marks)
            self._say(pieces, self._buffer[: len(self._buffer) - kept])
            self._buffer = self._buffer[len(self._buffer) - kept :]
            return False
        at, mark = min(found)
        self._say(pieces, self._buffer[:at])
        self._buffer = self._buffer[at:]
        if mark in (_THINK, _THOUGHT):
            self._buffer = self._buffer.removeprefix(mark)
            self._thinking = mark == _THINK
            return True
        end = self._buffer.find(_CALLED)
        if end < 0:
            return False
        block, self._buffer = self._buffer[:end], self._buffer[end + len(_CALLED) :]
        if not self._call(pieces, block.removeprefix(_CALL)):
            self._say(pieces, block + _CALLED)
        return True

    def _say(self, pieces: list[Piece], text: str) -> None:
        if not text:
            return
        if self._thinking:
            pieces.append(ReasoningPiece(text))
            return
        # Blanks around calls separate them and are no text.
        text, self._blank = self._blank + text, ""
        stripped = text.rstrip() if self._known else text
        self._blank = text[len(stripped) :]
        if stripped:
            pieces.append(TextPiece(stripped))

    def _call(self, pieces: list[Piece], body: str) -> bool:
        try:
            call = json.loads(body)
            name, arguments = call["name"], json.dumps(call["arguments"], ensure_ascii=False)
        except (ValueError, KeyError, TypeError):
            return False
        if name not in self._known:
            return False
        index, self._calls, self._blank = self._calls, self._calls + 1, ""
        pieces.append(ToolCallPiece(index, name, ""))
        step = self._arguments_piece
        pieces.extend(
            ToolCallPiece(index, None, arguments[at : at + step])
            for at in range(0, len(arguments), step)
        )
        return True


async def open_hermes_parser(spec: OutputSpec) -> OutputParser:
    """The fake's parser for a reply."""
    return HermesParser(spec) if spec.tools or spec.reasoning else PlainText()


def _partial(text: str, mark: str) -> int:
    """Length of the longest end of `text` with which `mark` could begin."""
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if mark.startswith(text[-length:]):
            return length
    return 0
