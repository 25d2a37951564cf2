"""The catalog: every SQL statement. `Catalog` opens it, `migrate` brings its schema up to date."""

from agentmem.catalog.database import Catalog, Transaction
from agentmem.catalog.engines import DatabaseOptions
from agentmem.catalog.migrating import SchemaState, migrate, schema_state

__all__ = ["Catalog", "DatabaseOptions", "SchemaState", "Transaction", "migrate", "schema_state"]
