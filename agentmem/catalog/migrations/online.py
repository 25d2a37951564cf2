"""What a migration does to a PostgreSQL that is in use: nothing that others would wait for.

Rules for every revision, which a test holds the scripts to: an index on a table that is there
already is made and dropped here, in a revision that does nothing else, since what comes before it
would be committed without the revision's number; a new column is nullable or has a constant
default; no column changes its type, no rows are rewritten.
"""

from __future__ import annotations

from collections.abc import Sequence

from alembic import op
from sqlalchemy import text


def create_index(
    name: str,
    table: str,
    columns: Sequence[str],
    *,
    unique: bool = False,
    where: str | None = None,
) -> None:
    """Builds an index (of the rows `where`) while the table is written to. One that is there is
    made anew."""
    part = None if where is None else text(where)
    if op.get_bind().dialect.name == "sqlite":
        op.create_index(
            name, table, list(columns), unique=unique, if_not_exists=True, sqlite_where=part
        )
        return
    with op.get_context().autocommit_block():
        # One that was not finished is left behind as invalid: it is made anew.
        op.execute(text(f'DROP INDEX CONCURRENTLY IF EXISTS "{name}"'))
        op.create_index(
            name,
            table,
            list(columns),
            unique=unique,
            postgresql_concurrently=True,
            postgresql_where=part,
        )


def drop_index(name: str, table: str) -> None:
    """Drops an index while the table is used, if it is there."""
    if op.get_bind().dialect.name == "sqlite":
        op.drop_index(name, table_name=table, if_exists=True)
        return
    with op.get_context().autocommit_block():
        op.drop_index(name, table_name=table, postgresql_concurrently=True, if_exists=True)
