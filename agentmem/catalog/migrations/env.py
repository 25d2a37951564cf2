"""Alembic's environment: runs on the connection that `catalog.migrating` hands over.

The plain `alembic` command has none: then one is made of AGENTMEM_DATABASE_URL, or of the
catalog that lies in AGENTMEM_DATA_DIR.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, create_engine, text

from agentmem.catalog import admin_tables  # noqa: F401 - its tables are in the metadata, too
from agentmem.catalog import plantables as _plantables  # noqa: F401 - known to the metadata
from agentmem.catalog.engines import database_url
from agentmem.catalog.tables import metadata
from agentmem.config import Settings

# A migration that cannot have a table soon gives up, instead of keeping all others from it.
LOCK_SECONDS = 3


def run(connection: Connection) -> None:
    """Runs the migrations that were asked for."""
    sqlite = connection.dialect.name == "sqlite"
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_as_batch=sqlite,
        compare_type=True,
        # On SQLite the caller's transaction is the migrations'. On PostgreSQL each has its own:
        # indexes are built outside of any.
        transaction_per_migration=not sqlite,
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def run_alone() -> None:
    """The same for the plain `alembic` command, on a connection of its own."""
    url = database_url(Settings().catalog_url)
    sqlite = url.drivername.startswith("sqlite")
    # One process, one statement after the other: no event loop is needed.
    engine = create_engine(url.set(drivername="sqlite") if sqlite else url)
    try:
        with engine.connect() as connection:
            if sqlite:
                connection.exec_driver_sql("PRAGMA foreign_keys=ON")
            else:
                connection.execute(text(f"SET lock_timeout = '{LOCK_SECONDS}s'"))
                connection.commit()
            run(connection)
            connection.commit()
    finally:
        engine.dispose()


given = context.config.attributes.get("connection")
if given is None:
    run_alone()
else:
    run(given)
