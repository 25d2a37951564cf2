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
    text,
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
    # Null: the gateway's. Aliases are shell patterns of model names that mean the default model.
    Column("default_model", String(200), nullable=True),
    Column("model_aliases", JSON, nullable=True),
    # Since then nothing is answered to its keys; null: it is served.
    Column("suspended_at", BigInteger, nullable=True),
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
    # Null, here and in all tables below: the tenant's default project.
    Column("project_id", String(40), nullable=True),
    # Separated by spaces.
    Column("scopes", String(200), nullable=False, server_default="inference sessions:read"),
    # Null: never. A key that was rotated ends when its overlap does.
    Column("expires_at", BigInteger, nullable=True),
    # Written now and then only.
    Column("last_used_at", BigInteger, nullable=True),
    # The key that this one took over from.
    Column("rotated_from", String(40), nullable=True),
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
    # Messages of the log before that this turn left out, [first, last): a conversation too long.
    Column("dropped", JSON, nullable=True),
    # Instructions and tools; null: the same as the parent's.
    Column("framing", JSON, nullable=True),
    # Of the whole conversation up to the reply: how a resent history finds its log.
    Column("prefix_hash", LargeBinary(16), nullable=True),
    Column("messages", JSON, nullable=False),
    # JSON null: a context, which nobody replied to.
    Column("reply", JSON, nullable=False),
    Column("finish_reason", String(20), nullable=False),
    Column("sampling", JSON, nullable=False),
    Column("usage", JSON, nullable=False),
    Column("logprobs", LargeBinary, nullable=True),
    Column("top_logprobs", JSON, nullable=True),
    Column("body_hash", String(64), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Index("ix_turns_tenant_id_prefix_hash", "tenant_id", "prefix_hash", "id"),
)

# Of the log not all is durable that can be; its last token has no KV, see `core.durable_pages`.
# In SQL's own words: a partial index is found by them.
BEHIND = text("durable_position < (tokens - 1) / page_tokens * page_tokens")

sessions = Table(
    "sessions",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant_id", String(40), ForeignKey("tenants.id"), nullable=False),
    Column("model", String(200), nullable=False),
    # What made it: "session", "conversation", "context", or "request" (nobody named it).
    Column("origin", String(20), nullable=False, server_default="session"),
    Column("metadata", JSON, nullable=False),
    Column("state", String(20), nullable=False),
    Column("head_turn_id", String(40), ForeignKey("turns.id"), nullable=True, index=True),
    Column("turns", Integer, nullable=False),
    Column("tokens", Integer, nullable=False),
    Column("durable_position", Integer, nullable=False),
    Column("rebases", Integer, nullable=False),
    Column("parent_session_id", String(40), nullable=True),
    Column("fork_turn", Integer, nullable=True),
    Column("context_id", String(40), nullable=True),
    # The class that the two terms came from; null: they were given one by one.
    Column("retention", String(20), nullable=True),
    # The class that was asked for, where the tenant's plan does not have it.
    Column("asked_retention", String(20), nullable=True),
    # Pages that its claim was promised, and why no more; null: all of them.
    Column("promised_pages", Integer, nullable=True),
    Column("promise_reason", String(20), nullable=True),
    Column("kv_retention_seconds", BigInteger, nullable=False),
    Column("log_retention_seconds", BigInteger, nullable=False),
    # Its id, text and log are valid until then.
    Column("expires_at", BigInteger, nullable=False, server_default="0", index=True),
    # Where its pages were last made: the keys to claim or let go of are derived from these.
    Column("worker_id", String(80), nullable=True),
    Column("worker_generation", Integer, nullable=True),
    Column("fingerprint", String(32), nullable=True),
    Column("page_tokens", Integer, nullable=True),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("project_id", String(40), nullable=True),
    Index("ix_sessions_tenant_id_created_at", "tenant_id", "created_at", "id"),
    Index("ix_sessions_project_id_created_at", "project_id", "created_at", "id"),
    Index("ix_sessions_state_updated_at", "state", "updated_at"),
    # A gateway that starts looks for these among a million others.
    Index(
        "ix_sessions_behind",
        "state",
        "updated_at",
        "id",
        sqlite_where=BEHIND,
        postgresql_where=BEHIND,
    ),
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
    # How replies are taken apart: host:port of the parser, and SGLang's names of the formats.
    Column("parser_address", String(200), nullable=False, server_default=""),
    Column("tool_parser", String(40), nullable=False, server_default=""),
    Column("reasoning_parser", String(40), nullable=False, server_default=""),
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

# Response objects (of the Responses API and of Chat Completions) beside the turns that made them.
# `stored` 0: only a retry of the same request may find it. A failed or cancelled one has no turn.
responses = Table(
    "responses",
    metadata,
    Column("id", String(60), primary_key=True),
    Column("tenant_id", String(40), ForeignKey("tenants.id"), nullable=False, index=True),
    Column("surface", String(20), nullable=False),
    Column("status", String(20), nullable=False),
    Column("stored", Integer, nullable=False),
    Column("session_id", String(40), nullable=True, index=True),
    Column(
        "turn_id",
        String(40),
        ForeignKey("turns.id", ondelete="CASCADE"),
        nullable=True,
        index=True,
    ),
    Column("previous_response_id", String(60), nullable=True, index=True),
    Column("conversation_id", String(60), nullable=True),
    Column("request", JSON, nullable=False),
    Column("error", JSON, nullable=True),
    # How the reply was cut into events, so that a stream can be taken up again where it broke off.
    Column("deltas", LargeBinary, nullable=True),
    Column("created_at", BigInteger, nullable=False),
    Column("completed_at", BigInteger, nullable=True),
    Column("expires_at", BigInteger, nullable=False, index=True),
    Column("project_id", String(40), nullable=True),
)

# Items of responses and of conversations, in order of `position`; `kind` is "input", "output" or
# "added" (to a conversation, by its owner).
items = Table(
    "items",
    metadata,
    Column("position", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("id", String(80), nullable=False),
    Column("tenant_id", String(40), ForeignKey("tenants.id"), nullable=False),
    Column(
        "response_id",
        String(60),
        ForeignKey("responses.id", ondelete="CASCADE"),
        nullable=True,
        index=True,
    ),
    Column("conversation_id", String(60), nullable=True, index=True),
    Column("kind", String(10), nullable=False),
    Column("data", JSON, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Index("ix_items_tenant_id_id", "tenant_id", "id"),
)

# One per turn that ran, written with it; what billing reads. No foreign keys: it outlives all.
usage_events = Table(
    "usage_events",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant_id", String(40), nullable=False),
    Column("api_key_id", String(40), nullable=True),
    Column("session_id", String(40), nullable=True),
    Column("turn_id", String(40), nullable=False, unique=True),
    Column("response_id", String(60), nullable=True),
    Column("surface", String(20), nullable=False),
    Column("model", String(200), nullable=False),
    Column("retention", String(20), nullable=True),
    # input = uncached + read + written; reasoning is inside of output. Tokens.
    Column("input_tokens", Integer, nullable=False),
    Column("uncached_tokens", Integer, nullable=False),
    Column("read_tokens", Integer, nullable=False),
    Column("written_tokens", Integer, nullable=False),
    Column("output_tokens", Integer, nullable=False),
    Column("reasoning_tokens", Integer, nullable=False),
    Column("read_by_tier", JSON, nullable=False),
    Column("recomputed_tokens", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("project_id", String(40), nullable=True),
    Index("ix_usage_events_tenant_id_created_at", "tenant_id", "created_at"),
)

# What was answered to which request, so that a repeat is told apart and answered the same.
retries = Table(
    "retries",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant_id", String(40), nullable=False),
    Column("api_key_id", String(40), nullable=False),
    # Hex SHA-256 of the route with the Idempotency-Key, or with the body where there is none.
    Column("request_key", String(64), nullable=False),
    Column("body_hash", String(64), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("turn_id", String(40), nullable=False),
    Column("response_id", String(60), nullable=True),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False, index=True),
    Index("ix_retries_request", "tenant_id", "api_key_id", "request_key"),
)

# A beginning that many sessions share; its log is that of the session `session_id`.
contexts = Table(
    "contexts",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant_id", String(40), ForeignKey("tenants.id"), nullable=False),
    Column(
        "session_id",
        String(40),
        ForeignKey("sessions.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    Column("name", String(200), nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Index("ix_contexts_tenant_id_created_at", "tenant_id", "created_at", "id"),
)

__all__ = [
    "api_keys",
    "contexts",
    "items",
    "leases",
    "metadata",
    "pending_unclaims",
    "responses",
    "retries",
    "sessions",
    "tenants",
    "turns",
    "usage_events",
    "workers",
]
