"""What time does to rows, whatever tenant they are of: operators' functions, each bounded.

Every query walks an index from its oldest entry on and reads no more than `limit` rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import ColumnElement, CursorResult, delete, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from agentmem.catalog import tables
from agentmem.catalog.records import Session
from agentmem.core import SessionId, TenantId


class Lapsing:
    """Statements of the loops that look for what is due; see `database.Transaction`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def active(
        self, *, before_us: int, after: Session | None = None, behind: bool = False, limit: int
    ) -> list[Session]:
        """Active sessions last changed before a time, oldest first, from after `after` on.

        `behind`: only those of whose log not all that can be durable is known to be.
        """
        table = tables.sessions
        order = tuple_(table.c.updated_at, table.c.id)
        query = select(table).where(table.c.state == "active", table.c.updated_at < before_us)
        if after is not None:
            query = query.where(order > tuple_(after.updated_at, after.id))
        if behind:
            query = query.where(tables.BEHIND)
        query = query.order_by(table.c.updated_at, table.c.id).limit(limit)
        return [Session(**row._mapping) for row in await self._connection.execute(query)]

    async def owners(self, session_ids: Sequence[str]) -> list[tuple[TenantId, SessionId]]:
        """Which of these are sessions, and whose. At most 500 at once."""
        table = tables.sessions
        query = select(table.c.tenant_id, table.c.id).where(table.c.id.in_(session_ids))
        rows = await self._connection.execute(query)
        return [(TenantId(row.tenant_id), SessionId(row.id)) for row in rows]

    async def expired(self, now_us: int, *, limit: int) -> list[tuple[TenantId, SessionId]]:
        """Sessions whose log's term is over, longest over first."""
        table = tables.sessions
        rows = await self._connection.execute(
            select(table.c.tenant_id, table.c.id)
            .where(table.c.expires_at <= now_us)
            .order_by(table.c.expires_at)
            .limit(limit)
        )
        return [(TenantId(row.tenant_id), SessionId(row.id)) for row in rows]

    async def set_hibernated(self, session: Session, *, position: int) -> bool:
        """Notes that an idle session is durable up to `position` tokens and off the GPU.

        It does not count as a change of the session; False when there was one meanwhile.
        """
        table = tables.sessions
        result = await self._connection.execute(
            update(table)
            .where(
                table.c.id == session.id,
                table.c.tenant_id == session.tenant_id,
                table.c.state == "active",
                table.c.updated_at == session.updated_at,
                table.c.head_turn_id.is_(None)
                if session.head_turn_id is None
                else table.c.head_turn_id == session.head_turn_id,
            )
            .values(state="hibernated", durable_position=position)
        )
        return result.rowcount == 1

    async def expire_responses(self, now_us: int, *, limit: int) -> int:
        """Deletes response objects, with their items, whose term is over; returns how many.

        Those of a conversation are kept as long as it: their items are its history.
        """
        table, session = tables.responses, tables.sessions
        rows = (
            await self._connection.execute(
                select(table.c.id, session.c.expires_at.label("until"))
                .outerjoin(
                    session,
                    (session.c.id == table.c.session_id) & table.c.conversation_id.is_not(None),
                )
                .where(table.c.expires_at <= now_us)
                .order_by(table.c.expires_at)
                .limit(limit)
                # What another gateway is about to delete is not waited for.
                .with_for_update(of=table, skip_locked=True)
            )
        ).all()
        over = [row.id for row in rows if row.until is None or row.until <= now_us]
        for row in rows:
            if row.until is not None and row.until > now_us:
                await self._connection.execute(
                    update(table).where(table.c.id == row.id).values(expires_at=row.until)
                )
        return await self._delete(table.c.id, over)

    async def expire_retries(self, now_us: int, *, limit: int) -> int:
        """Forgets answers to requests that may not come again any more; returns how many."""
        table = tables.retries
        rows = await self._connection.execute(
            select(table.c.id)
            .where(table.c.expires_at <= now_us)
            .order_by(table.c.expires_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        return await self._delete(table.c.id, [row.id for row in rows])

    async def _delete(self, column: ColumnElement[Any], ids: list[str]) -> int:
        if not ids:
            return 0
        result = await self._connection.execute(delete(column.table).where(column.in_(ids)))
        return cast("CursorResult[Any]", result).rowcount
