"""Server-sent events over ASGI: one write per event, and nothing else done per event.

    main       waits for either of the two, sends comments when nothing else is sent
    feeding    event after event, as they come
    leaving    the caller's disconnect

A client that leaves, or does not take an event in time, is let go of; what becomes of its turn is
the listener's business.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import msgspec
from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from agentmem.telemetry import get_logger

_log = get_logger("agentmem.api.sse")
KEEP_ALIVE_SECONDS = 15.0
SEND_SECONDS_MAX = 60.0
DONE = b"data: [DONE]\n\n"
_KEEP_ALIVE = {"type": "http.response.body", "body": b": keep-alive\n\n", "more_body": True}
_HEADERS = {
    "cache-control": "no-store",
    # nginx holds streams back otherwise.
    "x-accel-buffering": "no",
}

# For the document: what a route answers with besides JSON. A schema would be one of single events,
# which differ from each other.
STREAM_CONTENT: dict[str, Any] = {"text/event-stream": {}}

encode_json: Callable[[Any], bytes] = msgspec.json.Encoder().encode


def event(data: Mapping[str, Any], name: str | None = None) -> bytes:
    """One event; JSON has no line breaks in it."""
    head = b"data: " if name is None else b"event: %b\ndata: " % name.encode()
    return head + encode_json(data) + b"\n\n"


class EventStream(Response):
    """A response of events, each as the bytes that `event` makes.

    `close` is called once, however it ends, also where the events were never begun.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        close: Callable[[], None],
        headers: Mapping[str, str] | None = None,
        keep_alive_seconds: float = KEEP_ALIVE_SECONDS,
        send_seconds_max: float = SEND_SECONDS_MAX,
    ) -> None:
        self.status_code = 200
        self.background: BackgroundTask | None = None
        self._events = events
        self._close = close
        self._keep_alive_seconds = keep_alive_seconds
        self._send_seconds_max = send_seconds_max
        self._sent = 0.0
        self._sending = False
        self.init_headers({**_HEADERS, **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        feeding = asyncio.create_task(self._feed(send))
        leaving = asyncio.create_task(_disconnect(receive))
        try:
            await self._watch(feeding, leaving, send)
        finally:
            for task in (feeding, leaving):
                task.cancel()
            await asyncio.wait((feeding, leaving))
            self._close()
        if not feeding.cancelled():
            # What went wrong in there is the application's to log.
            feeding.result()

    async def _feed(self, send: Send) -> None:
        now = asyncio.get_running_loop().time
        self._sent, self._sending = now(), True
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        self._sending = False
        async with contextlib.aclosing(self._events) as events:
            async for data in events:
                self._sent, self._sending = now(), True
                await send({"type": "http.response.body", "body": data, "more_body": True})
                self._sending = False
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _watch(
        self, feeding: asyncio.Task[None], leaving: asyncio.Task[None], send: Send
    ) -> None:
        """Returns when everything was sent, the caller left, or does not read."""
        now = asyncio.get_running_loop().time
        seconds = min(self._keep_alive_seconds, self._send_seconds_max)
        while True:
            done, _ = await asyncio.wait(
                (feeding, leaving), timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if done:
                return
            silent = now() - self._sent
            if self._sending:
                if silent >= self._send_seconds_max:
                    _log.warning("a client does not read its stream", seconds=round(silent, 1))
                    return
            elif silent >= self._keep_alive_seconds:
                self._sent = now()
                try:
                    async with asyncio.timeout(self._send_seconds_max):
                        await send(_KEEP_ALIVE)
                except TimeoutError:
                    _log.warning("a client does not read its stream")
                    return


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
