"""Holding leases: taken per operation, renewed together, freed when their owner is dead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agentmem.catalog import Catalog, Transaction
from agentmem.catalog.records import Lease, Session
from agentmem.core import SessionId, TenantId
from agentmem.errors import AgentmemError
from agentmem.sessions.owner import is_dead
from agentmem.sessions.views import busy
from agentmem.telemetry import get_logger

_log = get_logger("agentmem.sessions.leases")
RETRY_AFTER_SECONDS = 1.0


class LeaseKeeper:
    """Takes leases for one owner (this gateway) and keeps them alive while it runs."""

    def __init__(self, catalog: Catalog, owner: str, *, seconds: float) -> None:
        self._catalog = catalog
        self._owner = owner
        self._seconds = seconds
        self._held: set[SessionId] = set()

    async def take(
        self, tx: Transaction, tenant_id: TenantId, session_id: str
    ) -> tuple[Session, Lease]:
        """A session as it is under its lease. A dead owner's lease is free at once.

        Call `hold` when the transaction has committed. Raises NotFound or SessionBusy.
        """
        session = await tx.sessions.get(tenant_id, session_id)
        lease = await self._acquire(tx, session)
        if lease is None:
            other = await tx.leases.find(session.tenant_id, session.id)
            if other is not None and await asyncio.to_thread(is_dead, other.owner):
                await tx.leases.release(other)
                _log.warning("freed a dead owner's lease", session_id=session.id)
                lease = await self._acquire(tx, session)
        if lease is None:
            raise busy(session, retry_after_seconds=RETRY_AFTER_SECONDS)
        if not self._catalog.one_writer:
            # Until the lease was ours, another gateway may have finished a turn.
            session = await tx.sessions.get(tenant_id, session_id)
        return session, lease

    async def _acquire(self, tx: Transaction, session: Session) -> Lease | None:
        return await tx.leases.acquire(
            session.tenant_id, session.id, self._owner, seconds=self._seconds
        )

    @asynccontextmanager
    async def holding(
        self, tenant_id: TenantId, session_id: str
    ) -> AsyncIterator[tuple[Session, Lease]]:
        """Holds a session's lease for the block. Raises NotFound or SessionBusy."""
        async with self._catalog.transaction(durable=False) as tx:
            session, lease = await self.take(tx, tenant_id, session_id)
        self.hold(lease)
        try:
            yield session, lease
        finally:
            await self.release(lease)

    def hold(self, lease: Lease) -> None:
        """Keeps a lease alive from now on, until `release` or `released`."""
        self._held.add(lease.session_id)

    async def release(self, lease: Lease) -> None:
        """Lets go, even while the caller is being cancelled. Nothing happens if it is gone.

        A catalog that does not answer changes nothing: the lease is not renewed any more.
        """
        self._held.discard(lease.session_id)
        await asyncio.shield(asyncio.ensure_future(self._release(lease)))

    def released(self, lease: Lease) -> None:
        """Notes that a transaction of the caller's let go of the lease."""
        self._held.discard(lease.session_id)

    async def _release(self, lease: Lease) -> None:
        try:
            async with self._catalog.transaction(durable=False) as tx:
                await tx.leases.release(lease)
        except AgentmemError as error:
            _log.error("lease not released", session_id=lease.session_id, error=error.message)

    async def free_dead(self) -> int:
        """Frees the leases of dead processes on this host; returns how many."""
        async with self._catalog.reading() as tx:
            owners = await tx.leases.owners()
        freed = 0
        for owner in owners:
            if await asyncio.to_thread(is_dead, owner):
                async with self._catalog.transaction() as tx:
                    freed += await tx.leases.release_owner(owner)
        if freed:
            _log.warning("freed leases of dead owners", leases=freed)
        return freed

    async def run(self) -> None:
        """Renews until cancelled, at a third of the term."""
        while True:
            await asyncio.sleep(self._seconds / 3)
            if not self._held:
                continue
            try:
                async with self._catalog.transaction(durable=False) as tx:
                    await tx.leases.renew(list(self._held), self._owner, seconds=self._seconds)
            except AgentmemError as error:
                # A lease that runs out meanwhile is fenced at the commit, so trying on is safe.
                _log.error("leases could not be renewed", error=error.message)

    async def release_all(self) -> None:
        """At shutdown: frees whatever this owner still holds."""
        self._held.clear()
        async with self._catalog.transaction() as tx:
            await tx.leases.release_owner(self._owner)
