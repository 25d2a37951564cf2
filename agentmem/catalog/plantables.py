"""Tables of plans, of who has which, and of what limits count. See `tables` for the units."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    UniqueConstraint,
)

from agentmem.catalog.tables import metadata

# A version of a plan, never changed: a change is the next version.
plans = Table(
    "plans",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("version", Integer, nullable=False),
    Column("definition", JSON, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    UniqueConstraint("name", "version", name="uq_plans_name_version"),
)

# Which plan a tenant has, and how far its lapse is. No row: the default plan, active.
subscriptions = Table(
    "subscriptions",
    metadata,
    Column("tenant_id", String(40), ForeignKey("tenants.id"), primary_key=True),
    # Null: the default plan.
    Column("plan_id", String(40), ForeignKey("plans.id"), nullable=True, index=True),
    Column("overrides", JSON, nullable=False),
    # active, notice, grace, frozen, deleted.
    Column("state", String(20), nullable=False),
    Column("reason", String(500), nullable=False),
    Column("state_since", BigInteger, nullable=False),
    # When the next state begins; null: never by itself.
    Column("due_at", BigInteger, nullable=True, index=True),
    Column("changed_at", BigInteger, nullable=False),
)

# A sliding window per tenant and limit: what this minute and the one before it used.
rate_counters = Table(
    "rate_counters",
    metadata,
    Column("tenant_id", String(40), primary_key=True),
    Column("name", String(60), primary_key=True),
    # When the current window began.
    Column("window_at", BigInteger, nullable=False),
    Column("current", BigInteger, nullable=False),
    Column("previous", BigInteger, nullable=False),
)

# A turn that runs. Renewed while it does, so that a dead gateway's come back.
turn_slots = Table(
    "turn_slots",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant_id", String(40), nullable=False),
    # 1: its commit makes a session. What it will promise, in tokens, in which tier.
    Column("makes_session", Integer, nullable=False),
    Column("promised_tokens", BigInteger, nullable=False),
    Column("promised_tier", String(10), nullable=False),
    Column("expires_at", BigInteger, nullable=False, index=True),
    Index("ix_turn_slots_tenant_id_expires_at", "tenant_id", "expires_at"),
)

__all__ = ["plans", "rate_counters", "subscriptions", "turn_slots"]
