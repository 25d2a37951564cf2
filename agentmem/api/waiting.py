"""Answers that are whole: waiting for turns, unless the caller leaves first."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import Request
from starlette.responses import Response

from agentmem.catalog.records import Turn
from agentmem.sessions.runs import Listener

_CLIENT_CLOSED_REQUEST = 499


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


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
