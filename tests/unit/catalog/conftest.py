"""A catalog in a temporary folder, and rows to put in it."""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.config import Config

from agentmem.catalog import Catalog, migrate
from agentmem.catalog.ids import new_id, now_us
from agentmem.catalog.migrating import alembic_config
from agentmem.catalog.records import Session, Turn, Worker
from agentmem.core import Fingerprint, SessionId, TenantId, TurnId, WorkerId
from agentmem.testing.postgres import PostgresServer
from tests.conftest import DATABASES

on_sqlite = pytest.mark.parametrize("url", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize("url", ["postgresql"], indirect=True)


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A catalog's URL: on SQLite there is no file yet, on PostgreSQL the schema is there."""
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path / 'catalog.db'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    made = server.database()
    yield made
    server.drop(made)


@pytest.fixture
async def catalog(url: str) -> AsyncIterator[Catalog]:
    if url.startswith("sqlite"):
        await migrate(url)
    made = Catalog(url)
    yield made
    await made.aclose()


async def alembic(catalog: Catalog, command: Callable[[Config, str], Any], revision: str) -> None:
    """Runs a command of alembic's on a catalog."""
    async with catalog._engine.connect() as connection:
        await connection.run_sync(lambda c: command(alembic_config(c), revision))
        await connection.commit()


@pytest.fixture
async def tenant(catalog: Catalog) -> TenantId:
    async with catalog.transaction() as tx:
        return (await tx.tenants.create("acme")).id


def make_session(tenant_id: TenantId, **fields: Any) -> Session:
    now = now_us()
    values: dict[str, Any] = {
        "id": SessionId(new_id("ses")),
        "tenant_id": tenant_id,
        "model": "m",
        "metadata": {"k": "v"},
        "state": "active",
        "head_turn_id": None,
        "turns": 0,
        "tokens": 0,
        "durable_position": 0,
        "rebases": 0,
        "parent_session_id": None,
        "fork_turn": None,
        "kv_retention_seconds": 60,
        "log_retention_seconds": 600,
        "worker_id": None,
        "worker_generation": None,
        "fingerprint": None,
        "page_tokens": None,
        "created_at": now,
        "updated_at": now,
    }
    return Session(**{**values, **fields})


def make_turn(session: Session, parent: Turn | None, tokens: int = 4, **fields: Any) -> Turn:
    keep = parent.log_tokens if parent else 0
    values: dict[str, Any] = {
        "id": TurnId(new_id("turn")),
        "tenant_id": session.tenant_id,
        "session_id": session.id,
        "parent_turn_id": parent.id if parent else None,
        "number": parent.number + 1 if parent else 1,
        "keep": keep,
        "tokens": array("I", range(tokens)),
        "prompt_tokens": keep + tokens - 1,
        "log_tokens": keep + tokens,
        "rebased": False,
        "messages": [{"role": "user", "content": "é\n"}],
        "reply": {"role": "assistant", "content": "ok"},
        "finish_reason": "stop",
        "sampling": {"seed": None},
        "usage": {"prompt_tokens": 3},
        "logprobs": [-0.1, -2.5],
        "body_hash": "00",
        "created_at": now_us(),
    }
    return Turn(**{**values, **fields})


def make_worker(**fields: Any) -> Worker:
    values: dict[str, Any] = {
        "id": WorkerId("wkr_1"),
        "url": "http://w",
        "model": "m",
        "model_path": "/m",
        "fingerprint": Fingerprint(bytes(range(16)), {"dtype": "bf16"}),
        "page_tokens": 4,
        "context_tokens": 100,
        "kv_bytes_per_token": 10,
        "hbm_tokens": 100,
        "host_pool_tokens": 200,
        "node_socket": "/s",
        "state": "ready",
        "pid": 1,
    }
    return Worker(**{**values, **fields})
