"""The schema: which revision a database has, and bringing it to the one that this version knows.

On SQLite all migrations are one transaction. On PostgreSQL each is one of its own, since an index
on a table in use is built outside of any (`migrations/online.py`); a lock that is not to be had
soon is given up, so that nobody queues behind it, and the migration is tried again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from agentmem.catalog.engines import (
    DatabaseOptions,
    create_postgresql_engine,
    create_sqlite_engine,
    database_url,
    shown,
)
from agentmem.errors import ConfigurationInvalid

MIGRATIONS = Path(__file__).parent / "migrations"
READ = {"agentmem_begin": "BEGIN"}
_ADVISORY_LOCK = 0x61676D656D  # "agmem": one migration at a time on PostgreSQL
_LOCK_NOT_AVAILABLE = "55P03"
_LOCK_SECONDS = 3.0
_ATTEMPTS_MAX = 20
_PAUSE_SECONDS = 1.0
_POLL_SECONDS = 0.1
# An index over a large table may take hours.
_MIGRATING = DatabaseOptions(
    pool_size=1,
    statement_seconds_max=0,
    lock_seconds_max=_LOCK_SECONDS,
    application_name="agentmem migrate",
)


@dataclass(frozen=True, slots=True)
class SchemaState:
    """A database's revision (None: it has no schema), this version's, and whether that is one
    which this version knows how to migrate from."""

    current: str | None
    head: str
    known: bool

    @property
    def is_current(self) -> bool:
        """Whether there is nothing to do."""
        return self.current == self.head

    def __str__(self) -> str:
        if self.is_current:
            return f"has schema {self.head}, which is this version's"
        if self.current is None:
            return "has no schema yet"
        if self.known:
            return f"has schema {self.current}, older than {self.head}"
        return (
            f"has schema {self.current}, which this version does not know (its own is {self.head})"
        )


async def migrate(url: str) -> str:
    """Brings the schema to the newest revision; several processes may call it at once.

    Returns the revision. On SQLite the database file's folder is made when missing. Raises
    ConfigurationInvalid for a URL that cannot be used, a database that does not let us in, or one
    whose tables stay locked by others.
    """
    address = database_url(url)
    if address.drivername.startswith("sqlite"):
        if address.database:
            folder = Path(address.database).parent
            await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        return await _migrate_sqlite(create_sqlite_engine(address, synchronous="FULL"))
    async with disposing(create_postgresql_engine(address, _MIGRATING)) as engine:
        for attempt in range(_ATTEMPTS_MAX):
            try:
                return await _migrate_postgresql(engine)
            except DBAPIError as error:
                state = getattr(error.orig, "sqlstate", None)
                if state is None:
                    raise unreachable(url, error) from error
                if state != _LOCK_NOT_AVAILABLE or attempt == _ATTEMPTS_MAX - 1:
                    raise
                await asyncio.sleep(_PAUSE_SECONDS)
    raise AssertionError("the last attempt returns or raises")


async def schema_state(url: str) -> SchemaState:
    """What `agentmem migrate --check` says; changes nothing.

    Raises ConfigurationInvalid for a database that is not there or cannot be opened.
    """
    address = database_url(url)
    if address.drivername.startswith("sqlite"):
        engine = create_sqlite_engine(address, synchronous="FULL")
    else:
        engine = create_postgresql_engine(address, _MIGRATING)
    async with disposing(engine):
        return await schema_state_of(engine, url)


async def schema_state_of(engine: AsyncEngine, url: str) -> SchemaState:
    """As `schema_state`, on an engine that is there already."""
    database = database_url(url).database
    sqlite = engine.dialect.name == "sqlite"
    if sqlite and database and not await asyncio.to_thread(Path(database).is_file):
        # Connecting would make an empty file, or leave a thread behind where it cannot.
        raise ConfigurationInvalid(
            f"The catalog {shown(url)} does not exist.",
            hint="Run `agentmem migrate`, or check the data directory.",
        )
    head = ScriptDirectory(str(MIGRATIONS)).get_current_head()
    assert head is not None, "the package has migrations"
    try:
        async with engine.connect() as connection:
            configured = await connection.execution_options(**READ)
            current = await configured.run_sync(_current_revision)
    except DBAPIError as error:
        raise unreachable(url, error) from error
    return SchemaState(current, head, current in _known_revisions())


def unreachable(url: str, error: DBAPIError) -> ConfigurationInvalid:
    """What a database that cannot be opened is told as."""
    sqlite = url.startswith("sqlite")
    reason = " ".join(str(error.orig).split()).rstrip(".")
    return ConfigurationInvalid(
        f"The catalog {shown(url)} cannot be opened: {reason}.",
        hint="Check the URL, the folder and its permissions."
        if sqlite
        else "Check the URL, and that PostgreSQL runs and lets this user in.",
    )


def alembic_config(connection: Connection) -> Config:
    """Alembic's configuration without a file: the scripts lie inside the package."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    return config


async def _migrate_sqlite(engine: AsyncEngine) -> str:
    async with disposing(engine), engine.begin() as connection:
        # The transaction, hence SQLite's lock, begins with its first statement.
        await connection.execute(text("SELECT 1"))
        return await connection.run_sync(_upgrade)


async def _migrate_postgresql(engine: AsyncEngine) -> str:
    async with engine.connect() as connection, _alone(connection):
        return await connection.run_sync(_upgrade)


@asynccontextmanager
async def _alone(connection: AsyncConnection) -> AsyncIterator[None]:
    """One migration at a time. The lock is the connection's, as a migration has several
    transactions; a process that dies lets go of it.

    It is asked for again and again: whoever waited for it inside of a statement would keep an
    index from being built, which waits for every statement that began before.
    """
    lock = {"lock": _ADVISORY_LOCK}
    while not await connection.scalar(text("SELECT pg_try_advisory_lock(:lock)"), lock):
        await connection.rollback()
        await asyncio.sleep(_POLL_SECONDS)
    await connection.commit()
    try:
        yield
    except BaseException:
        # The lock goes with the connection, whatever state this one is in.
        await connection.invalidate()
        raise
    await connection.execute(text("SELECT pg_advisory_unlock(:lock)"), lock)
    await connection.commit()


@asynccontextmanager
async def disposing(engine: AsyncEngine) -> AsyncIterator[AsyncEngine]:
    """Closes an engine's connections at the end."""
    try:
        yield engine
    finally:
        await engine.dispose()


def _upgrade(connection: Connection) -> str:
    command.upgrade(alembic_config(connection), "head")
    revision = _current_revision(connection)
    assert revision is not None, "a migration leaves a revision"
    return revision


def _current_revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _known_revisions() -> set[str]:
    return {script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions()}
