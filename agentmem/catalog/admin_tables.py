"""The tables of administration: projects, the audit log, operators. See `tables` for the rest."""

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

# People of the provider; `role` is viewer, operator, billing or owner.
operators = Table(
    "operators",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("email", String(200), nullable=False, unique=True),
    Column("role", String(20), nullable=False),
    # Null: signs in by OIDC only.
    Column("password_hash", String(200), nullable=True),
    # The identity that the first sign-in by OIDC tied to the operator.
    Column("issuer", String(400), nullable=True),
    Column("subject", String(400), nullable=True),
    Column("disabled_at", BigInteger, nullable=True),
    Column("created_at", BigInteger, nullable=False),
    UniqueConstraint("issuer", "subject"),
)

# Browsers that are signed in, by an HMAC of their token.
operator_sign_ins = Table(
    "operator_sign_ins",
    metadata,
    Column("hash", LargeBinary(32), primary_key=True),
    Column("operator_id", String(40), ForeignKey("operators.id"), nullable=False, index=True),
    Column("created_at", BigInteger, nullable=False),
    Column("used_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False, index=True),
)

operator_tokens = Table(
    "operator_tokens",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("operator_id", String(40), ForeignKey("operators.id"), nullable=False, index=True),
    Column("name", String(200), nullable=False),
    Column("prefix", String(40), nullable=False, unique=True),
    Column("hash", LargeBinary(32), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger, nullable=True),
    Column("last_used_at", BigInteger, nullable=True),
)

# Sign-ins that were begun at the provider of identities, and the codes that came back.
oidc_flows = Table(
    "oidc_flows",
    metadata,
    Column("state_hash", LargeBinary(32), primary_key=True),
    Column("nonce", String(100), nullable=False),
    Column("code_verifier", String(100), nullable=False),
    Column("expires_at", BigInteger, nullable=False, index=True),
)
oidc_codes = Table(
    "oidc_codes",
    metadata,
    Column("code_hash", LargeBinary(32), primary_key=True),
    Column("expires_at", BigInteger, nullable=False, index=True),
)

# By account and by address, each as an HMAC in hex: how often signing in failed.
sign_in_attempts = Table(
    "sign_in_attempts",
    metadata,
    Column("subject", String(100), primary_key=True),
    Column("failures", Integer, nullable=False),
    Column("last_at", BigInteger, nullable=False, index=True),
    Column("blocked_until", BigInteger, nullable=False),
)

__all__ = [
    "audit_head",
    "audit_log",
    "oidc_codes",
    "oidc_flows",
    "operator_sign_ins",
    "operator_tokens",
    "operators",
    "projects",
    "sign_in_attempts",
]
