"""A gateway whose PostgreSQL restarts, ends its connections, or answers too late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest

from agentmem.catalog import Catalog, DatabaseOptions
from agentmem.errors import CatalogUnavailable
from agentmem.testing.gateway import Client, RunningGateway, running_gateway
from agentmem.testing.postgres import PostgresServer
from tests.integration.gateway.conftest import check_error, gateway_settings, until_async

SESSIONS = "/v1/sessions"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """One of its own: it is stopped."""
    made = PostgresServer(durable=True)
    try:
        made.start()
        yield made
    finally:
        made.remove()


@pytest.fixture
async def gateway(server: PostgresServer, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    # The template is migrated by an event loop of its own.
    url = await asyncio.to_thread(server.database)
    async with running_gateway(gateway_settings(tmp_path, url)) as running:
        yield running


@pytest.fixture
async def client(gateway: RunningGateway) -> AsyncIterator[Client]:
    async with await gateway.client("acme") as made:
        yield made


async def test_a_restart_is_a_503_in_the_meantime(client: Client, server: PostgresServer) -> None:
    session = await client.create()
    await client.turn(session, "hello")
    server.stop(immediately=True)
    check_error(await client.http.get(f"{SESSIONS}/{session}"), 503)
    response = await client.post_turn(session, "hello")
    check_error(response, 503)
    assert "retry-after" in response.headers
    ready = await client.http.get("/readyz")
    assert ready.status_code == 503
    assert ready.json()["parts"]["catalog"] != "ready"
    server.start()

    async def answers() -> bool:
        return (await client.http.get(f"{SESSIONS}/{session}")).status_code == 200

    await until_async(answers, 10.0)
    assert (await client.turn(session, "again"))["number"] == 2


async def test_connections_that_were_cut_are_replaced_unnoticed(
    client: Client, gateway: RunningGateway, server: PostgresServer
) -> None:
    session = await client.create()
    for number in range(1, 4):
        answers = await asyncio.gather(*(client.get(session) for _ in range(5)))
        assert {answer["turns"] for answer in answers} == {number - 1}
        assert server.cut_connections() > 0
        assert (await client.turn(session, "hello"))["number"] == number


async def test_cut_in_the_middle_is_an_error_and_nothing_is_kept(
    gateway: RunningGateway, server: PostgresServer
) -> None:
    async def interrupted() -> None:
        async with gateway.catalog.transaction() as tx:
            await tx.tenants.create("gone")
            server.cut_connections()
            await tx.tenants.create("too")

    with pytest.raises(CatalogUnavailable) as caught:
        await interrupted()
    assert not caught.value.uncertain
    async with gateway.catalog.reading() as tx:
        assert await tx.tenants.find("gone") is None


async def test_a_lost_answer_to_commit_is_looked_up(
    gateway: RunningGateway, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server commits, the connection breaks before it can say so."""
    real, mine = psycopg.AsyncConnection.commit, asyncio.current_task()

    async def broken(connection: psycopg.AsyncConnection) -> None:
        await real(connection)
        if asyncio.current_task() is not mine:
            return
        monkeypatch.undo()
        await connection.close()
        raise psycopg.OperationalError("consuming input failed: planted")

    async def there(tx: object) -> bool:
        return await tx.tenants.find("kept") is not None  # type: ignore[attr-defined]

    monkeypatch.setattr(psycopg.AsyncConnection, "commit", broken)
    made = await gateway.catalog.attempt(lambda tx: tx.tenants.create("kept"), kept=there)
    assert made.name == "kept"
    monkeypatch.setattr(psycopg.AsyncConnection, "commit", broken)
    with pytest.raises(CatalogUnavailable) as caught:
        await gateway.catalog.attempt(lambda tx: tx.tenants.create("kept, too"))
    assert caught.value.uncertain


async def test_statements_and_waits_end_in_time(gateway: RunningGateway) -> None:
    options = DatabaseOptions(
        pool_size=2, statement_seconds_max=0.2, lock_seconds_max=0.1, application_name="impatient"
    )
    catalog = Catalog(gateway.catalog.url, options)
    try:
        async with catalog.reading() as tx:
            row = await tx.tenants._connection.exec_driver_sql("SHOW application_name")
            assert row.scalar_one() == "impatient"
        with pytest.raises(CatalogUnavailable, match="statement timeout"):
            async with catalog.reading() as tx:
                await tx.tenants._connection.exec_driver_sql("SELECT pg_sleep(30)")
        async with gateway.catalog.transaction() as tx:
            tenant = await tx.tenants.create("locked")
        async with gateway.catalog.transaction() as tx:
            await tx.tenants.set_models(tenant.id, default_model="m", model_aliases=None)
            with pytest.raises(CatalogUnavailable, match="lock timeout"):
                async with catalog.transaction() as other:
                    await other.tenants.set_models(tenant.id, default_model="n", model_aliases=None)
    finally:
        await catalog.aclose()
