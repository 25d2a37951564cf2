"""One history of migrations for both databases: up and down on data, and beside gateways."""

from __future__ import annotations

import ast
import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import JSON, Connection, Integer, LargeBinary, MetaData, insert, select, text

from agentmem.catalog import Catalog, DatabaseOptions, migrate, migrating, schema_state
from agentmem.catalog import admin_tables as _admin_tables  # noqa: F401 - known to the metadata
from agentmem.catalog import plantables as _plantables  # noqa: F401 - known to the metadata
from agentmem.catalog.migrating import MIGRATIONS
from agentmem.catalog.tables import metadata
from agentmem.config import Settings
from agentmem.errors import ConfigurationInvalid
from tests.unit.catalog.conftest import alembic, on_postgresql, on_sqlite

T = TypeVar("T")
Rows = dict[str, list[dict[str, Any]]]

SCRIPTS = ScriptDirectory(str(MIGRATIONS))
# Oldest first.
REVISIONS = [script.revision for script in SCRIPTS.walk_revisions()][::-1]
ROOT = Path(__file__).resolve().parents[3]


async def sync(catalog: Catalog, work: Callable[[Connection], T]) -> T:
    async with catalog._engine.begin() as connection:
        return await connection.run_sync(work)


def reflected(connection: Connection) -> MetaData:
    found = MetaData()
    found.reflect(connection)
    found.remove(found.tables["alembic_version"])
    return found


def fill(connection: Connection) -> None:
    """Two rows in every table, with a value in every column."""
    number, ids = 100, dict[tuple[str, str], list[Any]]()
    for table in reflected(connection).sorted_tables:
        for row in range(2):
            values: dict[str, Any] = {}
            for column in table.columns:
                number += 1
                (*_, key) = (None, *column.foreign_keys)
                if key is not None:
                    known = ids.get((key.column.table.name, key.column.name), [])
                    # A turn's parent is in its own table: the first has none.
                    values[column.name] = known[min(row, len(known) - 1)] if known else None
                elif isinstance(column.type, JSON):
                    values[column.name] = {"number": number}
                elif isinstance(column.type, LargeBinary):
                    values[column.name] = number.to_bytes(16)
                elif isinstance(column.type, Integer):
                    values[column.name] = number
                else:
                    length = getattr(column.type, "length", None) or 40
                    values[column.name] = f"row_{number:026}"[-length:]
                ids.setdefault((table.name, column.name), []).append(values[column.name])
            connection.execute(insert(table), values)


def dump(connection: Connection) -> Rows:
    return {
        table.name: sorted(
            ({**row} for row in connection.execute(select(table)).mappings()), key=repr
        )
        for table in reflected(connection).sorted_tables
    }


def check_kept(before: Rows, after: Rows) -> int:
    """What both schemas have is the same in both. Returns how many values were compared."""
    compared = 0
    for table in before.keys() & after.keys():
        assert len(before[table]) == len(after[table]), table
        if not before[table]:
            continue
        columns = before[table][0].keys() & after[table][0].keys()
        one, other = (
            sorted(({name: row[name] for name in columns} for row in rows), key=repr)
            for rows in (before[table], after[table])
        )
        assert one == other, table
        compared += len(columns) * len(one)
    return compared


def drift(connection: Connection) -> object:
    return compare_metadata(MigrationContext.configure(connection), metadata)


async def test_no_drift_against_the_tables(catalog: Catalog) -> None:
    assert await sync(catalog, drift) == []


async def test_down_on_data_step_by_step_and_up_again(catalog: Catalog) -> None:
    await sync(catalog, fill)
    for revision in REVISIONS[-2::-1]:
        before = await sync(catalog, dump)
        await alembic(catalog, command.downgrade, revision)
        assert check_kept(before, await sync(catalog, dump)) > 0
    await alembic(catalog, command.downgrade, "base")
    assert await sync(catalog, dump) == {}
    await alembic(catalog, command.upgrade, "head")
    await catalog.check_schema()
    assert await sync(catalog, drift) == []
    await sync(catalog, fill)


async def test_up_on_data_from_the_first(catalog: Catalog) -> None:
    await alembic(catalog, command.downgrade, REVISIONS[0])
    await sync(catalog, fill)
    for revision in REVISIONS[1:]:
        before = await sync(catalog, dump)
        await alembic(catalog, command.upgrade, revision)
        # Sessions get their term, and nothing else of what was there changes.
        assert check_kept(before, await sync(catalog, dump)) > 0
    await catalog.check_schema()
    async with catalog.reading() as tx:
        (first, _) = await tx.tenants.list()
        sessions = await tx.sessions.list(first.id, after=None, limit=5)
    assert [one.expires_at for one in sessions] == [
        one.updated_at + one.log_retention_seconds * 1_000_000 for one in sessions
    ]


async def test_several_at_once_and_again(empty_url: str) -> None:
    revisions = await asyncio.gather(*(migrate(empty_url) for _ in range(4)))
    assert set(revisions) == {REVISIONS[-1]}
    assert await migrate(empty_url) == revisions[0]


async def test_what_fails_leaves_nothing_and_can_be_tried_again(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Operations.create_index

    def fail_late(self: Operations, name: str, table: str, *args: object, **kw: object) -> None:
        if table == "sessions":
            raise RuntimeError("planted")
        real(self, name, table, *args, **kw)  # type: ignore[arg-type]

    monkeypatch.setattr(Operations, "create_index", fail_late)
    with pytest.raises(RuntimeError, match="planted"):
        await migrate(empty_url)
    monkeypatch.undo()
    assert (await schema_state(empty_url)).current is None
    if empty_url.startswith("sqlite"):
        connection = sqlite3.connect(empty_url.removeprefix("sqlite+aiosqlite:///"))
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []
        connection.close()
    await migrate(empty_url)


async def test_check_says_what_is_there(empty_url: str) -> None:
    if empty_url.startswith("sqlite"):
        with pytest.raises(ConfigurationInvalid, match="does not exist"):
            await schema_state(empty_url)
    else:
        assert str(await schema_state(empty_url)) == "has no schema yet"
    await migrate(empty_url)
    state = await schema_state(empty_url)
    assert state.is_current
    assert "this version's" in str(state)
    catalog = Catalog(empty_url)
    await alembic(catalog, command.downgrade, REVISIONS[-2])
    await catalog.aclose()
    assert f"{REVISIONS[-2]}, older than {REVISIONS[-1]}" in str(await schema_state(empty_url))


async def test_the_command_checks_and_changes_nothing(empty_url: str, tmp_path: Path) -> None:
    def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "AGENTMEM_DATABASE_URL": empty_url,
            "AGENTMEM_DATA_DIR": str(tmp_path / "data"),
            "PYTHONPATH": str(ROOT),
        }
        return subprocess.run(
            [sys.executable, "-m", program, *arguments],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    # The plain command and ours are one history.
    assert (done := run("alembic", "upgrade", "head")).returncode == 0, done.stderr
    checked = run("agentmem", "migrate", "--check")
    assert (checked.returncode, REVISIONS[-1] in checked.stdout) == (0, True), checked.stderr
    assert (done := run("alembic", "downgrade", "base")).returncode == 0, done.stderr
    checked = run("agentmem", "migrate", "--check")
    assert (checked.returncode, "no schema yet" in checked.stdout) == (1, True), checked.stderr
    assert (await schema_state(empty_url)).current is None
    assert run("agentmem", "migrate").returncode == 0
    assert run("agentmem", "migrate", "--check").returncode == 0


@on_postgresql
class TestOnline:
    async def test_no_table_is_rewritten(self, catalog: Catalog) -> None:
        def files(connection: Connection) -> dict[str, int]:
            query = text(
                "SELECT relname, pg_relation_filenode(oid) FROM pg_class"
                " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
            )
            return {row[0]: row[1] for row in connection.execute(query)}

        await alembic(catalog, command.downgrade, REVISIONS[0])
        await sync(catalog, fill)
        before = await sync(catalog, files)
        await alembic(catalog, command.upgrade, "head")
        after = await sync(catalog, files)
        assert {name: after[name] for name in before} == before

    async def test_a_lock_that_is_not_to_be_had_is_given_up_and_tried_again(
        self, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        impatient = DatabaseOptions(1, 0, 0.1, "agentmem migrate")
        monkeypatch.setattr(migrating, "_MIGRATING", impatient)
        monkeypatch.setattr(migrating, "_PAUSE_SECONDS", 0.1)
        await alembic(catalog, command.downgrade, REVISIONS[1])
        async with catalog._engine.begin() as connection:
            # What a turn that takes its time holds.
            await connection.execute(text("LOCK TABLE sessions IN ROW EXCLUSIVE MODE"))
            migration = asyncio.create_task(migrate(catalog.url))
            await asyncio.sleep(1.0)
            assert not migration.done()
            # Nobody queues behind it for longer than its patience.
            async with asyncio.timeout(3), catalog.transaction() as tx:
                assert await tx.lapsing.expired(1, limit=1) == []
        assert await migration == REVISIONS[-1]

    async def test_an_index_that_was_not_finished_is_made_anew(self, catalog: Catalog) -> None:
        name = "ix_sessions_project_id_created_at"
        await alembic(catalog, command.downgrade, "0004")
        async with catalog._engine.begin() as connection:
            await connection.execute(text(f"CREATE INDEX {name} ON sessions (id)"))
        await alembic(catalog, command.upgrade, "head")
        assert await sync(catalog, drift) == []


@on_sqlite
async def test_a_database_without_its_folder(url: str, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "deep" / "data")
    assert await migrate(settings.catalog_url) == REVISIONS[-1]


# Before these, no version ran on PostgreSQL: there is no table to hold up.
_BEFORE_POSTGRESQL = {"0001", "0002"}
_REFUSED = {
    "alter_column": "changes a column: add a new one, and let the old one be",
    "create_foreign_key": "reads the whole table under a lock",
    "create_unique_constraint": "reads the whole table under a lock: make a unique index",
    "create_check_constraint": "reads the whole table under a lock",
    "batch_alter_table": "copies the table on SQLite",
    "rename_table": "breaks the gateways that still run",
}


def offences(source: str) -> Iterator[str]:
    """What a migration does that others would have to wait for. See `migrations/online.py`."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    named = [
        (call, call.func.attr)
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "op"
    ]
    new = {
        call.args[0].value
        for call, name in named
        if name == "create_table" and isinstance(call.args[0], ast.Constant)
    }
    if "online." in source and named:
        yield "online beside op: an index has a revision of its own"
    for call, name in named:
        where = f"line {call.lineno}: op.{name}"
        if name in _REFUSED:
            yield f"{where} {_REFUSED[name]}"
        if name == "create_index":
            table = call.args[1]
            if not (isinstance(table, ast.Constant) and table.value in new):
                yield f"{where} on a table that is there: use online.create_index"
        if name == "execute" and isinstance(call.args[0], ast.Constant | ast.JoinedStr):
            words = ast.unparse(call.args[0]).strip("f'\"").split()
            if words[0].upper() in {"UPDATE", "DELETE", "ALTER", "LOCK", "CLUSTER", "VACUUM"}:
                yield f"{where} {words[0]} rewrites or locks what is there"
    for call in calls:
        given = {one.arg: one.value for one in call.keywords}
        nullable = given.get("nullable")
        fixed = isinstance(nullable, ast.Constant) and nullable.value is False
        inside = any(call in ast.walk(other) for other, name in named if name == "create_table")
        if (
            fixed
            and not inside
            and "server_default" not in given
            and ast.unparse(call.func).endswith("Column")
        ):
            yield f"line {call.lineno}: a new column without a default is not nullable"


@pytest.mark.parametrize("script", sorted((MIGRATIONS / "versions").glob("[0-9]*.py")))
def test_nothing_that_others_would_wait_for(script: Path) -> None:
    if SCRIPTS.get_revision(script.name.split("_")[3]).revision in _BEFORE_POSTGRESQL:
        return
    assert list(offences(script.read_text())) == []


@pytest.mark.parametrize(
    "line",
    [
        'op.create_index("ix", "turns", ["id"])',
        'op.alter_column("turns", "id", type_=sa.Text())',
        'op.add_column("turns", sa.Column("a", sa.Integer(), nullable=False))',
        'op.execute("UPDATE turns SET keep = 0")',
        'op.create_foreign_key("fk", "turns", "sessions", ["a"], ["id"])',
        'op.drop_column("turns", "a"); online.create_index("ix", "turns", ["id"])',
    ],
)
def test_the_rule_finds(line: str) -> None:
    assert len(list(offences(line))) == 1
    allowed = 'op.create_table("new", sa.Column("a", sa.Integer(), nullable=False))\n'
    assert list(offences(allowed + 'op.create_index("ix", "new", ["a"])')) == []
