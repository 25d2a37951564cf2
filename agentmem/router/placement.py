"""Where a turn runs: a pure choice among the workers of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agentmem.catalog.records import Worker
from agentmem.core import WorkerId


def is_ready(worker: Worker, *, now_us: int, silence_seconds_max: float) -> bool:
    """Ready and heard of lately: a worker that died without a word stays "ready" in its row."""
    return worker.state == "ready" and now_us - worker.heartbeat_at <= silence_seconds_max * 1e6


def choose_worker(
    ready: Sequence[Worker], *, last: WorkerId | None, running: Mapping[WorkerId, int]
) -> Worker | None:
    """The session's last worker when it is ready (its HBM may still hold the pages), else the one
    with the fewest running turns, by id among equals. None when no worker is ready."""
    for worker in ready:
        if worker.id == last:
            return worker
    return min(ready, key=lambda worker: (running.get(worker.id, 0), worker.id), default=None)
