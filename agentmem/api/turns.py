"""Turns of named sessions as server-sent events.

turn.created    {id, session_id, number}
turn.delta      {text, token_ids, reasoning?, tool_calls?, logprobs?, top_logprobs?}
turn.completed  {the whole turn}                 or  error {error: {...}}
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from agentmem.api.errors import describe_error
from agentmem.api.objects import alternatives, turn_object
from agentmem.api.sse import EventStream, event
from agentmem.core import TurnId
from agentmem.engine.output import ReasoningPiece, ToolCallPiece
from agentmem.sessions.reply import call_id
from agentmem.sessions.requests import TurnRequest
from agentmem.sessions.runs import Listener, TurnCompleted, TurnCreated, TurnDelta, TurnEvent


def stream_turn(listener: Listener, session_id: str, request: TurnRequest) -> EventStream:
    """The response that follows a turn; closes the listener when the caller leaves."""
    encoder = _Encoder(session_id, request)

    async def events() -> AsyncGenerator[bytes, None]:
        async for happened in listener:
            yield encoder.encode(happened)

    return EventStream(events(), close=listener.close)


class _Encoder:
    """Events of one turn as bytes."""

    def __init__(self, session_id: str, request: TurnRequest) -> None:
        self._session_id = session_id
        self._request = request
        self._turn_id = TurnId("")

    def encode(self, happened: TurnEvent) -> bytes:
        """One event."""
        if isinstance(happened, TurnDelta):
            return event(self._delta(happened), "turn.delta")
        if isinstance(happened, TurnCreated):
            self._turn_id = happened.turn_id
            created = {
                "id": happened.turn_id,
                "object": "turn.created",
                "session_id": self._session_id,
                "number": happened.number,
            }
            return event(created, "turn.created")
        if isinstance(happened, TurnCompleted):
            return event(turn_object(happened.turn, self._session_id), "turn.completed")
        return event(describe_error(happened.error), "error")

    def _delta(self, delta: TurnDelta) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "object": "turn.delta",
            "text": delta.text,
            "token_ids": delta.token_ids,
        }
        reasoning = "".join(p.text for p in delta.pieces if isinstance(p, ReasoningPiece))
        if reasoning:
            shown["reasoning"] = reasoning
        calls = [self._call(piece) for piece in delta.pieces if isinstance(piece, ToolCallPiece)]
        if calls:
            shown["tool_calls"] = calls
        if self._request.logprobs:
            shown["logprobs"] = delta.logprobs
        if self._request.top_logprobs:
            shown["top_logprobs"] = [alternatives(one) for one in delta.top_logprobs]
        return shown

    def _call(self, piece: ToolCallPiece) -> dict[str, Any]:
        call: dict[str, Any] = {"index": piece.index, "arguments": piece.arguments}
        if piece.name is not None:
            call |= {"id": call_id(self._turn_id, piece.index), "name": piece.name}
        return call
