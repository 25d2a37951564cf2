"""Where a session's pages probably are, judged from its row alone: no question, no waiting."""

from __future__ import annotations

from agentmem.catalog.records import Session, Worker


def is_warm(session: Session, worker: Worker) -> bool:
    """Whether the session last ran on this very start of the worker and was not hibernated."""
    return session.state == "active" and (session.worker_id, session.worker_generation) == (
        worker.id,
        worker.generation,
    )


def tokens_to_load(session: Session, worker: Worker, keep: int) -> int:
    """Tokens of the log that the worker will probably fetch from below its own memory."""
    return 0 if is_warm(session, worker) else min(session.durable_position, keep)
