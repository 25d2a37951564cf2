"""The catalog: a database, its transactions, its migrations. Repositories are in modules beside.

`async with catalog.transaction() as tx:` commits at the end or rolls back on any error; the
repositories on `tx` never commit. `catalog.reading()` is for statements that write nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from sqlalchemy import text
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection

from agentmem.catalog.attempts import Attempts
from agentmem.catalog.audit import Audit
from agentmem.catalog.contexts import Contexts
from agentmem.catalog.counters import Counters
from agentmem.catalog.engines import (
    DatabaseOptions,
    create_postgresql_engine,
    create_sqlite_engine,
    database_url,
    shown,
)
from agentmem.catalog.items import Items
from agentmem.catalog.keys import Keys
from agentmem.catalog.lapsing import Lapsing
from agentmem.catalog.leases import Leases
from agentmem.catalog.migrating import READ, migrate, schema_state_of
from agentmem.catalog.operators import Operators
from agentmem.catalog.plans import Plans
from agentmem.catalog.projects import Projects
from agentmem.catalog.responses import Responses
from agentmem.catalog.retries import Retries
from agentmem.catalog.sessions import Sessions
from agentmem.catalog.slots import Slots
from agentmem.catalog.tenants import Tenants
from agentmem.catalog.turns import Turns
from agentmem.catalog.unclaims import Unclaims
from agentmem.catalog.usage import UsageEvents
from agentmem.catalog.workers import Workers
from agentmem.errors import CatalogConflict, CatalogUnavailable, ConfigurationInvalid

__all__ = ["Catalog", "Transaction", "migrate"]

T = TypeVar("T")

# PostgreSQL ended a transaction in favour of another: serialization failure, deadlock.
_UNDONE = frozenset({"40001", "40P01"})
_FOREIGN_KEY_VIOLATION = "23503"
_ATTEMPTS_MAX = 5
_ATTEMPT_PAUSE_SECONDS = 0.02
_SETTLE_ATTEMPTS = 10
_SETTLE_PAUSE_SECONDS = 0.5


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
        self.operators = Operators(connection)
        self.attempts = Attempts(connection)


class Catalog:
    """Opens a database by its SQLAlchemy URL. Close it with `aclose`.

    `one_writer`: what a transaction read, no other can change before it ends. Where it is False
    (PostgreSQL, READ COMMITTED), the repositories lock the rows that they decide upon. Raises
    ConfigurationInvalid for a URL that cannot be used.
    """

    def __init__(self, url: str, options: DatabaseOptions | None = None) -> None:
        self.url = url
        address = database_url(url)
        self._is_sqlite = address.drivername.startswith("sqlite")
        if self._is_sqlite:
            self._engine = create_sqlite_engine(address, synchronous="FULL")
            # Lease writes need no fsync here: a power failure that loses one ends its owner too.
            self._volatile = create_sqlite_engine(address, synchronous="NORMAL", pool_size=1)
        else:
            # The server may die without its gateways: all is written durably.
            self._engine = create_postgresql_engine(address, options or DatabaseOptions())
            self._volatile = self._engine
        self._read = (
            READ
            if self._is_sqlite
            else {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        )
        self.one_writer = self._is_sqlite
        # SQLite has one writer. Waiting in a queue of our own is fair and wakes up at once, where
        # its busy handler polls; other processes are waited for by the busy timeout.
        self._writer = asyncio.Lock()

    @asynccontextmanager
    async def transaction(self, *, durable: bool = True) -> AsyncIterator[Transaction]:
        """A writing transaction. With `durable=False` a power failure may undo it (SQLite).

        Raises CatalogUnavailable; CatalogConflict when PostgreSQL undid it in favour of another,
        see `attempt`.
        """
        engine = self._engine if durable else self._volatile
        queue = self._writer if self._is_sqlite else contextlib.nullcontext()
        committing = False
        async with queue:
            try:
                async with engine.begin() as connection:
                    yield Transaction(connection)
                    committing = True
            except (DBAPIError, PoolTimeoutError) as error:
                raise _translated(error, committing=committing) from error

    async def attempt(
        self,
        work: Callable[[Transaction], Awaitable[T]],
        *,
        durable: bool = True,
        kept: Callable[[Transaction], Awaitable[bool]] | None = None,
    ) -> T:
        """Runs `work` in a writing transaction; again where another one undid it, or where the
        connection broke before it was done.

        `kept` tells whether the transaction is in the catalog: it is asked when the connection
        broke while it was being committed. Raises what `transaction` does.
        """
        for attempt in range(_ATTEMPTS_MAX):
            try:
                done = False
                async with self.transaction(durable=durable) as tx:
                    result = await work(tx)
                    done = True
                return result
            except CatalogConflict:
                if attempt == _ATTEMPTS_MAX - 1:
                    raise
                # Two that undid each other do not meet again.
                pause = _ATTEMPT_PAUSE_SECONDS * 2**attempt
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
            except CatalogUnavailable as error:
                if done and error.uncertain and kept is not None and await self._settled(kept):
                    return result
                if done or attempt or not _was_cut(error):
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _settled(self, kept: Callable[[Transaction], Awaitable[bool]]) -> bool:
        """Whether a transaction is there after all. Raises CatalogUnavailable: nobody knows."""
        for attempt in range(_SETTLE_ATTEMPTS):
            try:
                async with self.reading() as tx:
                    return await kept(tx)
            except CatalogUnavailable:
                if attempt == _SETTLE_ATTEMPTS - 1:
                    raise
                await asyncio.sleep(_SETTLE_PAUSE_SECONDS)
        raise AssertionError("the last attempt returns or raises")

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Transaction]:
        """A consistent view; it neither waits for writers nor makes them wait."""
        try:
            async with self._engine.connect() as connection:
                configured = await connection.execution_options(**self._read)
                async with configured.begin():
                    yield Transaction(configured)
        except (DBAPIError, PoolTimeoutError) as error:
            raise _translated(error) from error

    async def check_schema(self) -> None:
        """Raises ConfigurationInvalid unless the schema is the one that this version knows."""
        state = await schema_state_of(self._engine, self.url)
        if not state.is_current:
            raise ConfigurationInvalid(
                f"The catalog {shown(self.url)} {state}.",
                hint="Run `agentmem migrate`, or start the version that wrote it.",
            )

    async def ping(self) -> None:
        """Raises when the database does not answer."""
        try:
            async with self._engine.connect() as connection:
                await (await connection.execution_options(**self._read)).execute(text("SELECT 1"))
        except (DBAPIError, PoolTimeoutError) as error:
            raise _translated(error) from error

    async def aclose(self) -> None:
        """Closes all connections."""
        await self._engine.dispose()
        if self._volatile is not self._engine:
            await self._volatile.dispose()


def _was_cut(error: CatalogUnavailable) -> bool:
    cause = error.__cause__
    return isinstance(cause, DBAPIError) and cause.connection_invalidated


def _translated(error: DBAPIError | PoolTimeoutError, *, committing: bool = False) -> Exception:
    """A database that fails is an operating error, told apart from a wrong statement."""
    if isinstance(error, PoolTimeoutError):
        return CatalogUnavailable("The catalog is not available: all its connections are in use.")
    state = getattr(error.orig, "sqlstate", None)
    if state in _UNDONE:
        return CatalogConflict("The catalog gave another transaction precedence; try again.")
    if state == _FOREIGN_KEY_VIOLATION:
        # Only PostgreSQL gets here: where there is one writer, it was looked at before.
        return CatalogConflict("What this builds on was changed meanwhile; try again.")
    if isinstance(error, (IntegrityError, ProgrammingError, DataError)):
        return error
    reason = " ".join(str(error.orig).split())
    return CatalogUnavailable(
        f"The catalog is not available: {reason}.", uncertain=committing and state is None
    )
