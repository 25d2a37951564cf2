"""A turn while it runs: a task of its own that any number of listeners follow from the start.

The turn does not hang on the connection that asked for it. When the last listener leaves a turn
that nobody can find again, it is cancelled; one that can be retried runs on and commits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from agentmem.catalog.records import Turn
from agentmem.core import SessionId, TurnId
from agentmem.engine.base import Alternatives
from agentmem.engine.output import Piece, ReasoningPiece, TextPiece, ToolCallPiece
from agentmem.errors import AgentmemError


@dataclass(frozen=True, slots=True)
class TurnCreated:
    """The turn is about to run: nothing of it is in the log yet. `created_at` in microseconds."""

    turn_id: TurnId
    number: int
    session_id: SessionId
    created_at: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class TurnDelta:
    """Ids as sampled, and what became certain of the message (complete characters only).

    `logprobs` and `top_logprobs` are as long as `token_ids` where asked for, else empty.
    """

    pieces: tuple[Piece, ...]
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[Alternatives, ...] = ()

    @property
    def text(self) -> str:
        """More of the visible reply."""
        return "".join(piece.text for piece in self.pieces if isinstance(piece, TextPiece))


@dataclass(frozen=True, slots=True)
class TurnCompleted:
    """The turn is in the log."""

    turn: Turn


@dataclass(frozen=True, slots=True)
class TurnFailed:
    """The turn ended and the log is where it was."""

    error: AgentmemError


TurnEvent = TurnCreated | TurnDelta | TurnCompleted | TurnFailed


class TurnRun:
    """Events of one turn, kept until it is over: they are bounded by its max_tokens.

    `retryable`: it runs on when nobody listens any more. Otherwise it is ended `grace_seconds`
    after the last listener has left, unless another one comes (the client trying again).
    `response_id` is the id of the response object that it makes, if it makes one.
    """

    def __init__(
        self,
        number: int,
        body_hash: str,
        *,
        retryable: bool,
        grace_seconds: float = 0.0,
        response_id: str | None = None,
    ) -> None:
        self.number = number
        self.response_id = response_id
        self.body_hash = body_hash
        self.retryable = retryable
        self.task: asyncio.Task[None] | None = None
        self._grace_seconds = grace_seconds
        self._grace: asyncio.TimerHandle | None = None
        self._events: list[TurnEvent] = []
        self._news = asyncio.Event()
        self._listeners = 0
        self._begun = False
        self._ended = False
        self._settled = False

    @property
    def over(self) -> bool:
        """Whether the last event was published."""
        return bool(self._events) and isinstance(self._events[-1], TurnCompleted | TurnFailed)

    @property
    def created(self) -> TurnCreated:
        """The first event, which is published before anybody listens."""
        first = self._events[0]
        assert isinstance(first, TurnCreated), "a turn begins with TurnCreated"
        return first

    def publish(self, event: TurnEvent) -> None:
        """Adds an event; nothing follows after TurnCompleted or TurnFailed."""
        assert not self.over, "a turn that is over has no further events"
        self._settled = self._settled or isinstance(event, TurnCompleted | TurnFailed)
        self._events.append(event)
        self._news.set()

    def listen(self) -> Listener:
        """A listener that starts with the first event. It must be closed."""
        self._listeners += 1
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        return Listener(self)

    def leave(self) -> None:
        """One listener is gone; see the class."""
        self._listeners -= 1
        assert self._listeners >= 0, "more listeners left than came"
        if self._listeners or self.retryable or self._settled:
            return
        if self._grace_seconds:
            loop = asyncio.get_running_loop()
            self._grace = loop.call_later(self._grace_seconds, self.end)
        else:
            self.end()

    async def failed(self) -> bool:
        """Whether it failed, or is just being ended: joining it would be of no use."""
        if self._ended and not self.over:
            async for _ in self.follow():
                pass
        return self.over and isinstance(self._events[-1], TurnFailed)

    def begin(self) -> None:
        """Called by the task, first of all. Raises CancelledError when `end` came before it:
        a task that is cancelled before its first step would never get to clean up."""
        self._begun = True
        if self._ended:
            raise asyncio.CancelledError

    def settle(self) -> None:
        """Called by the task when it is known how the turn ended: `end` has no effect any more."""
        self._settled = True
        if self._grace is not None:
            self._grace.cancel()

    def end(self) -> None:
        """Cancels the turn unless it is over; its commit, once begun, is finished all the same."""
        if not self._settled and not self._ended:
            self._ended = True
            if self._begun and self.task is not None:
                self.task.cancel()

    async def follow(self) -> AsyncIterator[TurnEvent]:
        """All events, from the first one to the last."""
        at = 0
        while True:
            while at < len(self._events):
                event = self._events[at]
                at += 1
                yield event
                if isinstance(event, TurnCompleted | TurnFailed):
                    return
            # Set once per publication, and cleared by whoever finds nothing new.
            self._news.clear()
            await self._news.wait()


class Listener:
    """One party's interest in a turn; `close` (any number of times) ends it."""

    def __init__(self, run: TurnRun) -> None:
        self._run = run
        self._open = True

    def __aiter__(self) -> AsyncIterator[TurnEvent]:
        return self._run.follow()

    @property
    def created(self) -> TurnCreated:
        """The first event, which is there from the start."""
        return self._run.created

    @property
    def response_id(self) -> str | None:
        """The id of the response object; of a repeat, the one that the first request got."""
        return self._run.response_id

    async def result(self) -> Turn:
        """The committed turn; raises what it failed with."""
        async for event in self:
            if isinstance(event, TurnCompleted):
                return event.turn
            if isinstance(event, TurnFailed):
                raise event.error
        raise AssertionError("a turn ends with TurnCompleted or TurnFailed")

    def close(self) -> None:
        """Leaves; the turn may be cancelled by it."""
        if self._open:
            self._open = False
            self._run.leave()


def finished_run(turn: Turn, response_id: str | None = None) -> TurnRun:
    """A turn that is in the log already, as a run that is over: it replays."""
    run = TurnRun(turn.number, turn.body_hash, retryable=True, response_id=response_id)
    run.publish(
        TurnCreated(turn.id, turn.number, turn.session_id, turn.created_at, turn.prompt_tokens)
    )
    alternatives = tuple(tuple((i, p) for i, p in one) for one in turn.top_logprobs or ())
    run.publish(
        TurnDelta(
            message_pieces(turn.reply or {}),
            tuple(turn.output_ids),
            tuple(turn.logprobs or ()),
            alternatives,
        )
    )
    run.publish(TurnCompleted(turn))
    return run


def message_pieces(message: Mapping[str, Any]) -> tuple[Piece, ...]:
    """A whole reply as pieces: thinking, text, calls."""
    pieces: list[Piece] = []
    if message.get("reasoning_content"):
        pieces.append(ReasoningPiece(message["reasoning_content"]))
    if message.get("content"):
        pieces.append(TextPiece(message["content"]))
    for index, call in enumerate(message.get("tool_calls") or ()):
        function = call["function"]
        pieces.append(ToolCallPiece(index, function["name"], function["arguments"]))
    return tuple(pieces)
