"""The tables of administration: projects and the audit log. See `tables` for the rest."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from agentmem.catalog.tables import metadata

projects = Table(
    "projects",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant_id", String(40), ForeignKey("tenants.id"), nullable=False),
    Column("name", String(200), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    UniqueConstraint("tenant_id", "name"),
)

# Append-only: triggers refuse updates and deletes. No foreign keys: it outlives all.
audit_log = Table(
    "audit_log",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False),
    Column("actor", String(120), nullable=False),
    Column("action", String(60), nullable=False, index=True),
    Column("target", String(120), nullable=False, index=True),
    Column("tenant_id", String(40), nullable=True, index=True),
    # Canonical JSON as text: what was hashed, to the byte.
    Column("details", Text, nullable=False),
    Column("previous_hash", LargeBinary(32), nullable=False),
    Column("hash", LargeBinary(32), nullable=False),
)

# One row: the end of the chain. Whoever appends holds its lock until the act is committed.
audit_head = Table(
    "audit_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("sequence", BigInteger, nullable=False),
    Column("hash", LargeBinary(32), nullable=False),
)

__all__ = ["audit_head", "audit_log", "projects"]
