"""A whole gateway over real HTTP in this process and event loop, on the fake engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import uvicorn

from agentmem.administration.apikeys import new_api_key
from agentmem.app import Gateway, build_app
from agentmem.catalog import Catalog, migrate
from agentmem.config import Settings
from agentmem.core import TenantId
from agentmem.engine.fake import FakeEngine
from agentmem.sessions.secrets import load_secrets
from agentmem.testing.fake_worker import FakeWorker
from agentmem.testing.models import write_tokenizer
from agentmem.testing.pages import InMemoryPages


@dataclass(slots=True)
class RunningGateway:
    """A gateway that listens, and everything behind it."""

    url: str
    gateway: Gateway
    worker: FakeWorker

    @property
    def engine(self) -> FakeEngine:
        """The engine that answers."""
        return self.worker.engine

    @property
    def pages(self) -> InMemoryPages:
        """The node agent."""
        return self.worker.pages

    @property
    def catalog(self) -> Catalog:
        """The catalog."""
        return self.gateway.catalog

    async def client(self, tenant: str) -> Client:
        """A client with a key of the tenant of this name, which is made when there is none."""
        tenant_id, key = await make_key(self.gateway.settings, self.catalog, tenant)
        return Client(self.url, key, tenant_id)


class Client:
    """An HTTP client with an API key. Use it as an async context manager."""

    def __init__(self, url: str, key: str, tenant_id: TenantId) -> None:
        self.key = key
        self.tenant_id = tenant_id
        self.http = httpx2.AsyncClient(
            base_url=url,
            headers={"authorization": f"Bearer {key}"},
            timeout=30.0,
            trust_env=False,
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.http.aclose()

    async def create(self, **body: Any) -> str:
        """A new session's id."""
        response = await self.http.post("/v1/sessions", json=body)
        assert response.status_code == 201, response.text
        session_id: str = response.json()["id"]
        return session_id

    async def get(self, session_id: str) -> dict[str, Any]:
        """The session object."""
        response = await self.http.get(f"/v1/sessions/{session_id}")
        assert response.status_code == 200, response.text
        session: dict[str, Any] = response.json()
        return session

    async def post_turn(
        self, session_id: str, text: str, *, timeout: float = 30.0, **body: Any
    ) -> httpx2.Response:
        """One user message; the raw response."""
        body = {"max_tokens": 8, "messages": [{"role": "user", "content": text}], **body}
        path = f"/v1/sessions/{session_id}/turns"
        return await self.http.post(path, json=body, timeout=timeout)

    async def turn(self, session_id: str, text: str, **body: Any) -> dict[str, Any]:
        """One user message; the turn object."""
        response = await self.post_turn(session_id, text, **body)
        assert response.status_code == 201, response.text
        turn: dict[str, Any] = response.json()
        return turn

    @asynccontextmanager
    async def streaming(
        self, session_id: str, text: str, **body: Any
    ) -> AsyncIterator[AsyncIterator[tuple[str, dict[str, Any]]]]:
        """One user message; the events as (name, data), as they come."""
        body = {
            "max_tokens": 8,
            "stream": True,
            "messages": [{"role": "user", "content": text}],
            **body,
        }
        path = f"/v1/sessions/{session_id}/turns"
        async with self.http.stream("POST", path, json=body) as response:
            if response.status_code != 200:
                raise AssertionError((await response.aread()).decode())
            yield _events(response)

    async def stream(
        self, session_id: str, text: str, **body: Any
    ) -> list[tuple[str, dict[str, Any]]]:
        """One user message; all events."""
        async with self.streaming(session_id, text, **body) as events:
            return [event async for event in events]


async def _events(response: httpx2.Response) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    name = ""
    async for line in response.aiter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


async def make_key(settings: Settings, catalog: Catalog, tenant: str) -> tuple[TenantId, str]:
    """A new key of a tenant, which is made when there is none of this name."""
    secrets = load_secrets(settings.secrets_dir)
    key, prefix = new_api_key()
    async with catalog.transaction() as tx:
        owner = await tx.tenants.find(tenant) or await tx.tenants.create(tenant)
        await tx.keys.create(owner.id, name="", prefix=prefix, key_hash=secrets.key_hash(key))
    return owner.id, key


@asynccontextmanager
async def running_gateway(
    settings: Settings,
    *,
    token_seconds: float = 0.0,
    tokenizer: Path | None = None,
    pages: InMemoryPages | None = None,
) -> AsyncIterator[RunningGateway]:
    """Starts a gateway on a free port; the catalog's schema is brought up to date first.

    `pages`: the node agent that an earlier gateway left behind; a new one by default.
    """
    await migrate(settings.catalog_url)
    path = tokenizer or settings.models_dir / "fake"
    if tokenizer is None:
        write_tokenizer(path)
    worker = FakeWorker(
        path,
        page_tokens=settings.page_tokens,
        context_tokens=settings.context_tokens or 32_768,
        hbm_tokens=settings.hbm_tokens,
        token_seconds=token_seconds,
        pages=pages,
    )
    app = build_app(settings, engine_factory=worker.engine_for, pages=worker.pages)
    gateway: Gateway = app.state.gateway
    try:
        async with worker.running(gateway.catalog), _served(app) as url:
            yield RunningGateway(url, gateway, worker)
    finally:
        # The worker signs off after the gateway closed it, which opens a connection again.
        await gateway.catalog.aclose()


@asynccontextmanager
async def _served(app: Any) -> AsyncIterator[str]:
    # asyncio turns Nagle's algorithm off only where the protocol is named.
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5)
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started:
            if serving.done():
                await serving
                raise AssertionError("the gateway did not start; its log says why")
            await asyncio.sleep(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving
        listener.close()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """Tests keep their own signal handlers."""
        yield
