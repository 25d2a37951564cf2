"""Durability without being asked: claims a log's pages after each turn and sees them land.

One loop looks after all sessions of this gateway. A node agent that is down fails no turn: the
loop tries again until the deadline; `Lapse` starts over with what is behind then, as it does with
what a gateway left behind that was killed between a commit and its claim.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from agentmem.catalog import Catalog
from agentmem.core import ClaimTerms, PageKey, SessionId, TenantId, TurnId
from agentmem.errors import AgentmemError, NodeUnavailable
from agentmem.sessions.ports import Admitted, Pages
from agentmem.telemetry import Metrics, get_logger

_log = get_logger("agentmem.sessions.durability")
_FIRST_DELAY_SECONDS = 0.02
_DELAY_SECONDS_MAX = 1.0
_FAREWELL_SECONDS = 5.0
_BATCH = 200
WATCHED_MAX = 10_000


@dataclass(slots=True)
class Watched:
    """A log whose pages are to become durable.

    `keys` are those of its floor((L-1)/page) pages; the first `durable_pages` of them are known
    to be durable, and recorded as such. `age_seconds`: how old the log was when watching began.
    `short`: the catalog says that not all of them are promised.
    """

    tenant_id: TenantId
    session_id: SessionId
    head: TurnId
    keys: Sequence[PageKey]
    page_tokens: int
    expires_at: float
    terms: ClaimTerms | None = None
    age_seconds: float = 0.0
    started: float = 0.0
    claimed: bool = False
    durable_pages: int = 0
    short: bool = False
    delay: float = _FIRST_DELAY_SECONDS
    due: float = 0.0


class DurabilityTracker:
    """See the module's docstring. `give_up_seconds` is how long one log is watched."""

    def __init__(
        self, catalog: Catalog, pages: Pages, metrics: Metrics, *, give_up_seconds: float
    ) -> None:
        self._catalog = catalog
        self._pages = pages
        self._metrics = metrics
        self._give_up_seconds = give_up_seconds
        self._watched: dict[SessionId, Watched] = {}
        self._wake = asyncio.Event()
        self._step = asyncio.Lock()

    def watch(self, item: Watched) -> None:
        """Starts on a log; the session's earlier log, if watched, is part of it or gone."""
        if item.session_id not in self._watched and len(self._watched) >= WATCHED_MAX:
            self._drop(next(iter(self._watched)))
        item.started = item.due = time.monotonic()
        self._watched[item.session_id] = item
        self._wake.set()

    def is_watched(self, session_id: SessionId) -> bool:
        """Whether a log of this session is being looked after."""
        return session_id in self._watched

    def oldest_seconds(self) -> float:
        """Age of the oldest log that is watched; 0 when all are durable."""
        now = time.monotonic()
        ages = (now - item.started + item.age_seconds for item in self._watched.values())
        return max(ages, default=0.0)

    async def forget(self, session_id: SessionId) -> None:
        """Stops watching; when this returns, no claim of the session is on its way any more."""
        self._watched.pop(session_id, None)
        async with self._step:
            pass

    @property
    def watching(self) -> int:
        """Logs that are not durable yet."""
        return len(self._watched)

    async def claim_now(self, item: Watched) -> bool:
        """Claims at once; False when the agent did not answer (the loop goes on trying)."""
        try:
            admitted = await self._pages.claim(
                item.session_id, item.keys, item.expires_at, terms=item.terms
            )
        except NodeUnavailable as error:
            self._metrics.node_failures.labels("claim").inc()
            _log.warning("claim failed", session_id=item.session_id, error=error.message)
            return False
        if admitted.pages < len(item.keys):
            unpromised = len(item.keys) - admitted.pages
            self._metrics.pages_unpromised.labels(admitted.reason).inc(unpromised)
            _log.warning(
                "pages are kept as cache only",
                session_id=item.session_id,
                pages=unpromised,
                reason=admitted.reason,
            )
        item.claimed = True
        if item.short or admitted.pages < len(item.keys):
            await self._note_promise(item, admitted)
        return True

    async def _note_promise(self, item: Watched, admitted: Admitted) -> None:
        """Has the session say how much of it is promised; the claim holds whether or not it can."""
        item.short = admitted.pages < len(item.keys)
        try:
            async with self._catalog.transaction(durable=False) as tx:
                await tx.sessions.set_promise(
                    item.tenant_id,
                    item.session_id,
                    item.head,
                    pages=admitted.pages if item.short else None,
                    reason=admitted.reason if item.short else None,
                )
        except AgentmemError as error:
            _log.warning("promise not recorded", error=error.message)

    async def run(self) -> None:
        """Works until cancelled; then claims what is not claimed yet, so that the node agent goes
        on without this gateway."""
        try:
            await self._work()
        finally:
            await self._claim_rest()

    async def _work(self) -> None:
        while True:
            self._wake.clear()
            next_due = min((item.due for item in self._watched.values()), default=None)
            timeout = None if next_due is None else max(0.0, next_due - time.monotonic())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), timeout)
            now = time.monotonic()
            due = [item for item in self._watched.values() if item.due <= now][:_BATCH]
            async with self._step:
                await self._look_after(due)

    async def _look_after(self, items: Sequence[Watched]) -> None:
        """Claims what is not claimed yet, and records in one transaction what became durable."""
        reached = []
        for item in items:
            if self._watched.get(item.session_id) is item:
                reached.append((item, await self._reached(item)))
        advanced = [
            (item, pages)
            for item, pages in reached
            if pages is not None and pages > item.durable_pages
        ]
        recorded = await self._record(advanced) if advanced else True
        for item, pages in reached:
            if pages is not None and (recorded or pages <= item.durable_pages):
                item.durable_pages = pages
            self._settle(item, done=item.claimed and item.durable_pages == len(item.keys))

    def _settle(self, item: Watched, *, done: bool) -> None:
        if done:
            self._metrics.durability_lag.observe(time.monotonic() - item.started + item.age_seconds)
            self._forget_item(item)
        elif time.monotonic() - item.started > self._give_up_seconds:
            self._forget_item(item)
            self._metrics.durability_given_up.inc()
            _log.warning(
                "pages did not become durable in time",
                session_id=item.session_id,
                pages=len(item.keys),
                durable=item.durable_pages,
            )
        else:
            item.due = time.monotonic() + item.delay
            item.delay = min(2 * item.delay, _DELAY_SECONDS_MAX)

    async def _claim_rest(self) -> None:
        left = [item for item in self._watched.values() if not item.claimed]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_SECONDS):
                for item in left:
                    if not await self.claim_now(item):
                        return  # the next gateway claims, once the agent answers

    async def _reached(self, item: Watched) -> int | None:
        """How many pages, from the first one on, are durable; None: the agent did not answer."""
        if not item.claimed and not await self.claim_now(item):
            return None
        rest = item.keys[item.durable_pages :]
        try:
            missing = await self._pages.wait_durable(rest, 0.0) if rest else []
        except NodeUnavailable as error:
            self._metrics.node_failures.labels("wait_durable").inc()
            _log.warning("durability unknown", session_id=item.session_id, error=error.message)
            return None
        return item.durable_pages + (missing[0] if missing else len(rest))

    async def _record(self, advanced: Sequence[tuple[Watched, int]]) -> bool:
        try:
            async with self._catalog.transaction(durable=False) as tx:
                # In one order, so that two gateways never wait for each other crosswise.
                for item, pages in sorted(advanced, key=lambda one: one[0].session_id):
                    await tx.sessions.set_durable(
                        item.tenant_id,
                        item.session_id,
                        item.head,
                        position=pages * item.page_tokens,
                    )
        except AgentmemError as error:
            _log.warning("durability not recorded", error=error.message)
            return False
        return True

    def _forget_item(self, item: Watched) -> None:
        if self._watched.get(item.session_id) is item:
            del self._watched[item.session_id]

    def _drop(self, session_id: SessionId) -> None:
        del self._watched[session_id]
        self._metrics.durability_given_up.inc()
        _log.warning("too many logs to watch; dropped the oldest", session_id=session_id)
