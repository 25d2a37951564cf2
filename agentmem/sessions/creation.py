"""Making sessions: empty ones, forks, and such that start from a context."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from agentmem.catalog.ids import is_id, new_id, now_us
from agentmem.catalog.records import Session, Turn
from agentmem.core import ProjectId, SessionId, TenantId, durable_pages
from agentmem.errors import InvalidRequest, NotFound
from agentmem.plans.classes import RetentionName
from agentmem.plans.definition import PlanDefinition
from agentmem.sessions.bases import Bases, checked_id
from agentmem.sessions.context import Context
from agentmem.sessions.deletion import Deletion
from agentmem.sessions.durability import DurabilityTracker, Watched
from agentmem.sessions.models import Models
from agentmem.sessions.requests import TurnRequest
from agentmem.sessions.terms import under_plan
from agentmem.sessions.views import SessionView, expected_pages, view_of


class Creation:
    """Makes sessions that somebody names."""

    def __init__(
        self,
        context: Context,
        bases: Bases,
        models: Models,
        tracker: DurabilityTracker,
        deletion: Deletion,
    ) -> None:
        self._context = context
        self._bases = bases
        self._models = models
        self._tracker = tracker
        self._deletion = deletion

    async def create(
        self,
        tenant_id: TenantId,
        *,
        model: str | None,
        metadata: Mapping[str, str],
        kv_retention_seconds: int | None = None,
        log_retention_seconds: int | None = None,
        retention: RetentionName | None = None,
        context_id: str | None = None,
        origin: str = "session",
        session_id: str | None = None,
        project_id: ProjectId | None = None,
    ) -> SessionView:
        """A session without turns, on top of a context where one is named.

        The terms are the retention class's where one is given, else the two numbers, else the
        gateway's. Raises ModelNotFound, NotFound for the context, InvalidRequest.
        """
        if context_id is not None:
            session = await self._from_context(tenant_id, context_id, model, retention)
        else:
            served = await self._models.resolve(tenant_id, model)
            request = TurnRequest((), retention=retention)
            session = await self._bases.new_session(tenant_id, served, request)
        session = replace(session, origin=origin, metadata=metadata, project_id=project_id)
        if session_id is not None:
            session = replace(session, id=SessionId(session_id))
        if kv_retention_seconds is not None:
            session = replace(session, kv_retention_seconds=kv_retention_seconds)
        if log_retention_seconds is not None:
            session = replace(session, log_retention_seconds=log_retention_seconds)
        plan = (await self._context.plans.of(tenant_id)).definition
        session = _under_plan(session, plan)
        async with self._context.catalog.transaction() as tx:
            head = session.head_turn_id
            if head is not None and not await tx.turns.pin(tenant_id, head):
                raise NotFound("context", context_id or "")  # deleted meanwhile
            await tx.sessions.create(session)
        await self._claim(session)
        return view_of(session, running=False)

    async def fork(
        self,
        tenant_id: TenantId,
        session_id: str,
        *,
        turn: int | None,
        metadata: Mapping[str, str] | None,
        project_id: ProjectId | None = None,
    ) -> SessionView:
        """A new session that shares the log up to a turn (the last one by default; 0: none of it).

        Copies nothing but one row; the pages are shared, each session claiming its own.
        """
        plan = (await self._context.plans.of(tenant_id)).definition
        async with self._context.catalog.transaction() as tx:
            parent = await tx.sessions.get(tenant_id, checked_id(session_id))
            number = parent.turns if turn is None else turn
            if not 0 <= number <= parent.turns:
                raise InvalidRequest(
                    f"The session has {parent.turns} turns; it cannot be forked at {number}.",
                    param="turn",
                )
            head = None
            if parent.head_turn_id is not None and (number or parent.context_id is not None):
                head = await tx.turns.numbered(tenant_id, parent.head_turn_id, number)
                if head is None or not await tx.turns.pin(tenant_id, head.id):
                    raise NotFound("session", session_id)  # deleted meanwhile
            session = _under_plan(_forked(parent, head, number, metadata), plan)
            session = replace(session, project_id=project_id)
            await tx.sessions.create(session)
        await self._claim(session)
        return view_of(session, running=False)

    async def _from_context(
        self,
        tenant_id: TenantId,
        context_id: str,
        model: str | None,
        retention: RetentionName | None,
    ) -> Session:
        if not is_id(context_id, "ctx"):
            raise NotFound("context", context_id)
        async with self._context.catalog.reading() as tx:
            record = await tx.contexts.get(tenant_id, context_id)
            origin = await tx.sessions.get(tenant_id, record.session_id)
            assert origin.head_turn_id is not None, "a context's session has its messages"
            head = await tx.turns.get(tenant_id, origin.head_turn_id)
        if model is not None and await self._models.resolve(tenant_id, model) != origin.model:
            raise InvalidRequest(
                f"The context was made for model {origin.model!r}; leave the model out.",
                param="model",
            )
        own = await self._bases.new_session(
            tenant_id, origin.model, TurnRequest((), retention=retention)
        )
        return replace(
            _forked(origin, head, 0, {}),
            context_id=context_id,
            parent_session_id=None,
            fork_turn=None,
            retention=own.retention,
            asked_retention=own.asked_retention,
            kv_retention_seconds=own.kv_retention_seconds,
            log_retention_seconds=own.log_retention_seconds,
            expires_at=own.expires_at,
        )

    async def _claim(self, session: Session) -> None:
        """Claims before the session is shown: what it shares may be let go of right afterwards."""
        if session.head_turn_id is None or session.page_tokens is None:
            return
        keys = (await self._deletion.page_keys(session))[: expected_pages(session)]
        if not keys:
            return
        item = Watched(
            session.tenant_id,
            session.id,
            session.head_turn_id,
            keys,
            session.page_tokens,
            time.time() + session.kv_retention_seconds,
            await self._context.claim_terms(session),
        )
        await self._tracker.claim_now(item)
        self._tracker.watch(item)


def _under_plan(session: Session, plan: PlanDefinition) -> Session:
    """A new session with the terms that its tenant's plan gives it."""
    session = under_plan(session, plan, None)
    expires_at = session.created_at + session.log_retention_seconds * 1_000_000
    return replace(session, expires_at=expires_at)


def _forked(
    parent: Session, head: Turn | None, number: int, metadata: Mapping[str, str] | None
) -> Session:
    now = now_us()
    tokens = head.log_tokens if head else 0
    page = parent.page_tokens or 1
    # The last token of a log has no KV, so that a fork's pages end before it; a context's has.
    pages = durable_pages(tokens, page)
    if head is not None and head.reply is None:
        pages = tokens // page
    return replace(
        parent,
        id=SessionId(new_id("ses")),
        metadata=parent.metadata if metadata is None else metadata,
        state="active",
        head_turn_id=head.id if head else None,
        turns=number,
        tokens=tokens,
        durable_position=min(parent.durable_position, pages * page),
        rebases=0,
        parent_session_id=parent.id,
        fork_turn=number,
        worker_id=parent.worker_id if head else None,
        worker_generation=parent.worker_generation if head else None,
        fingerprint=parent.fingerprint if head else None,
        page_tokens=parent.page_tokens if head else None,
        created_at=now,
        updated_at=now,
        origin="session",
        expires_at=now + parent.log_retention_seconds * 1_000_000,
    )
