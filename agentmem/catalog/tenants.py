"""Tenants. Each is an operators' function: a tenant cannot name another one."""

from __future__ import annotations

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from agentmem.catalog import tables
from agentmem.catalog.ids import new_id, now_us
from agentmem.catalog.records import Tenant
from agentmem.core import TenantId
from agentmem.errors import InvalidRequest, NotFound


class Tenants:
    """Statements on `tenants`; see `database.Transaction`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def create(self, name: str) -> Tenant:
        """Raises InvalidRequest when the name is empty, too long or taken."""
        if not name.strip() or len(name) > 200 or "\x00" in name:
            raise InvalidRequest("A tenant's name has 1 to 200 characters.", param="name")
        if await self.find(name) is not None:
            raise InvalidRequest(f"A tenant named {name!r} exists.", param="name")
        tenant = Tenant(id=TenantId(new_id("ten")), name=name, created_at=now_us())
        await self._connection.execute(
            insert(tables.tenants).values(
                id=tenant.id, name=tenant.name, created_at=tenant.created_at
            )
        )
        return tenant

    async def find(self, name_or_id: str) -> Tenant | None:
        """A tenant by its name or id."""
        table = tables.tenants
        row = (
            await self._connection.execute(
                select(table).where((table.c.name == name_or_id) | (table.c.id == name_or_id))
            )
        ).first()
        return None if row is None else Tenant(**row._mapping)

    async def get(self, name_or_id: str) -> Tenant:
        """As `find`, but raises NotFound."""
        tenant = await self.find(name_or_id)
        if tenant is None:
            raise NotFound("tenant", name_or_id)
        return tenant

    async def list(self) -> list[Tenant]:
        """All tenants, oldest first."""
        rows = await self._connection.execute(
            select(tables.tenants).order_by(tables.tenants.c.created_at, tables.tenants.c.id)
        )
        return [Tenant(**row._mapping) for row in rows]
