"""Usage events: one per turn that ran, never changed, never deleted with what they count."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from agentmem.catalog import tables
from agentmem.catalog.records import UsageEvent
from agentmem.core import TenantId

# Made once: building a statement takes longer than running it.
_INSERT = insert(tables.usage_events)


class UsageEvents:
    """Statements on `usage_events`; see `database.Transaction`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def insert(self, event: UsageEvent) -> None:
        """Writes one event; a second one for the same turn is an IntegrityError."""
        values = asdict(event)
        values["read_by_tier"] = dict(event.read_by_tier)
        await self._connection.execute(_INSERT, values)

    async def list(self, tenant_id: TenantId, *, limit: int = 1_000) -> list[UsageEvent]:
        """A tenant's events, oldest first."""
        table = tables.usage_events
        rows = await self._connection.execute(
            select(table)
            .where(table.c.tenant_id == tenant_id)
            .order_by(table.c.created_at, table.c.id)
            .limit(limit)
        )
        return [UsageEvent(**row._mapping) for row in rows]

    async def count(self, tenant_id: TenantId) -> int:
        """How many events a tenant has."""
        table = tables.usage_events
        query = select(func.count()).select_from(table).where(table.c.tenant_id == tenant_id)
        return int((await self._connection.execute(query)).scalar_one())
