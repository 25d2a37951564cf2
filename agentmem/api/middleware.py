"""The edge of the gateway: request ids, one log line per request, bodies within their limit."""

from __future__ import annotations

import asyncio
import contextlib
import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agentmem.api.errors import internal_response, slow_body_response, too_large_response
from agentmem.catalog.ids import new_id
from agentmem.telemetry import Metrics, bind_log_fields, get_logger

_log = get_logger("agentmem.api")
# What is read and thrown away of a body that is too large, so that the reply gets through.
_DISCARD_FACTOR = 4
_DISCARD_SECONDS = 5.0


class EdgeMiddleware:
    """Gives every reply an `x-request-id` and the time that it took to begin (of a stream) or to
    be whole, and an unforeseen error a reply."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = new_id("req")
        status = 0
        begun = time.perf_counter()
        structlog.contextvars.clear_contextvars()
        bind_log_fields(request_id=request_id)

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                milliseconds = (time.perf_counter() - begun) * 1_000
                headers["openai-processing-ms"] = str(max(1, round(milliseconds)))
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        # loop edge: the caller gets an answer without internals, the log the traceback.
        except Exception:  # noqa: BLE001
            _log.exception("unhandled error")
            if not status:
                await internal_response()(scope, receive, send_with_id)
        route = getattr(scope.get("route"), "path", "unmatched")
        self._metrics.requests.labels(route, scope["method"], str(status)).inc()
        seconds = round(time.perf_counter() - begun, 6)
        _log.info("request", route=route, method=scope["method"], status=status, seconds=seconds)


class BodyMiddleware:
    """Reads the whole body first, within its limits of bytes and seconds: it is one JSON value."""

    def __init__(self, app: ASGIApp, *, bytes_max: int, seconds_max: float) -> None:
        self._app = app
        self._bytes_max = bytes_max
        self._seconds_max = seconds_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        source = _Body(receive)
        declared = Headers(scope=scope).get("content-length", "0")
        body: bytes | None = None
        try:
            if not declared.isdigit() or int(declared) <= self._bytes_max:
                async with asyncio.timeout(self._seconds_max):
                    body = await self._read(source)
            if body is None:
                await self._discard(source)
                await too_large_response(self._bytes_max)(scope, receive, send)
                return
        except TimeoutError:
            await slow_body_response(self._seconds_max)(scope, receive, send)
            return
        except _Disconnected:
            return
        # As it came: what tells a repeat of the request from another one (see `retries`).
        scope.setdefault("state", {})["body"] = body
        await self._app(scope, _replay(body, receive), send)

    async def _read(self, source: _Body) -> bytes | None:
        """The body, or None as soon as it is too long, whether or not its length was declared."""
        body = bytearray()
        while not source.complete:
            body += await source.chunk()
            if len(body) > self._bytes_max:
                return None
        return bytes(body)

    async def _discard(self, source: _Body) -> None:
        left = _DISCARD_FACTOR * self._bytes_max
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DISCARD_SECONDS):
                while left > 0 and not source.complete:
                    left -= len(await source.chunk())


class _Disconnected(Exception):
    """The caller left before the body was whole."""


class _Body:
    """A request's body, chunk by chunk."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.complete = False

    async def chunk(self) -> bytes:
        """The next piece; `complete` is true after the last one."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise _Disconnected
        self.complete = not message.get("more_body", False)
        piece: bytes = message.get("body", b"")
        return piece


def _replay(body: bytes, receive: Receive) -> Receive:
    """Hands the body over once; afterwards the caller's disconnect is what is left to receive."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay
