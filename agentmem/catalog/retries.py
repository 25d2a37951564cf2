"""Which answer a request got, for when it comes again."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from agentmem.catalog import tables
from agentmem.catalog.ids import now_us
from agentmem.catalog.locks import lock_name
from agentmem.catalog.records import RetryRecord
from agentmem.core import TenantId

_CANDIDATES_MAX = 100


class Retries:
    """Statements on `retries`; see `database.Transaction`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def insert(self, record: RetryRecord) -> None:
        """Notes an answer."""
        await self._connection.execute(insert(tables.retries), asdict(record))

    async def find(
        self, tenant_id: TenantId, api_key_id: str, request_key: str
    ) -> list[RetryRecord]:
        """Answers to this request that are still valid, oldest first."""
        table = tables.retries
        rows = await self._connection.execute(
            select(table)
            .where(
                table.c.tenant_id == tenant_id,
                table.c.api_key_id == api_key_id,
                table.c.request_key == request_key,
                table.c.expires_at > now_us(),
            )
            .order_by(table.c.created_at, table.c.id)
            .limit(_CANDIDATES_MAX)
        )
        return [RetryRecord(**row._mapping) for row in rows]

    async def lock(self, tenant_id: TenantId, api_key_id: str, request_key: str) -> None:
        """Has others that answer the same request wait until the transaction ends."""
        await lock_name(self._connection, f"retry {tenant_id} {api_key_id} {request_key}")

    async def take(self, record: RetryRecord, attempt: int) -> bool:
        """Notes that attempt number `attempt` got this answer; False: another one was quicker."""
        table = tables.retries
        result = await self._connection.execute(
            update(table)
            .where(table.c.id == record.id, table.c.attempt == record.attempt)
            .values(attempt=attempt)
        )
        return result.rowcount == 1
