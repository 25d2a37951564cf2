"""The driver below SQLAlchemy: one thread per connection, errors where they are awaited."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path

import pytest

from agentmem.catalog.sqlite import SqliteConnection


async def execute(connection: SqliteConnection, statement: str, *values: object) -> list[object]:
    return await (await connection.cursor().execute(statement, values)).fetchall()


def threads() -> int:
    return sum(thread.name == "catalog-sqlite" for thread in threading.enumerate())


async def test_rows_and_what_is_known_of_them(tmp_path: Path) -> None:
    connection = await SqliteConnection.open(str(tmp_path / "a.db"))
    assert await execute(connection, "CREATE TABLE t (n INTEGER PRIMARY KEY)") == []
    cursor = connection.cursor()
    await cursor.executemany("INSERT INTO t VALUES (?)", [(1,), (2,)])
    assert (cursor.rowcount, cursor.description) == (2, None)
    with_cursor = connection.cursor()
    await with_cursor.execute("SELECT n AS m FROM t WHERE n > ?", (0,))
    assert await with_cursor.fetchall() == [(1,), (2,)]
    assert with_cursor.description[0][0] == "m"
    await connection.close()
    await connection.close()


async def test_errors_are_the_drivers(tmp_path: Path) -> None:
    connection = await SqliteConnection.open(str(tmp_path / "a.db"))
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        await execute(connection, "SELECT 1 FROM missing")
    assert await execute(connection, "SELECT 1") == [(1,)]
    await connection.close()
    with pytest.raises(ValueError, match="no active connection"):
        await execute(connection, "SELECT 1")
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        await SqliteConnection.open(str(tmp_path / "no" / "a.db"))


async def test_a_caller_that_is_cancelled_leaves_the_statement_to_its_end(tmp_path: Path) -> None:
    connection = await SqliteConnection.open(str(tmp_path / "a.db"))
    running, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        running.set()
        go_on.wait(5)

    call = asyncio.create_task(connection.run(slow))
    await asyncio.to_thread(running.wait)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    go_on.set()
    assert await execute(connection, "SELECT 2") == [(2,)]
    connection.stop()
    with pytest.raises(ValueError, match="no active connection"):
        await execute(connection, "SELECT 1")


async def test_no_thread_is_left(tmp_path: Path) -> None:
    before = threads()
    for stop in (False, True):
        connection = await SqliteConnection.open(str(tmp_path / "a.db"))
        assert threads() == before + 1
        if stop:
            connection.stop()
        else:
            await connection.close()
        async with asyncio.timeout(2):
            while threads() > before:
                await asyncio.sleep(0.01)


async def test_a_transaction_begins_with_its_first_statement(tmp_path: Path) -> None:
    one = await SqliteConnection.open(str(tmp_path / "a.db"), timeout=0)
    two = await SqliteConnection.open(str(tmp_path / "a.db"), timeout=0)
    await execute(one, "BEGIN IMMEDIATE")
    await execute(two, "BEGIN IMMEDIATE")
    await execute(one, "CREATE TABLE t (n)")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        await execute(two, "INSERT INTO t VALUES (1)")
    await two.rollback()  # of what never began
    await one.rollback()
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        await execute(two, "SELECT * FROM t")
    await execute(two, "BEGIN IMMEDIATE")
    await two.commit()
    await execute(one, "BEGIN IMMEDIATE")
    await execute(one, "CREATE TABLE t (n)")
    await one.commit()
    assert await execute(two, "SELECT * FROM t") == []
    for each in (one, two):
        await each.close()
