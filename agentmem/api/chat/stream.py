"""A completion as chunks: role, deltas, finish, usage, `[DONE]`.

Most chunks are a piece of text and nothing else; those are put together from bytes made once.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from agentmem.api.chat.objects import (
    SERVICE_TIER,
    TokenText,
    chat_usage,
    finish_reason,
    system_fingerprint,
    token_logprobs,
)
from agentmem.api.errors import describe_error
from agentmem.api.sse import DONE, encode_json, event
from agentmem.catalog.records import Turn
from agentmem.core import TurnId
from agentmem.engine.output import ReasoningPiece, TextPiece
from agentmem.sessions.reply import call_id
from agentmem.sessions.runs import (
    Listener,
    TurnCompleted,
    TurnCreated,
    TurnDelta,
    TurnEvent,
    TurnFailed,
)

_US = 1_000_000
_OBFUSCATION_STEP = 32


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """What a stream is of. `token_text` is None where no log-probabilities were asked for."""

    completion_id: str
    model: str
    legacy: bool = False
    include_usage: bool = False
    obfuscate: bool = False
    token_text: TokenText | None = None


class ChunkEncoder:
    """Turns the events of each choice's turn into chunks, each as bytes to send."""

    def __init__(self, plan: StreamPlan) -> None:
        self._plan = plan
        self._head: dict[str, Any] = {}
        self._turn_ids: dict[int, TurnId] = {}
        self._started: dict[int, set[int]] = {}
        self._text: dict[int, tuple[bytes, bytes]] = {}

    def created(self, choice: int, created: TurnCreated) -> bytes:
        """The first chunk of a choice."""
        if not self._head:
            self._head = {
                "id": self._plan.completion_id,
                "object": "chat.completion.chunk",
                "created": created.created_at // _US,
                "model": self._plan.model,
                "service_tier": SERVICE_TIER,
                "system_fingerprint": system_fingerprint(self._plan.model),
            }
        self._turn_ids[choice] = created.turn_id
        self._started[choice] = set()
        if self._plan.token_text is None and not self._plan.obfuscate:
            mark = "\x00"
            around = event(self._chunk(choice, {"content": mark})).split(encode_json(mark))
            self._text[choice] = (around[0], around[1])
        return event(self._chunk(choice, {"role": "assistant", "content": "", "refusal": None}))

    def delta(self, choice: int, delta: TurnDelta) -> bytes | None:
        """A chunk with what became certain; None: nothing that can be shown."""
        text = self._text.get(choice)
        if text is not None and len(delta.pieces) == 1:
            piece = delta.pieces[0]
            if isinstance(piece, TextPiece):
                return text[0] + encode_json(piece.text) + text[1]
        shown = self._shown(choice, delta)
        logprobs = None
        if self._plan.token_text is not None and delta.token_ids:
            content = token_logprobs(
                delta.token_ids, delta.logprobs, delta.top_logprobs, self._plan.token_text
            )
            logprobs = {"content": content, "refusal": None}
            shown = shown or {"content": ""}
        if not shown:
            return None
        return event(self._chunk(choice, shown, logprobs=logprobs))

    def completed(self, choice: int, turn: Turn) -> bytes:
        """The last chunk of a choice."""
        return event(self._chunk(choice, {}, reason=finish_reason(turn, legacy=self._plan.legacy)))

    def usage(self, turns: Sequence[Turn]) -> bytes:
        """The chunk after all choices, for those who asked for it."""
        return event({**self._head, "choices": [], "usage": chat_usage(turns)})

    def _chunk(
        self,
        choice: int,
        delta: dict[str, Any],
        *,
        reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        one = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        chunk = {**self._head, "choices": [one]}
        if self._plan.include_usage:
            chunk["usage"] = None
        if self._plan.obfuscate:
            # So that the length of an event tells little about its text.
            padding = -len(encode_json(delta)) % _OBFUSCATION_STEP
            chunk["obfuscation"] = secrets.token_urlsafe(_OBFUSCATION_STEP)[:padding]
        return chunk

    def _shown(self, choice: int, delta: TurnDelta) -> dict[str, Any]:
        shown: dict[str, Any] = {}
        for piece in delta.pieces:
            if isinstance(piece, TextPiece):
                shown["content"] = shown.get("content", "") + piece.text
            elif isinstance(piece, ReasoningPiece):
                shown["reasoning_content"] = shown.get("reasoning_content", "") + piece.text
            elif self._plan.legacy:
                self._show_function(choice, shown, piece.name, piece.arguments)
            else:
                self._show_call(choice, shown, piece.index, piece.name, piece.arguments)
        return shown

    def _show_call(
        self, choice: int, shown: dict[str, Any], index: int, name: str | None, arguments: str
    ) -> None:
        calls = shown.setdefault("tool_calls", [])
        if calls and calls[-1]["index"] == index:
            calls[-1]["function"]["arguments"] += arguments
            return
        call: dict[str, Any] = {"index": index, "function": {"arguments": arguments}}
        if index not in self._started[choice]:
            self._started[choice].add(index)
            call |= {"id": call_id(self._turn_ids[choice], index), "type": "function"}
            call["function"]["name"] = name
        calls.append(call)

    def _show_function(
        self, choice: int, shown: dict[str, Any], name: str | None, arguments: str
    ) -> None:
        call = shown.setdefault("function_call", {"arguments": ""})
        call["arguments"] += arguments
        if name is not None:
            call["name"] = name


async def completion_events(
    plan: StreamPlan, listeners: Sequence[Listener]
) -> AsyncGenerator[bytes, None]:
    """All chunks of a completion, one listener for each choice. A turn that fails ends it."""
    encoder = ChunkEncoder(plan)
    turns: dict[int, Turn] = {}
    async with contextlib.aclosing(_merged(listeners)) as events:
        async for choice, happened in events:
            if isinstance(happened, TurnDelta):
                data = encoder.delta(choice, happened)
                if data is not None:
                    yield data
            elif isinstance(happened, TurnCreated):
                yield encoder.created(choice, happened)
            elif isinstance(happened, TurnFailed):
                yield event(describe_error(happened.error))
                yield DONE
                return
            else:
                turns[choice] = happened.turn
                yield encoder.completed(choice, happened.turn)
    if plan.include_usage:
        yield encoder.usage([turns[choice] for choice in sorted(turns)])
    yield DONE


async def _merged(
    listeners: Sequence[Listener],
) -> AsyncGenerator[tuple[int, TurnEvent], None]:
    """Events of all choices as they come."""
    if len(listeners) == 1:
        async for happened in listeners[0]:
            yield 0, happened
        return
    queue: asyncio.Queue[tuple[int, TurnEvent]] = asyncio.Queue()

    async def follow(choice: int, events: AsyncIterator[TurnEvent]) -> None:
        async for happened in events:
            queue.put_nowait((choice, happened))

    tasks = [
        asyncio.create_task(follow(choice, aiter(listener)))
        for choice, listener in enumerate(listeners)
    ]
    running = len(tasks)
    try:
        while running:
            choice, happened = await queue.get()
            running -= isinstance(happened, TurnCompleted | TurnFailed)
            yield choice, happened
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
