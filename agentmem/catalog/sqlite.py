"""SQLite for the event loop, with one hop to a thread per statement.

SQLAlchemy's asyncio dialect works on `aiosqlite`, whose cursors go to the connection's thread and
back three times per statement (execute, fetch, close), by a queue that is itself slow: most of what
a turn's commit cost. This is the same interface where a statement is executed and its rows are
fetched in one go, and BEGIN goes along with the first statement. Only what the dialect uses is
there.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

_BUSY_SECONDS_MAX = 30.0
_BUSY_PAUSE_SECONDS = 0.01
_Work = tuple[asyncio.Future[Any], Callable[[], Any]]


class SqliteConnection:
    """A connection and the only thread that uses it. Errors are those of `sqlite3`.

    Use `open`; transactions are begun by statements, never by the driver.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._work: SimpleQueue[_Work | None] = SimpleQueue()
        self._connection: sqlite3.Connection | None = None
        self._stopped = False
        # A BEGIN that was asked for and not executed yet.
        self._begin: str | None = None
        self._thread = threading.Thread(target=self._run, name="catalog-sqlite", daemon=True)
        self._thread.start()

    @classmethod
    async def open(cls, database: str, **options: Any) -> SqliteConnection:
        """Opens a database, as `sqlite3.connect` does. Raises sqlite3.OperationalError."""
        made = cls()
        # Used by its thread alone, but closed by whoever collects it.
        options |= {"check_same_thread": False, "isolation_level": None}
        try:
            made._connection = await made.run(lambda: _connect(database, options))
        except BaseException:
            made.stop()
            raise
        return made

    @property
    def driver(self) -> sqlite3.Connection:
        """The driver's connection. Raises ValueError when it is closed."""
        if self._connection is None:
            raise ValueError("no active connection")
        return self._connection

    def cursor(self) -> SqliteCursor:
        """A cursor; nothing happens before it executes something."""
        return SqliteCursor(self)

    async def commit(self) -> None:
        """See sqlite3.Connection."""
        if self._begin is None:
            await self.run(self.driver.commit)
        self._begin = None

    async def rollback(self) -> None:
        """See sqlite3.Connection."""
        if self._begin is None:
            await self.run(self.driver.rollback)
        self._begin = None

    def begin(self, statement: str) -> None:
        """Has a transaction begin with the next statement, whose errors are then also BEGIN's."""
        self._begin = statement

    def execute_begin(self) -> None:
        """In the connection's thread: begins the transaction that was asked for, if any."""
        if self._begin is not None:
            self.driver.execute(self._begin).close()
            self._begin = None

    async def create_function(self, *args: Any, **options: Any) -> None:
        """See sqlite3.Connection."""
        await self.run(lambda: self.driver.create_function(*args, **options))

    async def close(self) -> None:
        """Closes the connection and ends its thread; again: nothing."""
        if self._connection is None:
            return
        try:
            await self.run(self._close)
        finally:
            self.stop()

    def stop(self) -> None:
        """Has it closed after what it is doing now, without waiting."""
        self._stopped = True
        self._work.put(None)

    async def run(self, call: Callable[[], T]) -> T:
        """Runs `call` in the connection's thread. A caller that is cancelled leaves it running.

        Raises ValueError when the connection is closed.
        """
        if self._stopped:
            raise ValueError("no active connection")
        future: asyncio.Future[T] = self._loop.create_future()
        self._work.put((future, call))
        return await future

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            future, call = work
            result, error = None, None
            try:
                result = call()
            except Exception as raised:  # noqa: BLE001 - loop edge: raised where the call is awaited
                error = raised
            try:
                self._loop.call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:
                break  # the event loop is closed: nobody waits any more
            del future, call, work, result, error
        self._close()


class SqliteCursor:
    """One statement and all its rows."""

    def __init__(self, connection: SqliteConnection) -> None:
        self._connection = connection
        self._rows: list[Any] = []
        self.description: Any = None
        self.rowcount = -1
        self.lastrowid: int | None = None
        self.arraysize = 1

    async def __aenter__(self) -> SqliteCursor:
        return self

    async def execute(self, statement: str, parameters: Sequence[Any] = ()) -> SqliteCursor:
        """Executes a statement and fetches its rows."""
        if statement.startswith("BEGIN"):
            self._connection.begin(statement)
            return self
        await self._connection.run(lambda: self._execute(statement, parameters))
        return self

    async def executemany(self, statement: str, parameters: Sequence[Sequence[Any]]) -> None:
        """Executes a statement without rows for each of the parameters."""
        await self._connection.run(lambda: self._executemany(statement, parameters))

    async def fetchall(self) -> list[Any]:
        """The rows."""
        return self._rows

    async def close(self) -> None:
        """Nothing is open."""

    def _execute(self, statement: str, parameters: Sequence[Any]) -> None:
        self._connection.execute_begin()
        cursor = self._connection.driver.execute(statement, parameters)
        if cursor.description is not None:
            self._rows = cursor.fetchall()
        self._keep(cursor)

    def _executemany(self, statement: str, parameters: Sequence[Sequence[Any]]) -> None:
        self._connection.execute_begin()
        self._keep(self._connection.driver.executemany(statement, parameters))

    def _keep(self, cursor: sqlite3.Cursor) -> None:
        self.description = cursor.description
        self.rowcount, self.lastrowid = cursor.rowcount, cursor.lastrowid
        cursor.close()


def _connect(database: str, options: dict[str, Any]) -> sqlite3.Connection:
    """Connects, with the log written ahead. Raises sqlite3.OperationalError."""
    connection: sqlite3.Connection = sqlite3.connect(database, **options)
    deadline = time.monotonic() + _BUSY_SECONDS_MAX
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
            return connection
        except sqlite3.OperationalError as error:
            # Of several that make a new database so, SQLite lets one wait for no other.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                connection.close()
                raise
            time.sleep(_BUSY_PAUSE_SECONDS)


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
