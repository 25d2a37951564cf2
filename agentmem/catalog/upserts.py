"""Insert, or change the row that is there: one statement, in each database's own words."""

from __future__ import annotations

from sqlalchemy import Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection


def upsert(connection: AsyncConnection, table: Table) -> sqlite.Insert:
    """An insert that has `on_conflict_do_update` and `on_conflict_do_nothing`.

    SQLite's and PostgreSQL's take the same arguments; the first one's type stands for both.
    """
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table)  # type: ignore[return-value]
    return sqlite.insert(table)
