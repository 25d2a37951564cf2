"""The catalog: every SQL statement. `Catalog` opens it, `migrate` brings its schema up to date."""

from agentmem.catalog.database import Catalog, Transaction, migrate

__all__ = ["Catalog", "Transaction", "migrate"]
