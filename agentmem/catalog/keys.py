"""API keys, by the prefix that they show; the secret part is stored as an HMAC only."""

from __future__ import annotations

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from agentmem.catalog import tables
from agentmem.catalog.ids import new_id, now_us
from agentmem.catalog.records import ApiKey
from agentmem.core import TenantId


class Keys:
    """Statements on `api_keys`; see `database.Transaction`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def create(
        self, tenant_id: TenantId, *, name: str, prefix: str, key_hash: bytes
    ) -> ApiKey:
        """Stores a key's HMAC (32 bytes) under its prefix."""
        key = ApiKey(new_id("key"), tenant_id, name, prefix, key_hash, now_us())
        await self._connection.execute(
            insert(tables.api_keys).values(
                id=key.id,
                tenant_id=tenant_id,
                name=name,
                prefix=prefix,
                hash=key_hash,
                created_at=key.created_at,
            )
        )
        return key

    async def find_by_prefix(self, prefix: str) -> ApiKey | None:
        """The key that shows this prefix, revoked or not. Operators' function: it is how a
        caller's tenant is found out in the first place."""
        table = tables.api_keys
        row = (
            await self._connection.execute(select(table).where(table.c.prefix == prefix))
        ).first()
        return None if row is None else ApiKey(**row._mapping)

    async def list(self, tenant_id: TenantId) -> list[ApiKey]:
        """A tenant's keys, oldest first."""
        table = tables.api_keys
        rows = await self._connection.execute(
            select(table).where(table.c.tenant_id == tenant_id).order_by(table.c.created_at)
        )
        return [ApiKey(**row._mapping) for row in rows]

    async def revoke(self, tenant_id: TenantId, key_id: str) -> bool:
        """Whether such a key was there and not yet revoked."""
        table = tables.api_keys
        result = await self._connection.execute(
            update(table)
            .where(
                table.c.id == key_id,
                table.c.tenant_id == tenant_id,
                table.c.revoked_at.is_(None),
            )
            .values(revoked_at=now_us())
        )
        return result.rowcount == 1
