"""Streams end in every way that a client can end them, and close what they follow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from agentmem.api.sse import DONE, EventStream, event

SCOPE: dict[str, Any] = {"type": "http"}


class Connection:
    """A client: what it received, when it leaves, and whether it reads."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.left = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()

    async def receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await self.reads.wait()
        self.sent.append(message)

    @property
    def bodies(self) -> list[bytes]:
        return [one["body"] for one in self.sent if one["type"] == "http.response.body"]


class Source:
    """Events, then a pause that only `go` ends."""

    def __init__(self, *events: bytes) -> None:
        self.events = events
        self.go = asyncio.Event()
        self.ended = False
        self.closed = 0

    async def stream(self) -> AsyncGenerator[bytes, None]:
        try:
            for one in self.events:
                yield one
            await self.go.wait()
            yield DONE
        finally:
            self.ended = True

    def close(self) -> None:
        self.closed += 1

    def response(self, **options: float) -> EventStream:
        return EventStream(self.stream(), close=self.close, headers={"x-a": "b"}, **options)


def test_an_event_is_one_block_of_lines() -> None:
    assert event({"a": "x\ny\u2028"}) == 'data: {"a":"x\\ny\u2028"}\n\n'.encode()
    assert event({"a": 1}, "turn.delta") == b'event: turn.delta\ndata: {"a":1}\n\n'


async def test_one_write_per_event() -> None:
    source, client = Source(b"1", b"2"), Connection()
    source.go.set()
    await source.response()(SCOPE, client.receive, client.send)
    assert client.bodies == [b"1", b"2", DONE, b""]
    assert [one.get("more_body") for one in client.sent] == [None, True, True, True, False]
    headers = dict(client.sent[0]["headers"])
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert headers[b"x-a"] == b"b"
    assert b"content-length" not in headers
    assert (source.closed, source.ended) == (1, True)


async def test_a_client_that_leaves() -> None:
    source, client = Source(b"1"), Connection()
    asyncio.get_running_loop().call_later(0.02, client.left.set)
    async with asyncio.timeout(2):
        await source.response()(SCOPE, client.receive, client.send)
    assert client.bodies == [b"1"]
    assert (source.closed, source.ended) == (1, True)


async def test_comments_while_there_is_nothing_to_say() -> None:
    source, client = Source(b"1"), Connection()
    asyncio.get_running_loop().call_later(0.1, source.go.set)
    async with asyncio.timeout(2):
        await source.response(keep_alive_seconds=0.02)(SCOPE, client.receive, client.send)
    comments = [one for one in client.bodies if one == b": keep-alive\n\n"]
    assert 2 <= len(comments) <= 5
    assert client.bodies[0] == b"1"
    assert client.bodies[-2:] == [DONE, b""]


async def test_a_client_that_does_not_read() -> None:
    source, client = Source(b"1"), Connection()
    client.reads.clear()
    async with asyncio.timeout(2):
        await source.response(send_seconds_max=0.05)(SCOPE, client.receive, client.send)
    assert client.sent == []
    assert source.closed == 1


async def test_a_client_that_stops_reading_before_a_comment() -> None:
    source, client = Source(b"1"), Connection()
    asyncio.get_running_loop().call_later(0.02, client.reads.clear)
    async with asyncio.timeout(2):
        await source.response(keep_alive_seconds=0.03, send_seconds_max=0.05)(
            SCOPE, client.receive, client.send
        )
    assert client.bodies == [b"1"]
    assert (source.closed, source.ended) == (1, True)


async def test_an_error_in_the_events_is_raised_and_closes() -> None:
    source, client = Source(), Connection()

    async def broken() -> AsyncGenerator[bytes, None]:
        yield b"1"
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        await EventStream(broken(), close=source.close)(SCOPE, client.receive, client.send)
    assert source.closed == 1


async def test_being_cancelled_closes() -> None:
    source, client = Source(b"1"), Connection()
    task = asyncio.create_task(source.response()(SCOPE, client.receive, client.send))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (source.closed, source.ended) == (1, True)
