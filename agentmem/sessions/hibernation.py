"""Hibernate: wait until the log's pages are durable, then let go of the GPU. Resume: warm it."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from agentmem.catalog.records import Session, Worker
from agentmem.core import PageKey, SessionId, TenantId, Tier, TierTokens, durable_pages
from agentmem.engine.base import CachedTokens
from agentmem.errors import EngineFailed, MissingPages, NodeUnavailable, NotDurable
from agentmem.router.registry import Assignment
from agentmem.sessions.context import Context, session_fingerprint
from agentmem.sessions.durability import DurabilityTracker, Watched
from agentmem.sessions.leases import LeaseKeeper
from agentmem.sessions.remaking import remake_absent, send_prompt
from agentmem.sessions.usage import LoadWatch, recomputed_tokens
from agentmem.sessions.warmth import tokens_to_load
from agentmem.telemetry import get_logger

_log = get_logger("agentmem.sessions.hibernation")
# One question to the agent lasts this long at most, so that a broken connection is noticed.
_WAIT_SECONDS = 2.0
_AGENT_PAUSE_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Hibernated:
    """The session's pages survive anything short of losing the medium."""

    pages: int
    bytes: int
    tokens: int
    seconds: float
    durable_position: int


@dataclass(frozen=True, slots=True)
class Resumed:
    """The session is warm; `cached` says which tiers its tokens came from."""

    tokens: int
    cached: TierTokens
    recomputed_tokens: int
    seconds: float
    worker_id: str


class Hibernation:
    """Both take the session's lease: SessionBusy while a turn runs."""

    def __init__(self, context: Context, leases: LeaseKeeper, tracker: DurabilityTracker) -> None:
        self._context = context
        self._leases = leases
        self._tracker = tracker

    async def hibernate(
        self, tenant_id: TenantId, session_id: str, tier: Tier = Tier.DISK
    ) -> Hibernated:
        """Answers when all pages of the log are durable; in the object tier only, if that is asked.

        Raises InvalidRequest without an object tier; NotDurable by the deadline, naming the pages
        that are missing; WorkerUnavailable when the log ends on a page's edge, so that its last
        page has to be made, and none is ready.
        """
        begun = time.perf_counter()
        deadline = begun + self._context.limits.hibernate_seconds_max
        async with self._leases.holding(tenant_id, session_id) as (session, _lease):
            ids = await self._context.log_ids(session)
            worker = None
            if session.page_tokens and ids and len(ids) % session.page_tokens == 0:
                # The last token has no KV yet, hence its page does not exist: make it.
                worker = await self._make_last_page(session, ids, deadline)
            keys, page_tokens = self._expected(session, ids, worker)
            if keys:
                expires_at = time.time() + session.kv_retention_seconds
                await self._wait_durable(session, ids, keys, deadline, expires_at)
                if tier is Tier.OBJECT:
                    await self._demote(keys, deadline)
            await self._let_go(session)
            position = len(keys) * page_tokens
            await self._record(session, "hibernated", worker, position)
            self._context.metrics.hibernations.labels("asked").inc()
            size = position * await self._bytes_per_token(session, worker)
            seconds = time.perf_counter() - begun
            return Hibernated(len(keys), size, len(ids), seconds, position)

    async def hibernate_idle(self, session: Session, busy: Callable[[SessionId], bool]) -> bool:
        """Hibernates a session that nobody used for a while; False when somebody does again.

        The lease is taken only when the pages are durable, for the moment of letting go, so that
        no turn is refused for the sake of this; for a session that nobody named not at all, since
        its turns take none: those of this gateway are what `busy` tells. The claim ends when it
        did before: what nobody asked for prolongs no term; where the term is over, nothing has to
        be durable any more.
        Raises what `hibernate` raises; never makes a page at the log's edge.
        """
        deadline = time.perf_counter() + self._context.limits.hibernate_seconds_max
        page_tokens, position = session.page_tokens or 1, session.durable_position
        expires_at = session.updated_at / 1e6 + session.kv_retention_seconds
        # Most are known to be durable since their last turn: of those not even the log is read.
        behind = position < durable_pages(session.tokens, page_tokens) * page_tokens
        if behind and expires_at > time.time():
            ids = await self._context.log_ids(session)
            keys, page_tokens = self._expected(session, ids, None)
            await self._wait_durable(session, ids, keys, deadline, expires_at)
            position = len(keys) * page_tokens
        if session.origin == "request":
            return await self._let_idle_go(session, position, busy)
        async with self._leases.holding(session.tenant_id, session.id) as (current, _lease):
            unchanged = (current.updated_at, current.head_turn_id) == (
                session.updated_at,
                session.head_turn_id,
            )
            return unchanged and await self._let_idle_go(session, position, busy)

    async def _let_idle_go(
        self, session: Session, position: int, busy: Callable[[SessionId], bool]
    ) -> bool:
        if busy(session.id):
            return False
        async with self._context.catalog.transaction(durable=False) as tx:
            done = await tx.lapsing.set_hibernated(session, position=position)
        if done and not busy(session.id):
            await self._let_go(session)
        return done

    async def resume(self, tenant_id: TenantId, session_id: str) -> Resumed:
        """Sends the log without asking for tokens, so that the next turn finds it in HBM.

        Raises WorkerUnavailable or EngineFailed; the session stays as it was.
        """
        begun = time.perf_counter()
        async with self._leases.holding(tenant_id, session_id) as (session, _lease):
            worker = await self._context.router.choose(session.model, session.worker_id)
            ids = await self._context.log_ids(session)
            if session.head_turn_id is None:
                await self._record(session, "active", None, None)
                return Resumed(0, TierTokens(), 0, time.perf_counter() - begun, worker.id)
            keys = self._context.keys(tenant_id, worker.fingerprint, ids, worker.page_tokens)
            watch = LoadWatch(self._context.pages, self._context.metrics)
            await watch.start()
            cached = await self.send_log(session, worker, ids)
            tiers = await watch.tiers(cached, keys, worker.page_tokens)
            await self._record(session, "active", worker, None)
            self._tracker.watch(
                Watched(
                    tenant_id,
                    session.id,
                    session.head_turn_id,
                    keys[: durable_pages(len(ids), worker.page_tokens)],
                    worker.page_tokens,
                    time.time() + session.kv_retention_seconds,
                    await self._context.claim_terms(session),
                    short=session.promised_pages is not None,
                )
            )
            again = recomputed_tokens(kept=len(ids), log_tokens=len(ids), cached=tiers.total)
            seconds = time.perf_counter() - begun
            return Resumed(len(ids), tiers, again, seconds, worker.id)

    async def _demote(self, keys: Sequence[PageKey], deadline: float) -> None:
        """Moves pages that are durable on the host to the object tier."""
        left = max(_WAIT_SECONDS, deadline - time.perf_counter())
        missing = await self._context.pages.demote(keys, left)
        if missing:
            raise NotDurable(
                MissingPages(len(keys), tuple(missing)),
                deadline_seconds=self._context.limits.hibernate_seconds_max,
            )

    async def _make_last_page(self, session: Session, ids: array[int], deadline: float) -> Worker:
        worker = await self._context.router.choose(session.model, session.worker_id)
        try:
            async with asyncio.timeout(max(0.0, deadline - time.perf_counter())):
                await self.send_log(session, worker, ids)
        except TimeoutError as error:
            pages = len(ids) // worker.page_tokens
            raise NotDurable(
                MissingPages(pages, (pages - 1,)),
                deadline_seconds=self._context.limits.hibernate_seconds_max,
            ) from error
        return worker

    def _expected(
        self, session: Session, ids: array[int], worker: Worker | None
    ) -> tuple[Sequence[PageKey], int]:
        """Keys of the pages that the log should have, and their size in tokens.

        `worker` is given when it has just been sent the whole log, so that every token has KV.
        """
        if worker is not None:
            page_tokens, fingerprint = worker.page_tokens, worker.fingerprint
            pages = len(ids) // page_tokens
        else:
            made_under = session_fingerprint(session)
            if made_under is None or session.page_tokens is None:
                return [], 0
            page_tokens, fingerprint = session.page_tokens, made_under
            pages = durable_pages(len(ids), page_tokens)
        keys = self._context.keys(session.tenant_id, fingerprint, ids, page_tokens)
        return keys[:pages], page_tokens

    async def _wait_durable(
        self,
        session: Session,
        ids: array[int],
        keys: Sequence[PageKey],
        deadline: float,
        expires_at: float,
    ) -> None:
        """Claims until `expires_at`, and waits; for an agent that is being started again, too."""
        claimed = remade = False
        while True:
            try:
                if not claimed:
                    await self._context.pages.claim(
                        session.id, keys, expires_at, terms=await self._context.claim_terms(session)
                    )
                    claimed = True
                left = max(0.0, deadline - time.perf_counter())
                # Not all of what is left at once: pages in no tier have to be made in time.
                wait = min(left / 4, _WAIT_SECONDS) if not remade else min(left, _WAIT_SECONDS)
                missing = await self._context.pages.wait_durable(keys, wait)
            except NodeUnavailable:
                if time.perf_counter() >= deadline:
                    raise
                await asyncio.sleep(_AGENT_PAUSE_SECONDS)
                continue
            if not missing:
                return
            if time.perf_counter() >= deadline:
                raise NotDurable(
                    MissingPages(len(keys), tuple(missing)),
                    deadline_seconds=self._context.limits.hibernate_seconds_max,
                )
            if not remade:
                left = deadline - time.perf_counter()
                remade = await remake_absent(self._context, session, ids, keys, seconds_max=left)

    async def send_log(self, session: Session, worker: Worker, ids: array[int]) -> CachedTokens:
        """Has the engine load or compute the whole log; returns what it found where."""
        salt = self._context.secrets.tenant_salt(session.tenant_id)
        async with self._context.router.running_on(worker) as assignment, AsyncExitStack() as gate:
            await assignment.engine.open_session(session.id)
            load = tokens_to_load(session, assignment, len(ids))
            await gate.enter_async_context(assignment.gate.hold(load))
            engine = assignment.engine
            cached = await send_prompt(engine, ids.tolist(), salt=salt, session_id=session.id)
            assignment.warm.touch(session.id, len(ids))
        return cached

    async def _let_go(self, session: Session) -> None:
        """Dereferences the session in HBM, where the worker that held it still runs."""
        for worker in await self._context.router.ready():
            if (worker.id, worker.generation) == (session.worker_id, session.worker_generation):
                async with self._context.router.running_on(worker) as assignment:
                    assignment.warm.forget(session.id)
                    await _close(assignment, session)

    async def _bytes_per_token(self, session: Session, worker: Worker | None) -> int:
        for known in await self._context.router.workers():
            if known.id == (worker.id if worker else session.worker_id):
                return known.kv_bytes_per_token
        described = await self._context.router.describe(session.model)
        return described.kv_bytes_per_token if described else 0

    async def _record(
        self, session: Session, state: str, worker: Worker | None, durable_position: int | None
    ) -> None:
        async with self._context.catalog.transaction() as tx:
            await tx.sessions.set_state(session.tenant_id, session.id, state, worker=worker)
            if durable_position is not None and session.head_turn_id is not None:
                await tx.sessions.set_durable(
                    session.tenant_id,
                    session.id,
                    session.head_turn_id,
                    position=durable_position,
                )


async def _close(assignment: Assignment, session: Session) -> None:
    try:
        await assignment.engine.close_session(session.id)
    except EngineFailed as error:
        # A worker that died meanwhile holds nothing any more.
        _log.warning("session not closed", session_id=session.id, error=error.message)
