"""Every table of the catalog. Times are microseconds since the epoch (UTC), sizes are tokens."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

tenants = Table(
    "tenants",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("created_at", BigInteger, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant_id", String(40), ForeignKey("tenants.id"), nullable=False, index=True),
    Column("name", String(200), nullable=False),
    Column("prefix", String(40), nullable=False, unique=True),
    Column("hash", LargeBinary(32), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger, nullable=True),
)

# Turns are immutable and form a chain through `parent_turn_id`. The log up to a turn is
# log(parent)[:keep] + tokens; `tokens` is [0, prompt part) from the caller, the rest sampled.
# `session_id` is the session that made the turn; no foreign key, since a fork may outlive it.
turns = Table(
    "turns",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant_id", String(40), ForeignKey("tenants.id"), nullable=False, index=True),
    Column("session_id", String(40), nullable=False),
    Column("parent_turn_id", String(40), ForeignKey("turns.id"), nullable=True, index=True),
    Column("number", Integer, nullable=False),
    Column("keep", Integer, nullable=False),
    Column("tokens", LargeBinary, nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("log_tokens", Integer, nullable=False),
    Column("rebased", Integer, nullable=False),
    Column("messages", JSON, nullable=False),
    Column("reply", JSON, nullable=False),
    Column("finish_reason", String(20), nullable=False),
    Column("sampling", JSON, nullable=False),
    Column("usage", JSON, nullable=False),
    Column("logprobs", LargeBinary, nullable=True),
    Column("body_hash", String(64), nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant_id", String(40), ForeignKey("tenants.id"), nullable=False),
    Column("model", String(200), nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("state", String(20), nullable=False),
    Column("head_turn_id", String(40), ForeignKey("turns.id"), nullable=True, index=True),
    Column("turns", Integer, nullable=False),
    Column("tokens", Integer, nullable=False),
    Column("durable_position", Integer, nullable=False),
    Column("rebases", Integer, nullable=False),
    Column("parent_session_id", String(40), nullable=True),
    Column("fork_turn", Integer, nullable=True),
    Column("kv_retention_seconds", BigInteger, nullable=False),
    Column("log_retention_seconds", BigInteger, nullable=False),
    # Where its pages were last made: the keys to claim or let go of are derived from these.
    Column("worker_id", String(80), nullable=True),
    Column("worker_generation", Integer, nullable=True),
    Column("fingerprint", String(32), nullable=True),
    Column("page_tokens", Integer, nullable=True),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Index("ix_sessions_tenant_id_created_at", "tenant_id", "created_at", "id"),
)

leases = Table(
    "leases",
    metadata,
    Column(
        "session_id",
        String(40),
        ForeignKey("sessions.id", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("tenant_id", String(40), ForeignKey("tenants.id"), nullable=False),
    Column("owner", String(200), nullable=True, index=True),
    Column("generation", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
)

workers = Table(
    "workers",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("url", String(400), nullable=False),
    Column("model", String(200), nullable=False),
    Column("model_path", Text, nullable=False),
    Column("fingerprint", String(32), nullable=False),
    Column("fingerprint_fields", JSON, nullable=False),
    Column("page_tokens", Integer, nullable=False),
    Column("context_tokens", Integer, nullable=False),
    Column("kv_bytes_per_token", Integer, nullable=False),
    Column("hbm_tokens", BigInteger, nullable=False),
    Column("host_pool_tokens", BigInteger, nullable=False),
    Column("node_socket", Text, nullable=False),
    Column("state", String(20), nullable=False),
    Column("pid", BigInteger, nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("heartbeat_at", BigInteger, nullable=False),
    Column("detail", Text, nullable=False),
)

# Claims that a node agent has yet to be told to drop. No foreign keys: the session is gone.
pending_unclaims = Table(
    "pending_unclaims",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant_id", String(40), nullable=False, index=True),
    Column("claim_id", String(40), nullable=False),
    Column("keys", LargeBinary, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("retry_at", BigInteger, nullable=False, index=True),
)

__all__ = [
    "api_keys",
    "leases",
    "metadata",
    "pending_unclaims",
    "sessions",
    "tenants",
    "turns",
    "workers",
]
