"""What went over the wire, byte for byte, for checks that the client's own parsing would hide."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

try:
    import httpx2 as httpx  # what openai 3 is built on
except ImportError:
    import httpx


@dataclass
class Exchange:
    """A request and what has been read of its response."""

    method: str
    path: str
    query: dict[str, str]
    sent: bytes
    request_headers: dict[str, str]
    status: int
    headers: dict[str, str]
    received: bytearray = field(default_factory=bytearray)
    complete: bool = False

    @property
    def is_stream(self) -> bool:
        """Whether it was answered with server-sent events."""
        return self.headers.get("content-type", "").startswith("text/event-stream")

    def json(self) -> Any:
        """The body of a response that is no stream."""
        return json.loads(bytes(self.received))

    def events(self) -> list[tuple[str | None, str]]:
        """(`event:`, `data:`) of each event that came whole, comments left out."""
        found = []
        blocks = bytes(self.received).decode().replace("\r\n", "\n").split("\n\n")
        for block in blocks[:-1]:
            name, data = None, []
            for line in block.split("\n"):
                if line.startswith(":"):
                    continue
                key, _, value = line.partition(":")
                value = value.removeprefix(" ")
                assert key in ("event", "data", "id", "retry"), f"not a line of SSE: {line!r}"
                if key == "event":
                    name = value
                elif key == "data":
                    data.append(value)
            if data:
                found.append((name, "\n".join(data)))
        return found


class Wire:
    """All exchanges of a test, in order."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []

    def start(self, request: Any, response: Any) -> Exchange:
        """A response has begun."""
        exchange = Exchange(
            method=request.method,
            path=request.url.path,
            query=dict(request.url.params),
            sent=bytes(request.content),
            request_headers=dict(request.headers),
            status=response.status_code,
            headers=dict(response.headers),
        )
        self.exchanges.append(exchange)
        return exchange


class _Tee(httpx.SyncByteStream):
    def __init__(self, stream: Any, exchange: Exchange) -> None:
        self._stream, self._exchange = stream, exchange

    def __iter__(self) -> Iterator[bytes]:
        for part in self._stream:
            self._exchange.received += part
            yield part
        self._exchange.complete = True

    def close(self) -> None:
        self._stream.close()


class _AsyncTee(httpx.AsyncByteStream):
    def __init__(self, stream: Any, exchange: Exchange) -> None:
        self._stream, self._exchange = stream, exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._stream:
            self._exchange.received += part
            yield part
        self._exchange.complete = True

    async def aclose(self) -> None:
        await self._stream.aclose()


class Transport(httpx.HTTPTransport):
    """Writes down what passes."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._wire = wire

    def handle_request(self, request: Any) -> Any:
        request.read()
        response = super().handle_request(request)
        exchange = self._wire.start(request, response)
        return httpx.Response(
            response.status_code,
            headers=response.headers,
            stream=_Tee(response.stream, exchange),
            extensions=response.extensions,
        )


class AsyncTransport(httpx.AsyncHTTPTransport):
    """Writes down what passes."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._wire = wire

    async def handle_async_request(self, request: Any) -> Any:
        await request.aread()
        response = await super().handle_async_request(request)
        exchange = self._wire.start(request, response)
        return httpx.Response(
            response.status_code,
            headers=response.headers,
            stream=_AsyncTee(response.stream, exchange),
            extensions=response.extensions,
        )
