"""Alembic scripts, shipped inside the package; run them with `catalog.migrate(url)`."""
