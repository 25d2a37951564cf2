"""The catalog: a database, its transactions, its migrations. Repositories are in modules beside.

`async with catalog.transaction() as tx:` commits at the end or rolls back on any error; the
repositories on `tx` never commit. `catalog.reading()` is for statements that write nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, event, make_url, text
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from agentmem.catalog.audit import Audit
from agentmem.catalog.contexts import Contexts
from agentmem.catalog.counters import Counters
from agentmem.catalog.items import Items
from agentmem.catalog.keys import Keys
from agentmem.catalog.lapsing import Lapsing
from agentmem.catalog.leases import Leases
from agentmem.catalog.plans import Plans
from agentmem.catalog.projects import Projects
from agentmem.catalog.responses import Responses
from agentmem.catalog.retries import Retries
from agentmem.catalog.sessions import Sessions
from agentmem.catalog.slots import Slots
from agentmem.catalog.sqlite import SqliteConnection
from agentmem.catalog.tenants import Tenants
from agentmem.catalog.turns import Turns
from agentmem.catalog.unclaims import Unclaims
from agentmem.catalog.usage import UsageEvents
from agentmem.catalog.workers import Workers
from agentmem.errors import CatalogUnavailable, ConfigurationInvalid

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_MS = 30_000
_READ = {"agentmem_begin": "BEGIN"}
_ADVISORY_LOCK = 0x61676D656D  # "agmem": one migration at a time on PostgreSQL


class Transaction:
    """One repository per noun, all on one connection and in one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.tenants = Tenants(connection)
        self.projects = Projects(connection)
        self.keys = Keys(connection)
        self.sessions = Sessions(connection)
        self.turns = Turns(connection)
        self.leases = Leases(connection)
        self.workers = Workers(connection)
        self.unclaims = Unclaims(connection)
        self.responses = Responses(connection)
        self.items = Items(connection)
        self.usage_events = UsageEvents(connection)
        self.retries = Retries(connection)
        self.contexts = Contexts(connection)
        self.lapsing = Lapsing(connection)
        self.plans = Plans(connection)
        self.counters = Counters(connection)
        self.slots = Slots(connection)
        self.audit = Audit(connection)


class Catalog:
    """Opens a database by its SQLAlchemy URL. Close it with `aclose`.

    `one_writer`: what a transaction read, no other can change before it ends.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._engine = _create_engine(url, synchronous="FULL")
        self._is_sqlite = self._engine.dialect.name == "sqlite"
        # Lease writes need no fsync on SQLite: a power failure that loses one ends its owner too.
        self._volatile = (
            _create_engine(url, synchronous="NORMAL", pool_size=1)
            if self._is_sqlite
            else self._engine
        )
        self.one_writer = self._is_sqlite
        # SQLite has one writer. Waiting in a queue of our own is fair and wakes up at once, where
        # its busy handler polls; other processes are waited for by the busy timeout.
        self._writer = asyncio.Lock()

    @asynccontextmanager
    async def transaction(self, *, durable: bool = True) -> AsyncIterator[Transaction]:
        """A writing transaction. With `durable=False` a power failure may undo it (SQLite)."""
        engine = self._engine if durable else self._volatile
        queue = self._writer if self._is_sqlite else contextlib.nullcontext()
        async with queue, _translated(), engine.begin() as connection:
            yield Transaction(connection)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Transaction]:
        """A consistent view; on SQLite it neither waits for writers nor makes them wait."""
        async with _translated(), self._engine.connect() as connection:
            configured = await connection.execution_options(**_READ)
            async with configured.begin():
                yield Transaction(configured)

    async def check_schema(self) -> None:
        """Raises ConfigurationInvalid unless the schema is the one that this version knows."""
        database = make_url(self.url).database
        if self._is_sqlite and database and not await asyncio.to_thread(Path(database).is_file):
            # Connecting would make an empty file, or leave a thread behind where it cannot.
            raise ConfigurationInvalid(
                f"The catalog {_shown(self.url)} does not exist.",
                hint="Run `agentmem migrate`, or check the data directory.",
            )
        head = ScriptDirectory(str(MIGRATIONS)).get_current_head()
        try:
            async with self._engine.connect() as connection:
                configured = await connection.execution_options(**_READ)
                current = await configured.run_sync(_current_revision)
        except DBAPIError as error:
            raise ConfigurationInvalid(
                f"The catalog {_shown(self.url)} cannot be opened: {error.orig}.",
                hint="Check the URL, the folder and its permissions.",
            ) from error
        if current == head:
            return
        if current is None:
            what = "has no schema yet"
        elif current in _known_revisions():
            what = f"has schema {current}, older than {head}"
        else:
            what = f"has schema {current}, which this version does not know (its own is {head})"
        raise ConfigurationInvalid(
            f"The catalog {_shown(self.url)} {what}.",
            hint="Run `agentmem migrate`, or start the version that wrote it.",
        )

    async def ping(self) -> None:
        """Raises when the database does not answer."""
        async with _translated(), self._engine.connect() as connection:
            await (await connection.execution_options(**_READ)).execute(text("SELECT 1"))

    async def aclose(self) -> None:
        """Closes all connections."""
        await self._engine.dispose()
        if self._volatile is not self._engine:
            await self._volatile.dispose()


@asynccontextmanager
async def _translated() -> AsyncIterator[None]:
    """A database that fails is an operating error, told apart from a wrong statement."""
    try:
        yield
    except (IntegrityError, ProgrammingError, DataError):
        raise
    except (DBAPIError, PoolTimeoutError) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        raise CatalogUnavailable(f"The catalog is not available: {cause}.") from error


async def migrate(url: str) -> str:
    """Brings the schema to the newest revision; several processes may call it at once.

    Returns the revision. On SQLite the database file's folder is made when missing.
    """
    database = make_url(url).database
    if url.startswith("sqlite") and database:
        await asyncio.to_thread(Path(database).parent.mkdir, parents=True, exist_ok=True)
    engine = _create_engine(url, synchronous="FULL")
    try:
        async with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                await connection.execute(
                    text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _ADVISORY_LOCK}
                )
            else:
                # The transaction, hence SQLite's lock, begins with its first statement.
                await connection.execute(text("SELECT 1"))
            return await connection.run_sync(_upgrade)
    finally:
        await engine.dispose()


def alembic_config(connection: Connection) -> Config:
    """Alembic's configuration without a file: the scripts lie inside the package."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    return config


def _upgrade(connection: Connection) -> str:
    command.upgrade(alembic_config(connection), "head")
    revision = _current_revision(connection)
    assert revision is not None, "a migration leaves a revision"
    return revision


def _current_revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _known_revisions() -> set[str]:
    return {script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions()}


def _shown(url: str) -> str:
    return make_url(url).render_as_string(hide_password=True)


def _create_engine(url: str, *, synchronous: str, pool_size: int = 8) -> AsyncEngine:
    sqlite = url.startswith("sqlite")
    engine = create_async_engine(
        url,
        connect_args={"async_creator_fn": SqliteConnection.open} if sqlite else {},
        pool_size=pool_size,
        max_overflow=0,
        # The connection used last has the pages of the last transaction in its cache.
        pool_use_lifo=True,
        pool_timeout=60,
        # Errors are logged, and parameters are content.
        hide_parameters=True,
        # Every transaction here ends by itself; another rollback would only cost time.
        pool_reset_on_return=None if sqlite else "rollback",
    )
    if engine.dialect.name == "sqlite":
        _prepare_sqlite(engine, synchronous)
    return engine


def _prepare_sqlite(engine: AsyncEngine, synchronous: str) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        # We begin transactions ourselves: the driver would begin them late and deferred, and a
        # deferred one that turns into a writer fails with "database is locked" without waiting.
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute(f"PRAGMA synchronous={synchronous}")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        connection.exec_driver_sql(options.get("agentmem_begin", "BEGIN IMMEDIATE"))
