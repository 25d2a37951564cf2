"""An index of the few sessions whose pages are not durable yet, built beside running gateways.

Revises: 0005
"""

from __future__ import annotations

from agentmem.catalog.migrations import online

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_INDEX = "ix_sessions_behind"
_BEHIND = "durable_position < (tokens - 1) / page_tokens * page_tokens"


def upgrade() -> None:
    online.create_index(_INDEX, "sessions", ["state", "updated_at", "id"], where=_BEHIND)


def downgrade() -> None:
    online.drop_index(_INDEX, "sessions")
