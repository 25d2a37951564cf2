"""A gateway on the fake engine, over real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog

from agentmem.config import Settings
from agentmem.testing.gateway import Client, RunningGateway, running_gateway
from agentmem.testing.postgres import PostgresServer
from tests.conftest import DATABASES

PAGE_TOKENS = 16

# The default renders tracebacks with all local variables, which takes seconds.
structlog.configure(
    processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()],
    logger_factory=structlog.ReturnLoggerFactory(),
)


# Modules whose tests depend on what SQL does: they run on both databases.
ON_BOTH = (
    "bad_input",
    "bad_input_openai",
    "chat_completions",
    "chat_stored",
    "contexts_api",
    "context_shared",
    "conversations",
    "faults",
    "isolation",
    "keeping",
    "lapse",
    "node_state",
    "responses",
    "responses_compact",
    "responses_streams",
    "safety",
    "turn_options",
    "turns",
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "database" not in metafunc.fixturenames:
        return
    both = metafunc.module.__name__.rpartition(".test_")[2] in ON_BOTH
    metafunc.parametrize("database", DATABASES if both else DATABASES[:1], indirect=True)


@pytest.fixture
def database(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of the gateway's catalog; empty: SQLite in its data directory."""
    if request.param == "sqlite":
        yield ""
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    url = server.database()
    yield url
    server.drop(url)


def gateway_settings(folder: Path, database: str = "") -> Settings:
    return Settings(
        data_dir=folder / "data",
        database_url=database,
        engine="fake",
        page_tokens=PAGE_TOKENS,
        context_tokens=2_048,
        request_bytes_max=50_000,
        request_seconds_max=1.0,
        hibernate_seconds_max=0.5,
        turn_seconds_max=3.0,
        lease_seconds=3.0,
        shutdown_seconds_max=2.0,
    )


@pytest.fixture
def settings(tmp_path: Path, database: str) -> Settings:
    return gateway_settings(tmp_path, database)


@pytest.fixture
async def gateway(settings: Settings) -> AsyncIterator[RunningGateway]:
    async with running_gateway(settings) as running:
        yield running


@pytest.fixture
async def client(gateway: RunningGateway) -> AsyncIterator[Client]:
    async with await gateway.client("acme") as made:
        yield made


def check_error(response: httpx2.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"].startswith("req_")
    error: dict[str, Any] = body["error"]
    assert error["message"]
    return error


async def until(condition: Callable[[], bool], seconds: float = 3.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def until_async(condition: Callable[[], Awaitable[bool]], seconds: float = 3.0) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.01)


async def settled(client: Client, session_id: str) -> dict[str, Any]:
    """The session once its pages are durable: from then on it does not change by itself."""

    async def durable() -> bool:
        shown = await client.get(session_id)
        return bool(shown["durable_position"] == shown["pages"] * PAGE_TOKENS)

    await until_async(durable)
    return await client.get(session_id)
