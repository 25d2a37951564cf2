"""Works off the claims that node agents have yet to drop."""

from __future__ import annotations

import asyncio

from agentmem.catalog import Catalog
from agentmem.core import PageKey
from agentmem.errors import AgentmemError, NodeUnavailable
from agentmem.sessions.ports import Freed, Pages
from agentmem.telemetry import Metrics, get_logger

_log = get_logger("agentmem.sessions.unclaiming")
_RETRY_SECONDS_MAX = 300.0


class Unclaimer:
    """Retries until the agent has let go; rows survive a restart of the gateway."""

    def __init__(
        self, catalog: Catalog, pages: Pages, metrics: Metrics, *, interval_seconds: float = 1.0
    ) -> None:
        self._catalog = catalog
        self._pages = pages
        self._metrics = metrics
        self._interval_seconds = interval_seconds

    async def try_now(self, unclaim_id: str, claim_id: str, keys: list[PageKey]) -> Freed | None:
        """One attempt; None when the agent did not answer, and the row stays for later."""
        try:
            freed = await self._pages.unclaim(claim_id, keys)
        except NodeUnavailable as error:
            self._metrics.node_failures.labels("unclaim").inc()
            _log.warning("unclaim failed", session_id=claim_id, error=error.message)
            return None
        async with self._catalog.transaction() as tx:
            await tx.unclaims.done(unclaim_id)
        return freed

    async def work_off(self) -> int:
        """One attempt at every row that is due; returns how many are done."""
        async with self._catalog.reading() as tx:
            due = await tx.unclaims.due()
        done = 0
        for row in due:
            keys = [PageKey(key) for key in row.keys]
            if await self.try_now(row.id, row.claim_id, keys) is None:
                delay = min(2.0**row.attempts, _RETRY_SECONDS_MAX)
                async with self._catalog.transaction() as tx:
                    await tx.unclaims.postpone(row.id, seconds=delay)
            else:
                done += 1
        return done

    async def run(self) -> None:
        """Works until cancelled."""
        while True:
            try:
                await self.work_off()
            except AgentmemError as error:
                _log.error("unclaims could not be worked off", error=error.message)
            await asyncio.sleep(self._interval_seconds)
