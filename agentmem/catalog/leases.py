"""Leases: who may extend a session's log. Every write of a turn carries the lease's generation."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from agentmem.catalog import tables
from agentmem.catalog.ids import now_us
from agentmem.catalog.records import Lease
from agentmem.core import SessionId, TenantId


class Leases:
    """Statements on `leases`; see `database.Transaction`. A session's row is made with it."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def acquire(
        self, tenant_id: TenantId, session_id: SessionId, owner: str, *, seconds: float
    ) -> Lease | None:
        """Takes a free or expired lease with the next generation; None when it is held."""
        table = tables.leases
        now = now_us()
        expires_at = now + int(seconds * 1e6)
        row = (
            await self._connection.execute(
                update(table)
                .where(
                    table.c.session_id == session_id,
                    table.c.tenant_id == tenant_id,
                    table.c.owner.is_(None) | (table.c.expires_at <= now),
                )
                .values(owner=owner, generation=table.c.generation + 1, expires_at=expires_at)
                .returning(table.c.generation)
            )
        ).first()
        if row is None:
            return None
        return Lease(tenant_id, session_id, owner, row.generation, expires_at)

    async def find(
        self, tenant_id: TenantId, session_id: SessionId, *, lock: bool = False
    ) -> Lease | None:
        """The lease in force, if any. With `lock` none is taken before the transaction ends."""
        table = tables.leases
        query = select(table).where(
            table.c.session_id == session_id, table.c.tenant_id == tenant_id
        )
        if lock:
            query = query.with_for_update()
        row = (await self._connection.execute(query)).first()
        if row is None or row.owner is None or row.expires_at <= now_us():
            return None
        return Lease(**row._mapping)

    async def held(self, tenant_id: TenantId, session_ids: Sequence[SessionId]) -> set[SessionId]:
        """Those of the sessions whose lease is in force."""
        table = tables.leases
        rows = await self._connection.execute(
            select(table.c.session_id).where(
                table.c.session_id.in_(session_ids),
                table.c.tenant_id == tenant_id,
                table.c.owner.is_not(None),
                table.c.expires_at > now_us(),
            )
        )
        return {SessionId(row.session_id) for row in rows}

    async def is_current(self, lease: Lease) -> bool:
        """Whether no newer generation took over. Locks the row where the database can.

        An expired lease that nobody took is still ours: the generation is what fences.
        """
        table = tables.leases
        row = (
            await self._connection.execute(
                select(table.c.owner, table.c.generation)
                .where(
                    table.c.session_id == lease.session_id,
                    table.c.tenant_id == lease.tenant_id,
                )
                .with_for_update()
            )
        ).first()
        return row is not None and (row.owner, row.generation) == (lease.owner, lease.generation)

    async def renew(self, session_ids: Sequence[SessionId], owner: str, *, seconds: float) -> int:
        """Extends those of the leases that are still the owner's; returns how many.

        Operators' function: the owner is a gateway, whatever tenants its sessions are of.
        """
        table = tables.leases
        result = await self._connection.execute(
            update(table)
            .where(table.c.owner == owner, table.c.session_id.in_(session_ids))
            .values(expires_at=now_us() + int(seconds * 1e6))
        )
        return result.rowcount

    async def release(self, lease: Lease) -> bool:
        """Lets go; False when a newer generation had taken over."""
        table = tables.leases
        result = await self._connection.execute(
            update(table)
            .where(
                table.c.session_id == lease.session_id,
                table.c.tenant_id == lease.tenant_id,
                table.c.owner == lease.owner,
                table.c.generation == lease.generation,
            )
            .values(owner=None, expires_at=0)
        )
        return result.rowcount == 1

    async def owners(self) -> list[str]:
        """Every owner that holds a lease. Operators' function."""
        table = tables.leases
        rows = await self._connection.execute(
            select(table.c.owner).where(table.c.owner.is_not(None)).distinct()
        )
        return [row.owner for row in rows]

    async def release_owner(self, owner: str) -> int:
        """Frees the leases of an owner known to be dead. Operators' function."""
        table = tables.leases
        result = await self._connection.execute(
            update(table).where(table.c.owner == owner).values(owner=None, expires_at=0)
        )
        return result.rowcount
