"""Claims that node agents have yet to drop: written with the deletion, worked off later."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from agentmem.catalog import tables
from agentmem.catalog.ids import new_id, now_us
from agentmem.catalog.records import PendingUnclaim
from agentmem.core import PAGE_KEY_BYTES, TenantId


class Unclaims:
    """Statements on `pending_unclaims`; see `database.Transaction`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, tenant_id: TenantId, claim_id: str, keys: Sequence[bytes]) -> str:
        """Remembers page keys (48 bytes each) to let go of; returns the row's id."""
        unclaim_id = new_id("unc")
        await self._connection.execute(
            insert(tables.pending_unclaims),
            {
                "id": unclaim_id,
                "tenant_id": tenant_id,
                "claim_id": claim_id,
                "keys": zlib.compress(b"".join(keys), 1),
                "attempts": 0,
                "created_at": now_us(),
                "retry_at": now_us(),
            },
        )
        return unclaim_id

    async def due(self, *, limit: int = 50) -> list[PendingUnclaim]:
        """Rows whose next attempt is due, oldest first. Operators' function."""
        table = tables.pending_unclaims
        rows = await self._connection.execute(
            select(table)
            .where(table.c.retry_at <= now_us())
            .order_by(table.c.retry_at)
            .limit(limit)
        )
        return [
            PendingUnclaim(
                row.id, TenantId(row.tenant_id), row.claim_id, _split(row.keys), row.attempts
            )
            for row in rows
        ]

    async def count(self) -> int:
        """Rows that are left. Operators' function."""
        query = select(func.count()).select_from(tables.pending_unclaims)
        return int((await self._connection.execute(query)).scalar_one())

    async def done(self, unclaim_id: str) -> None:
        """The agent has let go. Operators' function."""
        table = tables.pending_unclaims
        await self._connection.execute(delete(table).where(table.c.id == unclaim_id))

    async def postpone(self, unclaim_id: str, *, seconds: float) -> None:
        """The agent did not answer; try again later. Operators' function."""
        table = tables.pending_unclaims
        await self._connection.execute(
            update(table)
            .where(table.c.id == unclaim_id)
            .values(attempts=table.c.attempts + 1, retry_at=now_us() + int(seconds * 1e6))
        )


def _split(blob: bytes) -> tuple[bytes, ...]:
    raw = zlib.decompress(blob)
    return tuple(raw[i : i + PAGE_KEY_BYTES] for i in range(0, len(raw), PAGE_KEY_BYTES))
