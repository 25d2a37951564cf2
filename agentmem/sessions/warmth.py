"""How much of a session's log a worker will have to fetch: what admission counts."""

from __future__ import annotations

from agentmem.catalog.records import Session
from agentmem.router.registry import Assignment


def tokens_to_load(session: Session, assignment: Assignment, keep: int) -> int:
    """Tokens of the log's first `keep` that probably come from below the worker's own memory.

    A fork finds what its parent left in HBM.
    """
    warm = assignment.warm
    if session.id in warm or session.parent_session_id in warm:
        return 0
    return min(session.durable_position, keep)
