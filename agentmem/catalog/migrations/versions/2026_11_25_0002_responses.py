"""What the OpenAI-compatible surface keeps: responses, items, usage events, retries, contexts.

Revises: 0001
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_NEW_TABLES = ("contexts", "retries", "usage_events", "items", "responses")
_NEW_INDEXES = (
    ("ix_turns_tenant_id_prefix_hash", "turns", ["tenant_id", "prefix_hash", "id"]),
    ("ix_sessions_expires_at", "sessions", ["expires_at"]),
    ("ix_sessions_state_updated_at", "sessions", ["state", "updated_at"]),
)


def _new_columns() -> dict[str, tuple[sa.Column[Any], ...]]:
    return {
        "tenants": (
            sa.Column("default_model", sa.String(length=200), nullable=True),
            sa.Column("model_aliases", sa.JSON(), nullable=True),
        ),
        "turns": (
            sa.Column("dropped", sa.JSON(), nullable=True),
            sa.Column("framing", sa.JSON(), nullable=True),
            sa.Column("prefix_hash", sa.LargeBinary(length=16), nullable=True),
            sa.Column("top_logprobs", sa.JSON(), nullable=True),
        ),
        "sessions": (
            sa.Column("origin", sa.String(length=20), nullable=False, server_default="session"),
            sa.Column("context_id", sa.String(length=40), nullable=True),
            sa.Column("retention", sa.String(length=20), nullable=True),
            sa.Column("expires_at", sa.BigInteger(), nullable=False, server_default="0"),
        ),
        "workers": (
            sa.Column("parser_address", sa.String(length=200), nullable=False, server_default=""),
            sa.Column("tool_parser", sa.String(length=40), nullable=False, server_default=""),
            sa.Column("reasoning_parser", sa.String(length=40), nullable=False, server_default=""),
        ),
    }


def upgrade() -> None:
    for table, columns in _new_columns().items():
        for column in columns:
            op.add_column(table, column)
    # Sessions from before: their term begins at their last change.
    op.execute("UPDATE sessions SET expires_at = updated_at + log_retention_seconds * 1000000")
    _create_responses()
    _create_items()
    _create_usage_events()
    _create_retries()
    _create_contexts()
    for name, table, names in _NEW_INDEXES:
        op.create_index(name, table, names, unique=False)


def downgrade() -> None:
    for name, table, _ in _NEW_INDEXES:
        op.drop_index(name, table_name=table)
    for table in _NEW_TABLES:
        op.drop_table(table)
    for table, columns in _new_columns().items():
        for column in columns:
            op.drop_column(table, column.name)


def _create_responses() -> None:
    op.create_table(
        "responses",
        sa.Column("id", sa.String(length=60), nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("surface", sa.String(length=20), nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("stored", sa.Integer(), nullable=False),
        sa.Column("session_id", sa.String(length=40), nullable=True),
        sa.Column("turn_id", sa.String(length=40), nullable=True),
        sa.Column("previous_response_id", sa.String(length=60), nullable=True),
        sa.Column("conversation_id", sa.String(length=60), nullable=True),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("deltas", sa.LargeBinary(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("completed_at", sa.BigInteger(), nullable=True),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_responses_tenant_id_tenants")
        ),
        sa.ForeignKeyConstraint(
            ["turn_id"],
            ["turns.id"],
            name=op.f("fk_responses_turn_id_turns"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_responses")),
    )
    for column in ("tenant_id", "session_id", "turn_id", "previous_response_id", "expires_at"):
        op.create_index(op.f(f"ix_responses_{column}"), "responses", [column], unique=False)


def _create_items() -> None:
    op.create_table(
        "items",
        sa.Column("position", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("id", sa.String(length=80), nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("response_id", sa.String(length=60), nullable=True),
        sa.Column("conversation_id", sa.String(length=60), nullable=True),
        sa.Column("kind", sa.String(length=10), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_items_tenant_id_tenants")
        ),
        sa.ForeignKeyConstraint(
            ["response_id"],
            ["responses.id"],
            name=op.f("fk_items_response_id_responses"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("position", name=op.f("pk_items")),
    )
    for column in ("response_id", "conversation_id"):
        op.create_index(op.f(f"ix_items_{column}"), "items", [column], unique=False)
    op.create_index("ix_items_tenant_id_id", "items", ["tenant_id", "id"], unique=False)


def _create_usage_events() -> None:
    tokens = ("input", "uncached", "read", "written", "output", "reasoning")
    op.create_table(
        "usage_events",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("api_key_id", sa.String(length=40), nullable=True),
        sa.Column("session_id", sa.String(length=40), nullable=True),
        sa.Column("turn_id", sa.String(length=40), nullable=False),
        sa.Column("response_id", sa.String(length=60), nullable=True),
        sa.Column("surface", sa.String(length=20), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("retention", sa.String(length=20), nullable=True),
        *(sa.Column(f"{name}_tokens", sa.Integer(), nullable=False) for name in tokens),
        sa.Column("read_by_tier", sa.JSON(), nullable=False),
        sa.Column("recomputed_tokens", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_usage_events")),
        sa.UniqueConstraint("turn_id", name=op.f("uq_usage_events_turn_id")),
    )
    op.create_index(
        "ix_usage_events_tenant_id_created_at",
        "usage_events",
        ["tenant_id", "created_at"],
        unique=False,
    )


def _create_retries() -> None:
    op.create_table(
        "retries",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("api_key_id", sa.String(length=40), nullable=False),
        sa.Column("request_key", sa.String(length=64), nullable=False),
        sa.Column("body_hash", sa.String(length=64), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("turn_id", sa.String(length=40), nullable=False),
        sa.Column("response_id", sa.String(length=60), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_retries")),
    )
    op.create_index(op.f("ix_retries_expires_at"), "retries", ["expires_at"], unique=False)
    op.create_index(
        "ix_retries_request", "retries", ["tenant_id", "api_key_id", "request_key"], unique=False
    )


def _create_contexts() -> None:
    op.create_table(
        "contexts",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("session_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_contexts_tenant_id_tenants")
        ),
        sa.ForeignKeyConstraint(
            ["session_id"],
            ["sessions.id"],
            name=op.f("fk_contexts_session_id_sessions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_contexts")),
    )
    op.create_index(op.f("ix_contexts_session_id"), "contexts", ["session_id"], unique=False)
    op.create_index(
        "ix_contexts_tenant_id_created_at",
        "contexts",
        ["tenant_id", "created_at", "id"],
        unique=False,
    )
