"""Slots of running turns, and counts of what a tenant has: for limits that hold on all gateways.

A slot expires unless it is renewed, so that those of a dead gateway come back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from sqlalchemy import ColumnElement, CursorResult, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from agentmem.catalog import tables
from agentmem.catalog.plantables import turn_slots
from agentmem.core import TenantId

_ARCHIVE = "archive"


@dataclass(frozen=True, slots=True)
class Slot:
    """A turn that runs: whether its commit makes a session, and what it will promise (tokens)."""

    id: str
    tenant_id: TenantId
    makes_session: int
    promised_tokens: int
    promised_tier: str
    expires_at: int


@dataclass(frozen=True, slots=True)
class Running:
    """What the tenant's running turns take: turns, sessions to be made, tokens by tier."""

    turns: int
    sessions: int
    disk_tokens: int
    object_tokens: int


class Slots:
    """Statements on `turn_slots`, and bounded counts; see `database.Transaction`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def take(self, slot: Slot) -> None:
        """Writes a slot. Whoever counts first holds the tenant's lock (`Plans.lock`)."""
        await self._connection.execute(insert(turn_slots), asdict(slot))

    async def free(self, tenant_id: TenantId, slot_id: str) -> bool:
        """Whether the slot was there."""
        result = await self._connection.execute(
            delete(turn_slots).where(
                turn_slots.c.id == slot_id, turn_slots.c.tenant_id == tenant_id
            )
        )
        return cast("CursorResult[Any]", result).rowcount == 1

    async def running(self, tenant_id: TenantId, *, now_us: int) -> Running:
        """What the slots say that have not expired."""
        slot = turn_slots.c

        def tokens(tier: str) -> ColumnElement[Any]:
            of_tier = func.sum(slot.promised_tokens).filter(slot.promised_tier == tier)
            return func.coalesce(of_tier, 0)

        query = select(
            func.count(),
            func.coalesce(func.sum(slot.makes_session), 0),
            tokens("disk"),
            tokens("object"),
        ).where(slot.tenant_id == tenant_id, slot.expires_at > now_us)
        row = (await self._connection.execute(query)).one()
        return Running(*(int(value) for value in row))

    async def renew(self, slot_ids: Sequence[str], *, expires_at: int) -> int:
        """Extends slots that are still there; returns how many.

        Operators' function: they are a gateway's, whatever tenants its turns are of."""
        result = await self._connection.execute(
            update(turn_slots).where(turn_slots.c.id.in_(slot_ids)).values(expires_at=expires_at)
        )
        return cast("CursorResult[Any]", result).rowcount

    async def sweep(self, *, now_us: int) -> int:
        """Deletes what has expired; returns how many. Operators' function."""
        result = await self._connection.execute(
            delete(turn_slots).where(turn_slots.c.expires_at <= now_us)
        )
        return cast("CursorResult[Any]", result).rowcount

    async def sessions(self, tenant_id: TenantId, *, at_most: int) -> int:
        """How many sessions the tenant has, contexts' aside; counts no further than `at_most`."""
        table = tables.sessions
        some = (
            select(table.c.id)
            .where(table.c.tenant_id == tenant_id, table.c.origin != "context")
            .limit(at_most)
        )
        query = select(func.count()).select_from(some.subquery())
        return int((await self._connection.execute(query)).scalar_one())

    async def contexts(self, tenant_id: TenantId, *, at_most: int) -> int:
        """How many contexts the tenant has; counts no further than `at_most`."""
        table = tables.contexts
        some = select(table.c.id).where(table.c.tenant_id == tenant_id).limit(at_most)
        query = select(func.count()).select_from(some.subquery())
        return int((await self._connection.execute(query)).scalar_one())

    async def promised_tokens(self, tenant_id: TenantId, *, now_us: int) -> tuple[int, int]:
        """Tokens of logs whose KV's term has not ended: on disk, and in the object tier only
        (class archive). Reads all of the tenant's sessions."""
        table = tables.sessions
        archived = func.coalesce(table.c.retention, "") == _ARCHIVE
        until = table.c.updated_at + table.c.kv_retention_seconds * 1_000_000
        query = select(
            func.coalesce(func.sum(table.c.tokens).filter(~archived), 0),
            func.coalesce(func.sum(table.c.tokens).filter(archived), 0),
        ).where(table.c.tenant_id == tenant_id, until > now_us)
        row = (await self._connection.execute(query)).one()
        return int(row[0]), int(row[1])
