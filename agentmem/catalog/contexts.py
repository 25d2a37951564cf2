"""Contexts: beginnings that many sessions share, each the log of a session of its own."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import insert, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from agentmem.catalog import tables
from agentmem.catalog.records import ContextRecord
from agentmem.core import TenantId
from agentmem.errors import InvalidRequest, NotFound


class Contexts:
    """Statements on `contexts`; see `database.Transaction`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def insert(self, context: ContextRecord) -> None:
        """Writes a context's row; its session exists already."""
        values = asdict(context)
        values["metadata"] = dict(context.metadata)
        await self._connection.execute(insert(tables.contexts).values(**values))

    async def get(self, tenant_id: TenantId, context_id: str) -> ContextRecord:
        """Raises NotFound for unknown ids and those of other tenants alike."""
        table = tables.contexts
        row = (
            await self._connection.execute(
                select(table).where(table.c.id == context_id, table.c.tenant_id == tenant_id)
            )
        ).first()
        if row is None:
            raise NotFound("context", context_id)
        return ContextRecord(**row._mapping)

    async def list(
        self, tenant_id: TenantId, *, after: str | None, limit: int, descending: bool = True
    ) -> list[ContextRecord]:
        """Up to `limit` contexts by creation. Raises InvalidRequest for an unknown `after`."""
        table = tables.contexts
        order = tuple_(table.c.created_at, table.c.id)
        query = select(table).where(table.c.tenant_id == tenant_id)
        if after is not None:
            try:
                mark = await self.get(tenant_id, after)
            except NotFound as error:
                raise InvalidRequest(
                    f"No context with id {after!r} to go on after.", param="after"
                ) from error
            position = tuple_(mark.created_at, mark.id)
            query = query.where(order < position if descending else order > position)
        columns = (table.c.created_at, table.c.id)
        query = query.order_by(*((c.desc() for c in columns) if descending else columns))
        rows = await self._connection.execute(query.limit(limit))
        return [ContextRecord(**row._mapping) for row in rows]
