"""Turns as server-sent events.

turn.created    {id, session_id, number}
turn.delta      {text, token_ids, logprobs?}     any number of times
turn.completed  {the whole turn}                 or  error {error: {...}}
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import AppStatus
from starlette.types import Message

from agentmem.api.errors import describe_error
from agentmem.api.objects import turn_object
from agentmem.sessions.runs import Listener, TurnCompleted, TurnCreated, TurnDelta, TurnEvent

KEEP_ALIVE_SECONDS = 15
# A client that does not read is let go of; its turn goes on or not, as after any disconnect.
_SEND_SECONDS_MAX = 60

# Streams end by themselves and a shutdown waits for them; the library would cut them off.
AppStatus.enable_automatic_graceful_drain = False


def stream_turn(listener: Listener, session_id: str, *, logprobs: bool) -> EventSourceResponse:
    """The response that follows a turn; closes the listener when the caller leaves."""

    async def events() -> AsyncIterator[ServerSentEvent]:
        try:
            async for event in listener:
                name, data = _event(event, session_id, logprobs=logprobs)
                yield ServerSentEvent(json.dumps(data, separators=(",", ":")), event=name)
        finally:
            listener.close()

    async def left(_message: Message) -> None:
        # Also where the events were never begun, so that nothing else would close it.
        listener.close()

    return EventSourceResponse(
        events(),
        ping=KEEP_ALIVE_SECONDS,
        ping_message_factory=lambda: ServerSentEvent(comment="keep-alive"),
        sep="\n",
        send_timeout=_SEND_SECONDS_MAX,
        client_close_handler_callable=left,
    )


def _event(event: TurnEvent, session_id: str, *, logprobs: bool) -> tuple[str, dict[str, Any]]:
    if isinstance(event, TurnCreated):
        return "turn.created", {
            "id": event.turn_id,
            "object": "turn.created",
            "session_id": session_id,
            "number": event.number,
        }
    if isinstance(event, TurnDelta):
        delta: dict[str, Any] = {
            "object": "turn.delta",
            "text": event.text,
            "token_ids": event.token_ids,
        }
        if logprobs:
            delta["logprobs"] = event.logprobs
        return "turn.delta", delta
    if isinstance(event, TurnCompleted):
        return "turn.completed", turn_object(event.turn, session_id)
    return "error", describe_error(event.error)
