"""Plans, subscriptions, what limits count; what of a session was promised."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "plans",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("definition", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_plans")),
        sa.UniqueConstraint("name", "version", name=op.f("uq_plans_name_version")),
    )
    op.create_table(
        "subscriptions",
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("plan_id", sa.String(length=40), nullable=True),
        sa.Column("overrides", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("reason", sa.String(length=500), nullable=False),
        sa.Column("state_since", sa.BigInteger(), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=True),
        sa.Column("changed_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_subscriptions_tenant_id_tenants")
        ),
        sa.ForeignKeyConstraint(
            ["plan_id"], ["plans.id"], name=op.f("fk_subscriptions_plan_id_plans")
        ),
        sa.PrimaryKeyConstraint("tenant_id", name=op.f("pk_subscriptions")),
    )
    op.create_index(op.f("ix_subscriptions_plan_id"), "subscriptions", ["plan_id"])
    op.create_index(op.f("ix_subscriptions_due_at"), "subscriptions", ["due_at"])
    op.create_table(
        "rate_counters",
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=60), nullable=False),
        sa.Column("window_at", sa.BigInteger(), nullable=False),
        sa.Column("current", sa.BigInteger(), nullable=False),
        sa.Column("previous", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "name", name=op.f("pk_rate_counters")),
    )
    op.create_table(
        "turn_slots",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("makes_session", sa.Integer(), nullable=False),
        sa.Column("promised_tokens", sa.BigInteger(), nullable=False),
        sa.Column("promised_tier", sa.String(length=10), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_turn_slots")),
    )
    op.create_index(op.f("ix_turn_slots_expires_at"), "turn_slots", ["expires_at"])
    op.create_index("ix_turn_slots_tenant_id_expires_at", "turn_slots", ["tenant_id", "expires_at"])
    # Nullable and without a default: no database rewrites its rows for these.
    op.add_column("sessions", sa.Column("asked_retention", sa.String(length=20), nullable=True))
    op.add_column("sessions", sa.Column("promised_pages", sa.Integer(), nullable=True))
    op.add_column("sessions", sa.Column("promise_reason", sa.String(length=20), nullable=True))


def downgrade() -> None:
    for name in ("promise_reason", "promised_pages", "asked_retention"):
        op.drop_column("sessions", name)
    for name in ("turn_slots", "rate_counters", "subscriptions", "plans"):
        op.drop_table(name)
