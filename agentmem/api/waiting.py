"""Answers that are whole: waiting for turns, unless the caller leaves first."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any, cast

from fastapi import Request
from starlette.responses import Response

from agentmem.catalog.records import Turn
from agentmem.sessions.runs import Listener, TurnCreated, TurnEvent, TurnFailed

_CLIENT_CLOSED_REQUEST = 499
# A worker that is dead is found out at once; a long prompt takes its time.
_FIRST_SIGN_SECONDS = 1.0


def nobody_there() -> Response:
    """What a caller that has left would have got."""
    return Response(status_code=_CLIENT_CLOSED_REQUEST)


async def results_or_disconnect(
    request: Request, listeners: Sequence[Listener]
) -> list[Turn] | None:
    """The committed turns in order, or None when the caller leaves first.

    Raises what one of them failed with. The listeners are closed in any case.
    """
    results = [asyncio.ensure_future(listener.result()) for listener in listeners]
    gone = asyncio.ensure_future(_disconnect(request))
    waiting: set[asyncio.Future[Any]] = {gone, *results}
    try:
        while not gone.done() and not all(result.done() for result in results):
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for one in done - {gone}:
                one.result()  # one that failed fails them all
        return None if gone.done() and waiting else [result.result() for result in results]
    finally:
        tasks: list[asyncio.Future[Any]] = [gone, *results]
        for one in tasks:
            one.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for listener in listeners:
            listener.close()


async def failed_at_once(listeners: Sequence[Listener]) -> None:
    """Returns when all turns have said something, or have taken `_FIRST_SIGN_SECONDS` for it.

    Raises what one of them failed with before: while nothing has been sent, that can be an answer
    which clients try again after. The listeners are closed then.
    """
    try:
        async with asyncio.timeout(_FIRST_SIGN_SECONDS):
            for listener in listeners:
                await _first_sign(listener)
    except TimeoutError:
        return
    except BaseException:
        for listener in listeners:
            listener.close()
        raise


async def _first_sign(listener: Listener) -> None:
    following = cast("AsyncGenerator[TurnEvent, None]", aiter(listener))
    async with contextlib.aclosing(following) as events:
        async for happened in events:
            if isinstance(happened, TurnFailed):
                raise happened.error
            if not isinstance(happened, TurnCreated):
                return


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
