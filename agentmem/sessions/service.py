"""What agents do with sessions. Every method takes the tenant and tells others' ids apart from
nothing: NotFound is the same for both."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from agentmem.catalog.ids import is_id, new_id, now_us
from agentmem.catalog.records import Session, Turn
from agentmem.core import PageKey, SessionId, TenantId, Tier, durable_pages
from agentmem.errors import InvalidRequest, ModelNotFound, NotFound, WorkerUnavailable
from agentmem.sessions.context import Context, session_fingerprint
from agentmem.sessions.durability import DurabilityTracker, Watched
from agentmem.sessions.hibernation import Hibernated, Hibernation, Resumed
from agentmem.sessions.leases import LeaseKeeper
from agentmem.sessions.ports import Freed
from agentmem.sessions.requests import TurnRequest
from agentmem.sessions.runs import Listener
from agentmem.sessions.turns import TurnRunner
from agentmem.sessions.unclaiming import Unclaimer


@dataclass(frozen=True, slots=True)
class SessionView:
    """A session as shown: its row, whether something holds its lease, and its full pages."""

    session: Session
    running: bool
    pages: int


@dataclass(frozen=True, slots=True)
class TierShare:
    """What one tier holds of a session; a page that lies in two tiers counts in both."""

    pages: int
    tokens: int
    bytes: int


@dataclass(frozen=True, slots=True)
class SessionResidency:
    """Where a session's pages lie below the GPU. `durable_pages` counts all durable ones."""

    tokens: int
    pages: int
    durable_pages: int
    durable_position: int
    tiers: Mapping[Tier, TierShare]


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list, and whether there is more."""

    items: list[SessionView]
    has_more: bool


class SessionsService:
    """The facade that `api` calls. `running()` keeps its loops alive."""

    def __init__(self, context: Context) -> None:
        self._context = context
        limits = context.limits
        self._leases = LeaseKeeper(context.catalog, context.owner, seconds=limits.lease_seconds)
        self._tracker = DurabilityTracker(
            context.catalog,
            context.pages,
            context.metrics,
            give_up_seconds=limits.hibernate_seconds_max,
        )
        self._unclaimer = Unclaimer(context.catalog, context.pages, context.metrics)
        self._turns = TurnRunner(context, self._leases, self._tracker)
        self._hibernation = Hibernation(context, self._leases, self._tracker)

    @asynccontextmanager
    async def running(self, *, drain_seconds: float) -> AsyncIterator[None]:
        """Frees dead owners' leases, then keeps the loops going; drains running turns at last."""
        await self._leases.free_dead()
        loops = [
            asyncio.create_task(loop.run())
            for loop in (self._leases, self._tracker, self._unclaimer)
        ]
        try:
            yield
        finally:
            await self._turns.drain(drain_seconds)
            for loop in loops:
                loop.cancel()
            for loop in loops:
                with contextlib.suppress(asyncio.CancelledError):
                    await loop
            await self._leases.release_all()

    async def create(
        self,
        tenant_id: TenantId,
        *,
        model: str | None,
        metadata: Mapping[str, str],
        kv_retention_seconds: int | None = None,
        log_retention_seconds: int | None = None,
    ) -> SessionView:
        """A session without turns. Raises ModelNotFound, or InvalidRequest without a model."""
        limits = self._context.limits
        model = await self._model(model)
        now = now_us()
        session = Session(
            id=SessionId(new_id("ses")),
            tenant_id=tenant_id,
            model=model,
            metadata=metadata,
            state="active",
            head_turn_id=None,
            turns=0,
            tokens=0,
            durable_position=0,
            rebases=0,
            parent_session_id=None,
            fork_turn=None,
            kv_retention_seconds=_default(kv_retention_seconds, limits.kv_retention_seconds),
            log_retention_seconds=_default(log_retention_seconds, limits.log_retention_seconds),
            worker_id=None,
            worker_generation=None,
            fingerprint=None,
            page_tokens=None,
            created_at=now,
            updated_at=now,
        )
        async with self._context.catalog.transaction() as tx:
            await tx.sessions.create(session)
        return SessionView(session, running=False, pages=0)

    async def get(self, tenant_id: TenantId, session_id: str) -> SessionView:
        """One session. Raises NotFound."""
        async with self._context.catalog.reading() as tx:
            session = await tx.sessions.get(tenant_id, _checked(session_id))
            lease = await tx.leases.find(tenant_id, session.id)
        return _view(session, running=lease is not None)

    async def list_sessions(
        self, tenant_id: TenantId, *, after: str | None, limit: int, descending: bool
    ) -> Page:
        """A tenant's sessions by creation. Raises InvalidRequest for an unknown `after`."""
        async with self._context.catalog.reading() as tx:
            found = await tx.sessions.list(
                tenant_id, after=after, limit=limit + 1, descending=descending
            )
            shown = found[:limit]
            held = await tx.leases.held(tenant_id, [session.id for session in shown])
        views = [_view(session, running=session.id in held) for session in shown]
        return Page(views, has_more=len(found) > limit)

    async def begin_turn(
        self, tenant_id: TenantId, session_id: str, request: TurnRequest
    ) -> Listener:
        """See `TurnRunner.begin`."""
        return await self._turns.begin(tenant_id, _checked(session_id), request)

    async def list_turns(
        self,
        tenant_id: TenantId,
        session_id: str,
        *,
        after: str | None,
        limit: int,
        descending: bool,
    ) -> tuple[list[Turn], bool]:
        """Turns of a session, those it inherited by a fork too; and whether there are more."""
        async with self._context.catalog.reading() as tx:
            session = await tx.sessions.get(tenant_id, _checked(session_id))
            if session.head_turn_id is None:
                if after is not None:
                    raise _unknown_turn(after)
                return [], False
            number = None
            if after is not None:
                number = await tx.turns.number_of(tenant_id, session.head_turn_id, after)
                if number is None:
                    raise _unknown_turn(after)
            turns = await tx.turns.page(
                tenant_id,
                session.head_turn_id,
                after=number,
                limit=limit + 1,
                descending=descending,
            )
        return turns[:limit], len(turns) > limit

    async def hibernate(self, tenant_id: TenantId, session_id: str) -> Hibernated:
        """See `Hibernation.hibernate`."""
        return await self._hibernation.hibernate(tenant_id, _checked(session_id))

    async def resume(self, tenant_id: TenantId, session_id: str) -> Resumed:
        """See `Hibernation.resume`."""
        return await self._hibernation.resume(tenant_id, _checked(session_id))

    async def fork(
        self,
        tenant_id: TenantId,
        session_id: str,
        *,
        turn: int | None,
        metadata: Mapping[str, str] | None,
    ) -> SessionView:
        """A new session that shares the log up to a turn (the last one by default; 0: none of it).

        Copies nothing but one row; the pages are shared, each session claiming its own.
        """
        async with self._context.catalog.transaction() as tx:
            parent = await tx.sessions.get(tenant_id, _checked(session_id))
            number = parent.turns if turn is None else turn
            if not 0 <= number <= parent.turns:
                raise InvalidRequest(
                    f"The session has {parent.turns} turns; it cannot be forked at {number}.",
                    param="turn",
                )
            head = None
            if number and parent.head_turn_id is not None:
                head = await tx.turns.numbered(tenant_id, parent.head_turn_id, number)
            session = _forked(parent, head, number, metadata)
            await tx.sessions.create(session)
        await self._claim_fork(session)
        return _view(session, running=False)

    async def residency(self, tenant_id: TenantId, session_id: str) -> SessionResidency:
        """Where the pages lie. Raises NodeUnavailable when the node agent does not answer."""
        async with self._context.catalog.reading() as tx:
            session = await tx.sessions.get(tenant_id, _checked(session_id))
        keys = await self._keys(session)
        entries = await self._context.pages.residency(keys) if keys else []
        worker = await self._context.router.describe(session.model)
        page_tokens = session.page_tokens or 0
        page_bytes = page_tokens * (worker.kv_bytes_per_token if worker else 0)
        tiers = {}
        for tier in (Tier.DRAM, Tier.DISK, Tier.OBJECT):
            count = sum(tier in entry.tiers for entry in entries)
            tiers[tier] = TierShare(count, count * page_tokens, count * page_bytes)
        return SessionResidency(
            tokens=session.tokens,
            pages=len(keys),
            durable_pages=sum(entry.durable for entry in entries),
            durable_position=session.durable_position,
            tiers=tiers,
        )

    async def delete(self, tenant_id: TenantId, session_id: str) -> Freed:
        """Deletes the session, the turns that no other session reaches, and its claims.

        Raises NotFound or SessionBusy. An agent that does not answer is told later; the numbers
        are then 0.
        """
        async with self._leases.holding(tenant_id, _checked(session_id)) as (session, lease):
            # Every page may exist, the last one of a log that ends on a page's edge included.
            keys = await self._keys(session, all_pages=True)
            await self._tracker.forget(session.id)
            unclaim_id = None
            async with self._context.catalog.transaction() as tx:
                await tx.sessions.delete(tenant_id, session.id)
                if session.head_turn_id is not None:
                    await tx.turns.prune(tenant_id, session.head_turn_id)
                if keys:
                    unclaim_id = await tx.unclaims.add(tenant_id, session.id, keys)
            self._leases.released(lease)
        if session.head_turn_id is not None:
            self._context.logs.drop(session.head_turn_id)
        freed = None
        if unclaim_id is not None:
            freed = await self._unclaimer.try_now(unclaim_id, session.id, keys)
        return freed or Freed(0, 0)

    async def _model(self, model: str | None) -> str:
        if model is not None:
            await self._context.router.check_model(model)
            return model
        known = await self._context.router.models()
        default = self._context.limits.default_model
        if default in known:
            return default
        if len(known) == 1:
            return known[0]
        if not known:
            raise WorkerUnavailable("No worker has registered yet.")
        raise ModelNotFound(default or "(none given)", known=tuple(known))

    async def _keys(self, session: Session, *, all_pages: bool = False) -> list[PageKey]:
        fingerprint = session_fingerprint(session)
        if fingerprint is None or session.page_tokens is None:
            return []
        ids = await self._context.log_ids(session)
        pages = len(ids) // session.page_tokens
        if not all_pages:
            shown = _expected_pages(session)
            pages = min(pages, shown)
        keys = self._context.keys(session.tenant_id, fingerprint, ids, session.page_tokens)
        return keys[:pages]

    async def _claim_fork(self, session: Session) -> None:
        """Claims before the fork is shown: its parent may be deleted right afterwards."""
        keys = await self._keys(session)
        if not keys or session.head_turn_id is None or session.page_tokens is None:
            return
        item = Watched(
            session.tenant_id,
            session.id,
            session.head_turn_id,
            keys,
            session.page_tokens,
            time.time() + session.kv_retention_seconds,
        )
        await self._tracker.claim_now(item)
        self._tracker.watch(item)


def _forked(
    parent: Session, head: Turn | None, number: int, metadata: Mapping[str, str] | None
) -> Session:
    now = now_us()
    tokens = head.log_tokens if head else 0
    page = parent.page_tokens or 1
    # The last token of a log has no KV, so that a fork's pages end before it.
    durable = min(parent.durable_position, durable_pages(tokens, page) * page)
    return Session(
        id=SessionId(new_id("ses")),
        tenant_id=parent.tenant_id,
        model=parent.model,
        metadata=parent.metadata if metadata is None else metadata,
        state="active",
        head_turn_id=head.id if head else None,
        turns=number,
        tokens=tokens,
        durable_position=durable,
        rebases=0,
        parent_session_id=parent.id,
        fork_turn=number,
        kv_retention_seconds=parent.kv_retention_seconds,
        log_retention_seconds=parent.log_retention_seconds,
        worker_id=parent.worker_id if head else None,
        worker_generation=parent.worker_generation if head else None,
        fingerprint=parent.fingerprint if head else None,
        page_tokens=parent.page_tokens if head else None,
        created_at=now,
        updated_at=now,
    )


def _expected_pages(session: Session) -> int:
    """Full pages that the session has: one more when hibernating made the one at the log's edge."""
    if session.page_tokens is None:
        return 0
    pages = durable_pages(session.tokens, session.page_tokens)
    return max(pages, session.durable_position // session.page_tokens)


def _view(session: Session, *, running: bool) -> SessionView:
    return SessionView(session, running=running, pages=_expected_pages(session))


def _checked(session_id: str) -> str:
    """Ids that cannot be ours never reach the database."""
    if not is_id(session_id, "ses"):
        raise NotFound("session", session_id)
    return session_id


def _unknown_turn(after: str) -> InvalidRequest:
    return InvalidRequest(f"No turn with id {after!r} to go on after.", param="after")


def _default(value: int | None, default: int) -> int:
    return default if value is None else value
