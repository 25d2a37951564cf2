"""Attempts to sign in, by account and by address, over all gateways.

Each is an operators' function.
"""

from __future__ import annotations

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from agentmem.catalog import admin_tables as tables
from agentmem.catalog.ids import now_us
from agentmem.catalog.upserts import upsert

FORGET_US = 24 * 3_600 * 1_000_000
_DELAY_FIRST_US = 1_000_000
_DELAY_MAX_US = 300_000_000


class Attempts:
    """Statements on `sign_in_attempts`; see `database.Transaction`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def begin(self, subject: str, *, free: int) -> int:
        """Counts an attempt as failed ahead, so that many at once count, too; returns how long to
        wait (microseconds) before there is another: above 0, this one may not be made and did not
        count. After `free` of them the wait doubles, from 1 s to 5 minutes; a day forgets them.
        """
        table, now = tables.sign_in_attempts, now_us()
        await self._connection.execute(
            upsert(self._connection, table)
            .values(subject=subject, failures=0, last_at=now, blocked_until=0)
            .on_conflict_do_nothing(index_elements=["subject"])
        )
        row = (
            await self._connection.execute(
                select(table).where(table.c.subject == subject).with_for_update()
            )
        ).one()
        if row.blocked_until > now:
            return int(row.blocked_until - now)
        failures = 1 if row.last_at < now - FORGET_US else row.failures + 1
        over = failures - free
        # The exponent is bounded: the wait is at its longest long before.
        delay = 0 if over < 0 else min(_DELAY_FIRST_US << min(over, 20), _DELAY_MAX_US)
        await self._connection.execute(
            update(table)
            .where(table.c.subject == subject)
            .values(failures=failures, last_at=now, blocked_until=now + delay)
        )
        return 0

    async def succeeded(self, account: str, address: str) -> None:
        """The attempt was good: the account's count begins anew, the address has one less."""
        table = tables.sign_in_attempts
        await self._connection.execute(delete(table).where(table.c.subject == account))
        await self._connection.execute(
            update(table)
            .where(table.c.subject == address, table.c.failures > 0)
            .values(failures=table.c.failures - 1, blocked_until=0)
        )

    async def forget_old(self) -> None:
        """Deletes what is older than a day."""
        table = tables.sign_in_attempts
        await self._connection.execute(delete(table).where(table.c.last_at < now_us() - FORGET_US))
