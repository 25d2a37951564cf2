"""A peer that never reads costs a connection for a bounded time only."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import pytest
import uvicorn

from agentmem import app as gateway


async def test_the_kernel_gives_an_unread_connection_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "UNREAD_SECONDS_MAX", 0.5)
    gone = asyncio.Event()

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        leaving = asyncio.create_task(receive())
        sending = asyncio.create_task(_forever(send))
        await leaving
        if (await receive())["type"] == "http.disconnect":
            gone.set()
        sending.cancel()

    async def _forever(send: Any) -> None:
        while True:
            await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})

    config = uvicorn.Config(endless, port=0, lifespan="off", log_config=None, access_log=False)
    server = gateway._Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        begun = time.monotonic()
        async with asyncio.timeout(20):
            await gone.wait()
        assert time.monotonic() - begun < 15
    server.force_exit = server.should_exit = True
    await serving
