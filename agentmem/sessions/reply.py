"""A reply while it comes in: ids, log-probabilities, and the message that they make."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from agentmem.core import TurnId
from agentmem.engine.base import Alternatives, CachedTokens, GenerateChunk
from agentmem.engine.output import OutputParser, Piece, ReasoningPiece, TextPiece, ToolCallPiece
from agentmem.sessions.chat import TextStream
from agentmem.sessions.runs import TurnDelta


@dataclass(slots=True)
class _Call:
    """A tool call as far as it came."""

    name: str
    arguments: list[str] = field(default_factory=list)


class Reply:
    """Takes the engine's chunks, gives what became certain. Close `parser` afterwards."""

    def __init__(self, text: TextStream, parser: OutputParser) -> None:
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.top_logprobs: list[Alternatives] = []
        self.finish_reason = ""
        self.cached = CachedTokens()
        self.ttft_seconds = 0.0
        self.reasoning_tokens = 0
        self.deltas: list[TurnDelta] = []
        self._text_stream = text
        self._parser = parser
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[_Call] = []
        # Ids whose text the parser still holds: they belong to what it gives next.
        self._held = 0

    async def push(self, chunk: GenerateChunk) -> TurnDelta | None:
        """More of the reply; None for a chunk without ids."""
        if chunk.finish_reason is not None:
            self.finish_reason = chunk.finish_reason
            self.cached = chunk.cached or CachedTokens()
        if not chunk.token_ids:
            return None
        self.ids.extend(chunk.token_ids)
        self.logprobs.extend(chunk.logprobs)
        self.top_logprobs.extend(chunk.top_logprobs)
        text = self._text_stream.push(chunk.token_ids)
        pieces = tuple(await self._parser.push(text)) if text else ()
        self._held += len(chunk.token_ids)
        self._take(pieces)
        return self._delta(TurnDelta(pieces, chunk.token_ids, chunk.logprobs, chunk.top_logprobs))

    async def finish(self) -> TurnDelta | None:
        """What was held back until now."""
        text = self._text_stream.finish()
        pieces = [*(await self._parser.push(text))] if text else []
        pieces.extend(await self._parser.finish())
        self._take(tuple(pieces))
        return self._delta(TurnDelta(tuple(pieces))) if pieces else None

    async def aclose(self) -> None:
        """Lets go of the parser."""
        await self._parser.aclose()

    def message(self, turn_id: TurnId) -> dict[str, Any]:
        """The reply as a message; a call's id follows from the turn's and its place."""
        text, reasoning = "".join(self._text), "".join(self._reasoning)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if reasoning:
            message["reasoning_content"] = reasoning
        if self._calls:
            message["content"] = text or None
            message["tool_calls"] = [
                {
                    "id": call_id(turn_id, index),
                    "type": "function",
                    "function": {"name": call.name, "arguments": "".join(call.arguments)},
                }
                for index, call in enumerate(self._calls)
            ]
        return message

    def _take(self, pieces: tuple[Piece, ...]) -> None:
        if pieces:
            if isinstance(pieces[0], ReasoningPiece):
                self.reasoning_tokens += self._held
            self._held = 0
        for piece in pieces:
            if isinstance(piece, TextPiece):
                self._text.append(piece.text)
            elif isinstance(piece, ReasoningPiece):
                self._reasoning.append(piece.text)
            else:
                self._take_call(piece)

    def _take_call(self, piece: ToolCallPiece) -> None:
        if piece.index == len(self._calls):
            assert piece.name is not None, "a call's first piece has its name"
            self._calls.append(_Call(piece.name))
        self._calls[piece.index].arguments.append(piece.arguments)

    def _delta(self, delta: TurnDelta) -> TurnDelta:
        self.deltas.append(delta)
        return delta


def call_id(turn_id: TurnId, index: int) -> str:
    """The id of a turn's tool call number `index`."""
    return f"call_{turn_id.partition('_')[2]}_{index}"
