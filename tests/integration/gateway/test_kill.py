"""kill -9 of a gateway process in the middle of a turn, and a second one on the same catalog."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2

from agentmem.catalog import Catalog, migrate
from agentmem.catalog.ids import now_us
from agentmem.config import Settings
from agentmem.testing.gateway import Client, make_key
from tests.integration.gateway.conftest import settled

# A gateway whose engine takes its time; the same composition root as `agentmem gateway`.
PROGRAM = """
import agentmem.testing.fake_worker as fake_worker
from agentmem.app import run_gateway
from agentmem.config import Settings

real = fake_worker.FakeWorker.__init__

def slow(self, *args, **kwargs):
    real(self, *args, **{**kwargs, "token_seconds": 0.02})

fake_worker.FakeWorker.__init__ = slow
run_gateway(Settings())
"""


@asynccontextmanager
async def gateway_process(settings: Settings) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = {
        **os.environ,
        **{f"AGENTMEM_{k.upper()}": str(v) for k, v in settings.model_dump().items()},
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", PROGRAM, env=environment
    )
    try:
        async with httpx2.AsyncClient(trust_env=False) as http:
            async with asyncio.timeout(20):
                while True:
                    assert process.returncode is None, "the gateway ended"
                    try:
                        url = f"http://127.0.0.1:{settings.port}/readyz"
                        if (await http.get(url)).status_code == 200:
                            break
                    except httpx2.TransportError:
                        await asyncio.sleep(0.05)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_kill_in_the_middle_of_a_turn(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = Settings(
        data_dir=tmp_path / "data", engine="fake", port=port, lease_seconds=3_600, page_tokens=16
    )
    await migrate(settings.catalog_url)
    catalog = Catalog(settings.catalog_url)
    tenant, key = await make_key(settings, catalog, "acme")
    body = {"max_tokens": 100, "ignore_eos": True, "expected_turn": 2}
    async with Client(f"http://127.0.0.1:{port}", key, tenant) as client:
        async with gateway_process(settings) as first:
            session = await client.create()
            await client.turn(session, "hello")
            before = await settled(client, session)
            try:
                async with client.streaming(session, "again", **body) as events:
                    async for name, _ in events:
                        if name == "turn.delta":
                            first.kill()
            except httpx2.TransportError:
                pass
            await first.wait()
        async with catalog.reading() as tx:
            assert await tx.leases.find(tenant, session) is not None  # type: ignore[arg-type]
            assert await tx.turns.count(tenant) == 1
        async with gateway_process(settings) as second:
            begun = now_us()
            assert await client.get(session) == before
            turn = await client.turn(session, "again", **body)
            assert now_us() - begun < 10e6
            assert turn["number"] == 2
            assert (await client.get(session))["turns"] == 2
            # SIGTERM lets a running turn finish, and the process ends without an error.
            running = asyncio.create_task(client.turn(session, "more", max_tokens=20))
            await asyncio.sleep(0.1)
            second.send_signal(signal.SIGTERM)
            assert (await running)["number"] == 3
            assert await asyncio.wait_for(second.wait(), 10) == 0
    await catalog.aclose()
