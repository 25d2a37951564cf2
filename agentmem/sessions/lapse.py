"""What happens to sessions by themselves, as time goes by: three bounded loops over the catalog.

Every gateway runs them; a session's lease, or a condition in the statement, keeps two of them from
doing the same. What fails is logged, counted, and tried again at a later pass.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from agentmem.catalog.ids import now_us
from agentmem.catalog.records import Session
from agentmem.core import SessionId, TurnId, durable_pages
from agentmem.errors import AgentmemError, NotFound, SessionBusy
from agentmem.sessions.context import Context, session_fingerprint
from agentmem.sessions.deletion import Deletion
from agentmem.sessions.durability import DurabilityTracker, Watched
from agentmem.sessions.hibernation import Hibernation
from agentmem.telemetry import get_logger

_log = get_logger("agentmem.sessions.lapse")

EXPIRE_SECONDS = 5.0
WATCH_SECONDS = 30.0
_IDLE_SECONDS_MAX = 15.0
_BATCH = 100
_ROWS_MAX = 500
# Between batches, so that a long list does not keep the catalog from the turns.
_PAUSE_SECONDS = 0.05
_AT_ONCE = 4
_POSTPONE_SECONDS_MIN = 30.0
_POSTPONE_SECONDS_MAX = 1_800.0
# A log younger than this is looked after by the gateway that made it.
_YOUNG_SECONDS = 10.0
_WATCHED_MAX = 500
_WATCHES_MAX = 3


class Lapse:
    """`watch_behind`: logs that are not durable, though nobody looks after them, are claimed again.
    `hibernate_idle`: sessions that nobody uses let go of the GPU. `expire`: what is past its term
    is deleted; usage events never are.
    """

    def __init__(
        self,
        context: Context,
        tracker: DurabilityTracker,
        hibernation: Hibernation,
        deletion: Deletion,
        *,
        busy: Callable[[SessionId], bool],
    ) -> None:
        self._context = context
        self._tracker = tracker
        self._hibernation = hibernation
        self._deletion = deletion
        # A turn of a session that nobody named holds no lease.
        self._busy = busy
        self._postponed: dict[SessionId, tuple[float, float]] = {}
        self._watches: dict[TurnId, int] = {}
        self._unwatched_since_us: int | None = None
        context.metrics.durability_oldest.set_function(self.oldest_seconds)

    async def run(self) -> None:
        """Works until cancelled."""
        idle_seconds = self._context.limits.idle_hibernate_seconds
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._watch_behind_now_and_then())
            loops.create_task(_every(EXPIRE_SECONDS, self.expire))
            if idle_seconds > 0:
                interval = min(_IDLE_SECONDS_MAX, idle_seconds / 4)
                loops.create_task(_every(interval, self.hibernate_idle))

    async def _watch_behind_now_and_then(self) -> None:
        # At the start the young ones, too: the gateway that made them may be the one that died.
        await _attempt(lambda: self.watch_behind(young_seconds=0.0))
        await asyncio.sleep(WATCH_SECONDS)
        await _every(WATCH_SECONDS, self.watch_behind)

    def oldest_seconds(self) -> float:
        """Age of the oldest log with a promise to be durable that is not, watched or not."""
        since = self._unwatched_since_us
        unwatched = 0.0 if since is None else (now_us() - since) / 1e6
        return max(self._tracker.oldest_seconds(), unwatched)

    async def watch_behind(self, *, young_seconds: float = _YOUNG_SECONDS) -> int:
        """Hands the tracker what is behind; returns how many logs.

        A log is given to it a few times only: pages that are in no tier do not come back by
        waiting; hibernating makes them again.
        """
        watched, unwatched = 0, list[int]()
        tried: dict[TurnId, int] = {}
        async for sessions in self._active(now_us() - int(young_seconds * 1e6), behind=True):
            for session in sessions:
                head = session.head_turn_id
                if head is None or _promised_until(session) <= time.time():
                    continue
                tried[head] = self._watches.get(head, 0)
                if self._tracker.is_watched(session.id):
                    continue
                if tried[head] >= _WATCHES_MAX or self._tracker.watching >= _WATCHED_MAX:
                    unwatched.append(session.updated_at)
                    continue
                tried[head] += 1
                watched += await self._watch(session, head)
        self._watches = tried
        self._unwatched_since_us = min(unwatched, default=None)
        return watched

    async def hibernate_idle(self) -> int:
        """Hibernates what was not used for `idle_hibernate_seconds`; returns how many."""
        horizon = now_us() - int(self._context.limits.idle_hibernate_seconds * 1e6)
        gate, seen, done = asyncio.Semaphore(_AT_ONCE), set[SessionId](), list[bool]()

        async def hibernate(session: Session) -> None:
            async with gate:
                done.append(await self._hibernate(session))

        async for sessions in self._active(horizon):
            seen.update(session.id for session in sessions)
            async with asyncio.TaskGroup() as batch:
                for session in sessions:
                    due, _ = self._postponed.get(session.id, (0.0, 0.0))
                    if due <= time.monotonic():
                        batch.create_task(hibernate(session))
        self._postponed = {key: value for key, value in self._postponed.items() if key in seen}
        return sum(done)

    async def expire(self) -> int:
        """Deletes a batch of everything that is past its term; returns how many rows it found."""
        now, catalog = now_us(), self._context.catalog
        async with catalog.reading() as tx:
            due = await tx.lapsing.expired(now, limit=_BATCH)
        for tenant_id, session_id in due:
            if self._busy(session_id):
                continue
            try:
                if await self._deletion.expire(tenant_id, session_id, now_us=now):
                    self._context.metrics.expired.labels("session").inc()
            except (NotFound, SessionBusy):
                continue  # deleted by someone else, or about to be prolonged by a turn
            except AgentmemError as error:
                self._context.metrics.lapse_failures.labels("expire").inc()
                _log.error("session not expired", session_id=session_id, error=error.message)
        found = len(due)
        async with catalog.transaction(durable=False) as tx:
            responses = await tx.lapsing.expire_responses(now, limit=_ROWS_MAX)
            retries = await tx.lapsing.expire_retries(now, limit=_ROWS_MAX)
        self._context.metrics.expired.labels("response").inc(responses)
        self._context.metrics.expired.labels("retry").inc(retries)
        return found + responses + retries

    async def _active(
        self, before_us: int, *, behind: bool = False
    ) -> AsyncIterator[Sequence[Session]]:
        """Active sessions last changed before a time, oldest first, in batches."""
        last = None
        while True:
            async with self._context.catalog.reading() as tx:
                batch = await tx.lapsing.active(
                    before_us=before_us, after=last, behind=behind, limit=_ROWS_MAX
                )
            if batch:
                yield batch
            if len(batch) < _ROWS_MAX:
                return
            last = batch[-1]
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _watch(self, session: Session, head: TurnId) -> bool:
        fingerprint, page_tokens = session_fingerprint(session), session.page_tokens
        assert fingerprint is not None, "made with the first turn"
        assert page_tokens is not None, "made with the first turn"
        ids = await self._context.log_ids(session)
        keys = self._context.keys(session.tenant_id, fingerprint, ids, page_tokens)
        if self._tracker.is_watched(session.id):
            return False  # a turn was quicker
        self._tracker.watch(
            Watched(
                session.tenant_id,
                session.id,
                head,
                keys[: durable_pages(len(ids), page_tokens)],
                page_tokens,
                _promised_until(session),
                await self._context.claim_terms(session),
                age_seconds=max(0.0, time.time() - session.updated_at / 1e6),
                durable_pages=session.durable_position // page_tokens,
                short=session.promised_pages is not None,
            )
        )
        return True

    async def _hibernate(self, session: Session) -> bool:
        try:
            done = await self._hibernation.hibernate_idle(session, self._busy)
        except (NotFound, SessionBusy):
            return False  # deleted, or in use again
        except AgentmemError as error:
            _, last = self._postponed.get(session.id, (0.0, 0.0))
            delay = min(max(2 * last, _POSTPONE_SECONDS_MIN), _POSTPONE_SECONDS_MAX)
            self._postponed[session.id] = (time.monotonic() + delay, delay)
            self._context.metrics.lapse_failures.labels("hibernate").inc()
            _log.warning("idle session not hibernated", session_id=session.id, error=error.message)
            return False
        if done:
            self._context.metrics.hibernations.labels("idle").inc()
        return done


def _promised_until(session: Session) -> float:
    """End of the term of the session's KV, in seconds since the epoch."""
    return session.updated_at / 1e6 + session.kv_retention_seconds


async def _every(seconds: float, work: Callable[[], Awaitable[int]]) -> None:
    """Does `work` now and then; it goes on soon where there was a full batch."""
    while True:
        found = await _attempt(work)
        await asyncio.sleep(_PAUSE_SECONDS if found >= _BATCH else seconds)


async def _attempt(work: Callable[[], Awaitable[int]]) -> int:
    try:
        return await work()
    except AgentmemError as error:
        _log.error("sessions were not looked through", error=error.message)
    except Exception:  # noqa: BLE001 - loop edge: one bad row must not end it for all others
        _log.exception("sessions were not looked through")
    return 0
