"""Alembic's environment: runs on the connection that `catalog.database` hands over."""

from __future__ import annotations

from alembic import context

from agentmem.catalog import admin_tables  # noqa: F401 - its tables are in the metadata, too
from agentmem.catalog import plantables as _plantables  # noqa: F401 - known to the metadata
from agentmem.catalog.tables import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    render_as_batch=connection.dialect.name == "sqlite",
    compare_type=True,
    # The caller's transaction is the migration's: versions and changes commit together.
    transaction_per_migration=False,
    transactional_ddl=True,
)
context.run_migrations()
