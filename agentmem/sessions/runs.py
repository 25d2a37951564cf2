"""A turn while it runs: a task of its own that any number of listeners follow from the start.

The turn does not hang on the connection that asked for it. When the last listener leaves a turn
that cannot be retried, it is cancelled; one that can be retried runs on and commits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from agentmem.catalog.records import Turn
from agentmem.core import SessionId, TurnId
from agentmem.engine.base import Alternatives
from agentmem.engine.output import Piece, TextPiece
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
    """Events of one turn, kept until it is over: they are bounded by its max_tokens."""

    def __init__(
        self, session_id: SessionId, number: int, body_hash: str, *, retryable: bool
    ) -> None:
        self.session_id = session_id
        self.number = number
        self.body_hash = body_hash
        self.retryable = retryable
        self.task: asyncio.Task[None] | None = None
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

    def publish(self, event: TurnEvent) -> None:
        """Adds an event; nothing follows after TurnCompleted or TurnFailed."""
        assert not self.over, "a turn that is over has no further events"
        self._settled = self._settled or isinstance(event, TurnCompleted | TurnFailed)
        self._events.append(event)
        self._news.set()

    def listen(self) -> Listener:
        """A listener that starts with the first event. It must be closed."""
        self._listeners += 1
        return Listener(self)

    def leave(self) -> None:
        """One listener is gone; see the module's docstring."""
        self._listeners -= 1
        assert self._listeners >= 0, "more listeners left than came"
        if self._listeners == 0 and not self.retryable:
            self.end()

    def begin(self) -> None:
        """Called by the task, first of all. Raises CancelledError when `end` came before it:
        a task that is cancelled before its first step would never get to clean up."""
        self._begun = True
        if self._ended:
            raise asyncio.CancelledError

    def settle(self) -> None:
        """Called by the task when it is known how the turn ended: `end` has no effect any more."""
        self._settled = True

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


def finished_run(turn: Turn, session_id: SessionId, text: str) -> TurnRun:
    """A turn that is in the log already, as a run that is over: it replays."""
    run = TurnRun(session_id, turn.number, turn.body_hash, retryable=True)
    run.publish(TurnCreated(turn.id, turn.number))
    logprobs = tuple(turn.logprobs or ())
    run.publish(TurnDelta(text, tuple(turn.output_ids), logprobs))
    run.publish(TurnCompleted(turn))
    return run
