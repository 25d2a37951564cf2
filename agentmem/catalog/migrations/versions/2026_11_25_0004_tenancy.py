"""Projects; scopes, expiry, rotation and last use of API keys; suspension; the audit log.

Revises: 0003
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_TABLES_WITH_PROJECT = ("api_keys", "sessions", "responses", "usage_events")


def _new_columns() -> dict[str, tuple[sa.Column[Any], ...]]:
    legacy = "inference sessions:read"
    return {
        "tenants": (sa.Column("suspended_at", sa.BigInteger(), nullable=True),),
        "api_keys": (
            sa.Column("scopes", sa.String(length=200), nullable=False, server_default=legacy),
            sa.Column("expires_at", sa.BigInteger(), nullable=True),
            sa.Column("last_used_at", sa.BigInteger(), nullable=True),
            sa.Column("rotated_from", sa.String(length=40), nullable=True),
        ),
    }


def upgrade() -> None:
    for table, columns in _new_columns().items():
        for column in columns:
            op.add_column(table, column)
    for table in _TABLES_WITH_PROJECT:
        # Null reads as the default project: rows of large tables are left as they are.
        op.add_column(table, sa.Column("project_id", sa.String(length=40), nullable=True))
    op.create_table(
        "projects",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_projects_tenant_id_tenants")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_projects")),
        sa.UniqueConstraint("tenant_id", "name", name=op.f("uq_projects_tenant_id")),
    )
    op.execute(
        "INSERT INTO projects (id, tenant_id, name, created_at) "
        "SELECT 'prj_' || substr(id, 5), id, 'default', created_at FROM tenants"
    )
    _create_audit()


def downgrade() -> None:
    _drop_audit()
    op.drop_table("projects")
    for table in _TABLES_WITH_PROJECT:
        op.drop_column(table, "project_id")
    for table, columns in _new_columns().items():
        for column in columns:
            op.drop_column(table, column.name)


def _create_audit() -> None:
    op.create_table(
        "audit_log",
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(length=120), nullable=False),
        sa.Column("action", sa.String(length=60), nullable=False),
        sa.Column("target", sa.String(length=120), nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=True),
        sa.Column("details", sa.Text(), nullable=False),
        sa.Column("previous_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("hash", sa.LargeBinary(length=32), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_audit_log")),
    )
    for column in ("action", "target", "tenant_id"):
        op.create_index(op.f(f"ix_audit_log_{column}"), "audit_log", [column], unique=False)
    head = op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(length=32), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_head")),
    )
    op.bulk_insert(head, [{"id": 1, "sequence": 0, "hash": bytes(32)}])
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("update", "delete"):
            op.execute(
                f"CREATE TRIGGER audit_log_no_{verb} BEFORE {verb.upper()} ON audit_log BEGIN "
                "SELECT RAISE(ABORT, 'the audit log is append-only'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION audit_log_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the audit log is append-only' "
        "USING ERRCODE = 'integrity_constraint_violation'; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_log_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_log_refuse()"
    )


def _drop_audit() -> None:
    op.drop_table("audit_log")
    op.drop_table("audit_head")
    if op.get_bind().dialect.name != "sqlite":
        op.execute("DROP FUNCTION audit_log_refuse()")
