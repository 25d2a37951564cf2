"""Sliding windows: what a tenant used of a limit in this window of time and in the one before.

A hit is one statement, which adds and checks at once, so that any number of gateways count alike.
The use is the current window's, plus the previous one's as far as it still reaches into the last
`size_us` microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import (
    BigInteger,
    CursorResult,
    bindparam,
    case,
    delete,
    literal,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from agentmem.catalog.plantables import rate_counters
from agentmem.catalog.upserts import upsert
from agentmem.core import TenantId

_COLUMN = rate_counters.c


@dataclass(frozen=True, slots=True)
class Window:
    """What was used: in the window that began at `window_at`, and in the one before it."""

    window_at: int
    current: int
    previous: int

    def used(self, now_us: int, size_us: int) -> int:
        """Of the last `size_us` microseconds, rounded down."""
        left = min(size_us, max(0, self.window_at + size_us - now_us))
        return self.previous * left // size_us + self.current


def window_start(now_us: int, size_us: int) -> int:
    """When the window began that a time is in."""
    return now_us - now_us % size_us


class Counters:
    """Statements on `rate_counters`; see `database.Transaction`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def hit(
        self, tenant_id: TenantId, name: str, *, amount: int, limit: int, now_us: int, size_us: int
    ) -> Window | None:
        """Adds `amount` if the use is then no more than `limit`; None: it would be, nothing is
        added. Atomic: one statement."""
        if amount > limit:
            return None
        start = window_start(now_us, size_us)
        window_at, current, previous = _rolled(start, size_us)
        left = literal(start + size_us - now_us, BigInteger)
        used = previous * left // literal(size_us, BigInteger) + current
        statement = (
            upsert(self._connection, rate_counters)
            .values(tenant_id=tenant_id, name=name, window_at=start, current=amount, previous=0)
            .on_conflict_do_update(
                index_elements=["tenant_id", "name"],
                set_={"window_at": window_at, "current": current + amount, "previous": previous},
                where=used + literal(amount, BigInteger) <= literal(limit, BigInteger),
            )
            .returning(_COLUMN.window_at, _COLUMN.current, _COLUMN.previous)
        )
        row = (await self._connection.execute(statement)).first()
        return None if row is None else Window(*row)

    async def adjust(
        self, tenant_id: TenantId, name: str, *, amount: int, hit_at: int, size_us: int
    ) -> None:
        """Corrects by `amount` (may be negative) what a hit in the window `hit_at` added, wherever
        that window is by now. Never below 0."""
        after = hit_at + size_us

        def corrected(column: Any) -> Any:
            total = column + literal(amount, BigInteger)
            return case((total < 0, literal(0, BigInteger)), else_=total)

        await self._connection.execute(
            update(rate_counters)
            .where(_COLUMN.tenant_id == tenant_id, _COLUMN.name == name)
            .values(
                current=case(
                    (_COLUMN.window_at == hit_at, corrected(_COLUMN.current)),
                    else_=_COLUMN.current,
                ),
                previous=case(
                    (_COLUMN.window_at == after, corrected(_COLUMN.previous)),
                    else_=_COLUMN.previous,
                ),
            )
        )

    async def get(self, tenant_id: TenantId, name: str, *, now_us: int, size_us: int) -> Window:
        """What was used, as of now."""
        start = window_start(now_us, size_us)
        window_at, current, previous = _rolled(start, size_us)
        query = select(window_at, current, previous).where(
            _COLUMN.tenant_id == tenant_id, _COLUMN.name == name
        )
        row = (await self._connection.execute(query)).first()
        return Window(start, 0, 0) if row is None else Window(*row)

    async def clear(self, tenant_id: TenantId, name: str | None = None) -> int:
        """Forgets a counter of the tenant, or all of them; returns how many."""
        statement = delete(rate_counters).where(_COLUMN.tenant_id == tenant_id)
        if name is not None:
            statement = statement.where(_COLUMN.name == name)
        result = await self._connection.execute(statement)
        return cast("CursorResult[Any]", result).rowcount

    async def sweep(self, *, before_us: int) -> int:
        """Deletes counters whose window began before then; returns how many.

        Operators' function."""
        old = _COLUMN.window_at < bindparam("before", before_us, BigInteger)
        result = await self._connection.execute(delete(rate_counters).where(old))
        return cast("CursorResult[Any]", result).rowcount


def _rolled(start: int, size_us: int) -> tuple[Any, Any, Any]:
    """Window, current and previous as they are in the window that begins at `start`.

    A row that is ahead was written by a gateway whose clock is: it holds.
    """
    at, zero = literal(start, BigInteger), literal(0, BigInteger)
    here = _COLUMN.window_at >= at
    before = _COLUMN.window_at == literal(start - size_us, BigInteger)
    window_at = case((here, _COLUMN.window_at), else_=at)
    current = case((here, _COLUMN.current), else_=zero)
    previous = case((here, _COLUMN.previous), (before, _COLUMN.current), else_=zero)
    return window_at, current, previous
