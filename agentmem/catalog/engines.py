"""How the two databases are opened: URLs, pools, time limits, and connections that were cut."""

from __future__ import annotations

import select
from dataclasses import dataclass
from typing import Any

from sqlalchemy import URL, Connection, event, make_url
from sqlalchemy.exc import ArgumentError, InvalidatePoolError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from agentmem.catalog.sqlite import SqliteConnection
from agentmem.errors import ConfigurationInvalid

BUSY_TIMEOUT_MS = 30_000
_SQLITE = "sqlite+aiosqlite"
_POSTGRESQL = "postgresql+psycopg"
# How the schemes that people write are spelled here.
_DRIVERS = {
    "sqlite": _SQLITE,
    "postgres": _POSTGRESQL,
    "postgresql": _POSTGRESQL,
    _SQLITE: _SQLITE,
    _POSTGRESQL: _POSTGRESQL,
}
_CONNECT_SECONDS_MAX = 5
# A peer that vanished without a word is given up after so long.
_KEEPALIVE = {
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
# A gateway that is stopped in the middle of a transaction lets go of its locks after so long.
_IDLE_IN_TRANSACTION_MS = 10_000


@dataclass(frozen=True, slots=True)
class DatabaseOptions:
    """What a process asks of PostgreSQL; SQLite has no use for it.

    `pool_size` is the most connections of one process, `statement_seconds_max` and
    `lock_seconds_max` how long a statement may run and wait for a row; `application_name` is what
    pg_stat_activity shows.
    """

    pool_size: int = 10
    statement_seconds_max: float = 30.0
    lock_seconds_max: float = 5.0
    application_name: str = "agentmem"


def database_url(text: str) -> URL:
    """The URL with the driver that agentmem uses.

    Raises ConfigurationInvalid when it is no URL, or one of another database or driver.
    """
    try:
        url = make_url(text)
    except ArgumentError as error:
        # The text is not repeated: a password may be in it.
        raise ConfigurationInvalid(
            "The catalog's URL cannot be read.",
            hint="It looks like postgresql+psycopg://user:password@host:5432/name, or is empty.",
        ) from error
    driver = _DRIVERS.get(url.drivername)
    if driver is None:
        raise ConfigurationInvalid(
            f"The catalog's URL begins with {url.drivername}://, which is not supported.",
            hint="Use postgresql+psycopg:// or sqlite+aiosqlite://.",
        )
    return url.set(drivername=driver)


def shown(url: str) -> str:
    """A URL without its password."""
    return database_url(url).render_as_string(hide_password=True)


def create_sqlite_engine(url: URL, *, synchronous: str, pool_size: int = 8) -> AsyncEngine:
    """An engine whose transactions begin as writers, see `_prepare_sqlite`."""
    engine = create_async_engine(
        url,
        connect_args={"async_creator_fn": SqliteConnection.open},
        pool_size=pool_size,
        max_overflow=0,
        # The connection used last has the pages of the last transaction in its cache.
        pool_use_lifo=True,
        pool_timeout=60,
        # Errors are logged, and parameters are content.
        hide_parameters=True,
        # Every transaction here ends by itself; another rollback would only cost time.
        pool_reset_on_return=None,
    )
    _prepare_sqlite(engine, synchronous)
    return engine


def create_postgresql_engine(url: URL, options: DatabaseOptions) -> AsyncEngine:
    """An engine whose statements and waits end in time, and that replaces cut connections."""
    limits = {
        "statement_timeout": round(options.statement_seconds_max * 1_000),
        "lock_timeout": round(options.lock_seconds_max * 1_000),
        "idle_in_transaction_session_timeout": _IDLE_IN_TRANSACTION_MS,
    }
    given = str(url.query.get("options", ""))
    engine = create_async_engine(
        url.difference_update_query(["options"]),
        connect_args={
            "application_name": options.application_name,
            "connect_timeout": _CONNECT_SECONDS_MAX,
            # What the URL says wins.
            "options": " ".join([*(f"-c {k}={v}" for k, v in limits.items()), given]).strip(),
            **{key: value for key, value in _KEEPALIVE.items() if key not in url.query},
        },
        pool_size=options.pool_size,
        max_overflow=0,
        pool_use_lifo=True,
        pool_timeout=10,
        hide_parameters=True,
    )
    _replace_cut_connections(engine)
    return engine


def _replace_cut_connections(engine: AsyncEngine) -> None:
    """Looks at a connection's socket before it is used: an idle one has nothing to say.

    That costs no round trip, where a ping would cost one per transaction. A server that ended, or
    that ended this connection, has said so; then all idle connections are looked upon as cut.
    """

    @event.listens_for(engine.sync_engine, "checkout")
    def _checkout(connection: Any, _record: Any, _proxy: Any) -> None:
        raw = connection.driver_connection.pgconn
        waiting = select.poll()
        waiting.register(raw.socket, select.POLLIN)
        if not waiting.poll(0):
            return
        try:
            # It may be a notice only.
            engine.sync_engine.dialect.do_ping(connection)
        except engine.sync_engine.dialect.loaded_dbapi.Error as error:
            raise InvalidatePoolError from error


def _prepare_sqlite(engine: AsyncEngine, synchronous: str) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        # We begin transactions ourselves: the driver would begin them late and deferred, and a
        # deferred one that turns into a writer fails with "database is locked" without waiting.
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        cursor.execute(f"PRAGMA synchronous={synchronous}")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        connection.exec_driver_sql(options.get("agentmem_begin", "BEGIN IMMEDIATE"))
