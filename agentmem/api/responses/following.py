"""Following a response to its end: as a stream of events, or as one object."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import Request

from agentmem.api.errors import describe_error
from agentmem.api.responses.events import Event, Extras, ResponseEncoder
from agentmem.api.responses.objects import (
    Ending,
    Head,
    ended_with,
    response_object,
)
from agentmem.api.responses.schemas import ENCRYPTED, LOGPROBS
from agentmem.api.sse import DONE, event
from agentmem.api.waiting import failed_at_once
from agentmem.catalog.records import Response, Turn
from agentmem.errors import AgentmemError
from agentmem.sessions.requests import ResponsePlan
from agentmem.sessions.responses import Begun, ResponsesService
from agentmem.sessions.runs import TurnCompleted, TurnCreated, TurnDelta, TurnEvent
from agentmem.sessions.service import SessionsService

_US = 1_000_000


class Follower:
    """Follows one response once."""

    def __init__(self, responses: ResponsesService, begun: Begun, extras: Extras) -> None:
        self._responses = responses
        self._begun = begun
        self._encoder = ResponseEncoder(head_of(begun.plan), extras)

    async def events(self, *, after: int = -1) -> AsyncGenerator[bytes, None]:
        """The events after the one with the number `after`, as bytes to send."""
        async for happened in self._begun.listener:
            for kind, data in await self._encode(happened):
                if data["sequence_number"] > after:
                    yield event(data, kind)
        yield DONE

    async def first_sign(self) -> None:
        """Returns when there is something to stream, or it takes its time.

        Raises what the turn failed with before: nobody has learnt its id, and clients try again.
        """
        try:
            await failed_at_once([self._begun.listener])
        except AgentmemError:
            self._responses.finished(self._begun)
            raise
        except BaseException:
            self.leave()
            raise

    async def whole(self, request: Request) -> tuple[dict[str, Any], Turn] | None:
        """The response once it is whole, and its turn; None when the caller leaves before.

        Raises what the turn failed with.
        """
        ending = asyncio.ensure_future(self._to_the_end())
        gone = asyncio.ensure_future(_disconnect(request))
        try:
            await asyncio.wait((ending, gone), return_when=asyncio.FIRST_COMPLETED)
            return ending.result() if ending.done() else None
        finally:
            for one in (ending, gone):
                one.cancel()
            await asyncio.gather(ending, gone, return_exceptions=True)
            self.leave()

    async def told(self) -> dict[str, Any]:
        """The object of a response that is over."""
        try:
            return (await self._to_the_end())[0]
        finally:
            self.leave()

    def leave(self) -> None:
        """Call it at last, however following ended."""
        self._responses.leave(self._begun, error_object)

    async def _to_the_end(self) -> tuple[dict[str, Any], Turn]:
        async for happened in self._begun.listener:
            if isinstance(happened, TurnCompleted):
                (_, data), *_ = reversed(await self._encode(happened))
                shown: dict[str, Any] = data["response"]
                return shown, happened.turn
            if not isinstance(happened, TurnCreated | TurnDelta):
                # Nobody has learnt its id: there is nothing to keep a row for.
                self._responses.finished(self._begun)
                raise happened.error
            await self._encode(happened)
        raise AssertionError("a turn ends with TurnCompleted or TurnFailed")

    async def _encode(self, happened: TurnEvent) -> Sequence[Event]:
        if isinstance(happened, TurnDelta):
            return list(self._encoder.delta(happened))
        if isinstance(happened, TurnCreated):
            return list(self._encoder.created(happened))
        if isinstance(happened, TurnCompleted):
            diagnostics = await self._responses.diagnose(self._begun, happened.turn)
            self._responses.finished(self._begun)
            return list(self._encoder.ended(ended_with(happened.turn, diagnostics=diagnostics)))
        error = error_object(happened.error)
        status = await self._responses.failed(self._begun, error)
        if status == "cancelled":
            return list(self._encoder.ended(Ending("cancelled")))
        return list(self._encoder.ended(Ending("failed", error=error)))


async def extras_of(
    service: SessionsService,
    responses: ResponsesService,
    begun: Begun,
    include: Sequence[str],
    *,
    obfuscate: bool,
) -> Extras:
    """What the response has besides: what its request included, and `include`."""
    wanted = {*include, *begun.plan.request.get("include", ())}
    token_text = None
    if LOGPROBS in wanted:
        token_text = await service.token_text(begun.plan.request["model"])
    sealer, tenant_id = responses.sealer, begun.tenant_id

    def seal(text: str) -> str:
        return sealer.seal(tenant_id, "reasoning", text)

    return Extras(token_text, seal if ENCRYPTED in wanted else None, obfuscate)


def head_of(plan: ResponsePlan, *, created_at: int = 0) -> Head:
    """What the object of a response begins with."""
    return Head(plan.id, plan.request, created_at, plan.previous_response_id, plan.conversation_id)


def without_turn(plan: ResponsePlan, row: Response) -> dict[str, Any]:
    """The object of a response that failed or was cancelled."""
    status: Any = row.status
    ending = Ending(status, error=row.error, expires_at=row.expires_at // _US)
    return response_object(head_of(plan, created_at=row.created_at), ending)


async def events_without_turn(
    plan: ResponsePlan, row: Response, *, after: int
) -> AsyncGenerator[bytes, None]:
    """The one event that is left of a response that failed: its end."""
    kind = "response.failed"
    shown = {"type": kind, "sequence_number": after + 1, "response": without_turn(plan, row)}
    yield event(shown, kind)
    yield DONE


def error_object(error: AgentmemError) -> dict[str, Any]:
    """`error` of a response that failed."""
    return {"code": "server_error", "message": describe_error(error)["error"]["message"]}


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
