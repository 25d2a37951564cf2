"""An index of sessions by project, built beside running gateways.

Revises: 0004
"""

from __future__ import annotations

from agentmem.catalog.migrations import online

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_INDEX = "ix_sessions_project_id_created_at"


def upgrade() -> None:
    online.create_index(_INDEX, "sessions", ["project_id", "created_at", "id"])


def downgrade() -> None:
    online.drop_index(_INDEX, "sessions")
