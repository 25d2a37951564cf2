from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import text

from agentmem.catalog import Catalog
from agentmem.catalog.engines import shown
from agentmem.core import TenantId
from agentmem.errors import CatalogUnavailable, ConfigurationInvalid
from tests.unit.catalog.conftest import alembic, on_sqlite


class TestCheckSchema:
    @on_sqlite
    async def test_no_file(self, url: str) -> None:
        catalog = Catalog(url)
        with pytest.raises(ConfigurationInvalid, match="does not exist") as caught:
            await catalog.check_schema()
        assert "agentmem migrate" in str(caught.value.hint)
        assert not Path(url.removeprefix("sqlite+aiosqlite:///")).exists()
        await catalog.aclose()

    async def test_no_schema(self, catalog: Catalog) -> None:
        await alembic(catalog, command.downgrade, "base")
        with pytest.raises(ConfigurationInvalid, match="no schema yet") as caught:
            await catalog.check_schema()
        assert "agentmem migrate" in str(caught.value.hint)

    async def test_a_newer_one(self, catalog: Catalog) -> None:
        async with catalog._engine.begin() as connection:
            await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(ConfigurationInvalid, match="9999, which this version does not know"):
            await catalog.check_schema()

    @on_sqlite
    async def test_a_file_that_is_no_database(self, url: str) -> None:
        Path(url.removeprefix("sqlite+aiosqlite:///")).write_bytes(b"no database at all" * 100)
        catalog = Catalog(url)
        with pytest.raises(ConfigurationInvalid, match="cannot be opened"):
            await catalog.check_schema()
        await catalog.aclose()

    def test_passwords_are_not_shown(self) -> None:
        assert "secret" not in shown("postgresql+psycopg://u:secret@h/db")


class TestTransaction:
    async def test_an_error_undoes_everything(self, catalog: Catalog) -> None:
        async def fail() -> None:
            async with catalog.transaction() as tx:
                await tx.tenants.create("gone")
                raise RuntimeError

        with pytest.raises(RuntimeError):
            await fail()
        async with catalog.reading() as tx:
            assert await tx.tenants.find("gone") is None

    @on_sqlite
    async def test_pragmas(self, catalog: Catalog) -> None:
        async with catalog._engine.connect() as connection:
            for pragma, value in (
                ("journal_mode", "wal"),
                ("synchronous", 2),
                ("foreign_keys", 1),
                ("busy_timeout", 30_000),
            ):
                found = (await connection.execute(text(f"PRAGMA {pragma}"))).scalar_one()
                assert found == value, pragma

    async def test_writers_wait_for_each_other(self, catalog: Catalog, tenant: TenantId) -> None:
        """Read, then write, fifty at once: deferred transactions would fail as locked."""

        async def add(number: int) -> None:
            async with catalog.transaction(durable=number % 2 == 0) as tx:
                await tx.keys.list(tenant)
                await asyncio.sleep(0)
                await tx.keys.create(tenant, name="", prefix=f"am_{number}", key_hash=bytes(32))

        await asyncio.gather(*(add(number) for number in range(50)))
        async with catalog.reading() as tx:
            assert len(await tx.keys.list(tenant)) == 50

    @on_sqlite
    async def test_other_processes_are_waited_for(self, catalog: Catalog, url: str) -> None:
        path = url.removeprefix("sqlite+aiosqlite:///")
        program = (
            "import sqlite3, sys, time; c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
            "c.execute('BEGIN IMMEDIATE'); print('locked', flush=True); time.sleep(0.5)\n"
            "c.execute('COMMIT'); c.close()"
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, path, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        await process.stdout.readline()
        async with catalog.transaction() as tx:
            await tx.tenants.create("patient")
        await process.wait()

    async def test_reading_does_not_wait_for_a_writer(self, catalog: Catalog) -> None:
        async with catalog.transaction() as tx:
            await tx.tenants.create("unseen")
            async with asyncio.timeout(5), catalog.reading() as other:
                assert await other.tenants.find("unseen") is None

    @on_sqlite
    async def test_a_full_disk_is_unavailability_and_keeps_nothing(
        self, catalog: Catalog, tmp_path: Path
    ) -> None:
        async with catalog._engine.connect() as connection:
            pages = (await connection.execute(text("PRAGMA page_count"))).scalar_one()
            await connection.execute(text(f"PRAGMA max_page_count={pages + 2}"))

        async def fill() -> None:
            async with catalog.transaction() as tx:
                for number in range(1_000):
                    await tx.tenants.create(f"{number} {'x' * 150}")

        with pytest.raises(CatalogUnavailable, match="full"):
            await fill()
        async with catalog.reading() as tx:
            assert await tx.tenants.list() == []
