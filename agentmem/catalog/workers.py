"""Workers: written by worker processes, read by gateways. Each is an operators' function."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from agentmem.catalog import tables
from agentmem.catalog.ids import now_us
from agentmem.catalog.records import WORKER_STATES, Worker
from agentmem.core import Fingerprint, WorkerId


class Workers:
    """Statements on `workers`; see `database.Transaction`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def register(self, worker: Worker) -> int:
        """Writes a worker's row at its start; returns the new generation (1 the first time).

        `worker.generation` and `worker.heartbeat_at` are ignored: the catalog sets them.
        """
        values = _values(worker)
        table = tables.workers
        row = (
            await self._connection.execute(
                update(table)
                .where(table.c.id == worker.id)
                .values(**values, generation=table.c.generation + 1)
                .returning(table.c.generation)
            )
        ).first()
        if row is not None:
            return int(row.generation)
        await self._connection.execute(insert(table).values(id=worker.id, generation=1, **values))
        return 1

    async def update(self, worker: Worker) -> bool:
        """Overwrites the row of the same generation; False when a newer start replaced it."""
        table = tables.workers
        result = await self._connection.execute(
            update(table)
            .where(table.c.id == worker.id, table.c.generation == worker.generation)
            .values(**_values(worker))
        )
        return result.rowcount == 1

    async def heartbeat(
        self, worker_id: WorkerId, generation: int, *, state: str, detail: str = ""
    ) -> bool:
        """Says that the worker lives and in which state; False when a newer start replaced it."""
        _check_state(state)
        table = tables.workers
        result = await self._connection.execute(
            update(table)
            .where(table.c.id == worker_id, table.c.generation == generation)
            .values(state=state, detail=detail, heartbeat_at=now_us())
        )
        return result.rowcount == 1

    async def get(self, worker_id: WorkerId) -> Worker | None:
        """One worker, in whatever state."""
        table = tables.workers
        row = (await self._connection.execute(select(table).where(table.c.id == worker_id))).first()
        return None if row is None else _worker(row)

    async def list(self) -> list[Worker]:
        """All workers, dead ones too, by id."""
        rows = await self._connection.execute(select(tables.workers).order_by(tables.workers.c.id))
        return [_worker(row) for row in rows]

    async def remove(self, worker_id: WorkerId) -> None:
        """Forgets a worker for good."""
        table = tables.workers
        await self._connection.execute(delete(table).where(table.c.id == worker_id))


def _check_state(state: str) -> None:
    if state not in WORKER_STATES:
        raise ValueError(f"a worker's state is one of {', '.join(WORKER_STATES)}, not {state!r}")


def _values(worker: Worker) -> dict[str, Any]:
    _check_state(worker.state)
    return {
        "url": worker.url,
        "model": worker.model,
        "model_path": worker.model_path,
        "fingerprint": worker.fingerprint.digest.hex(),
        "fingerprint_fields": dict(worker.fingerprint.fields),
        "page_tokens": worker.page_tokens,
        "context_tokens": worker.context_tokens,
        "kv_bytes_per_token": worker.kv_bytes_per_token,
        "hbm_tokens": worker.hbm_tokens,
        "host_pool_tokens": worker.host_pool_tokens,
        "node_socket": worker.node_socket,
        "state": worker.state,
        "pid": worker.pid,
        "detail": worker.detail,
        "parser_address": worker.parser_address,
        "tool_parser": worker.tool_parser,
        "reasoning_parser": worker.reasoning_parser,
        "heartbeat_at": now_us(),
    }


def _worker(row: Row[Any]) -> Worker:
    fields = dict(row._mapping)
    digest = bytes.fromhex(fields.pop("fingerprint"))
    described = fields.pop("fingerprint_fields")
    return Worker(fingerprint=Fingerprint(digest, described), **fields)
