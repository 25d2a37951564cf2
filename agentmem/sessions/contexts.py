"""Contexts: a beginning (messages, tools, documents) computed once, for any number of sessions.

A context is a log without a reply, held by a session of its own that nobody runs turns in. Sessions
started from it go on from the same turn, so that they share its ids, hence its page keys, hence its
pages, byte for byte.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from agentmem.catalog.ids import is_id, new_id, now_us
from agentmem.catalog.records import ContextRecord, Session, Turn, UsageEvent, Worker
from agentmem.core import SessionId, TenantId, TierTokens, TurnId
from agentmem.errors import ContextOverflow, InvalidRequest, NotFound
from agentmem.plans.classes import RetentionName
from agentmem.sessions.bases import Bases
from agentmem.sessions.context import Context
from agentmem.sessions.deletion import Deletion
from agentmem.sessions.durability import DurabilityTracker, Watched
from agentmem.sessions.hibernation import Hibernation
from agentmem.sessions.log import empty_log, started
from agentmem.sessions.messages import Framing, Message, chain_hashes
from agentmem.sessions.models import Models
from agentmem.sessions.ports import Freed
from agentmem.sessions.preparation import window
from agentmem.sessions.requests import Caller, TurnRequest
from agentmem.sessions.usage import LoadWatch, Usage, written_tokens
from agentmem.sessions.views import SessionView, view_of


@dataclass(frozen=True, slots=True)
class Document:
    """A text that a context holds."""

    text: str
    title: str | None = None


@dataclass(frozen=True, slots=True)
class ContextView:
    """A context and the session that holds its log: `session.session.tokens` is its length."""

    record: ContextRecord
    session: SessionView


class Contexts:
    """Makes, shows and deletes contexts."""

    def __init__(
        self,
        context: Context,
        bases: Bases,
        *,
        models: Models,
        hibernation: Hibernation,
        tracker: DurabilityTracker,
        deletion: Deletion,
    ) -> None:
        self._context = context
        self._bases = bases
        self._models = models
        self._hibernation = hibernation
        self._tracker = tracker
        self._deletion = deletion

    async def create(
        self,
        caller: Caller,
        *,
        model: str | None,
        name: str,
        framing: Framing,
        messages: Sequence[Message] = (),
        documents: Sequence[Document] = (),
        retention: RetentionName | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> ContextView:
        """Computes the context's pages and answers when that is done.

        Raises InvalidRequest for an empty one, ContextOverflow, ModelNotFound, WorkerUnavailable,
        EngineFailed: in all these cases nothing is kept.
        """
        begun = time.perf_counter()
        told = [*_document_messages(documents), *messages]
        if not told and framing == Framing():
            raise InvalidRequest("A context needs messages, documents or instructions.")
        served = await self._models.resolve(caller.tenant_id, model)
        request = TurnRequest(tuple(told), framing, retention=retention)
        session = await self._bases.new_session(caller.tenant_id, served, request)
        session = replace(
            session,
            origin="context",
            metadata=dict(metadata or {}),
            project_id=caller.project_id,
        )
        worker = await self._context.router.choose(served, None)
        turn = await self._turn(session, worker, request)
        watch = LoadWatch(self._context.pages, self._context.metrics)
        await watch.start()
        cached = await self._hibernation.send_log(session, worker, turn.tokens)
        keys = self._context.keys(
            session.tenant_id, worker.fingerprint, turn.tokens, worker.page_tokens
        )
        tiers = await watch.tiers(cached, keys, worker.page_tokens)
        usage = _usage(turn, tiers, worker, time.perf_counter() - begun, retention)
        turn = replace(turn, usage=usage.as_dict())
        session = _with_log(session, turn, worker)
        record = ContextRecord(
            new_id("ctx"), caller.tenant_id, session.id, name, dict(metadata or {}), now_us()
        )
        async with self._context.catalog.transaction() as tx:
            await tx.turns.insert(turn)
            await tx.sessions.create(session)
            await tx.contexts.insert(record)
            await tx.usage_events.insert(_usage_event(caller, session, turn, usage))
        self._tracker.watch(
            Watched(
                session.tenant_id,
                session.id,
                turn.id,
                keys,
                worker.page_tokens,
                time.time() + session.kv_retention_seconds,
                await self._context.claim_terms(session),
            )
        )
        return ContextView(record, view_of(session, running=False))

    async def get(self, tenant_id: TenantId, context_id: str) -> ContextView:
        """One context. Raises NotFound."""
        async with self._context.catalog.reading() as tx:
            record = await tx.contexts.get(tenant_id, _checked(context_id))
            session = await tx.sessions.get(tenant_id, record.session_id)
        return ContextView(record, view_of(session, running=False))

    async def list(
        self, tenant_id: TenantId, *, after: str | None, limit: int, descending: bool
    ) -> tuple[list[ContextView], bool]:
        """A tenant's contexts by creation, and whether there are more."""
        async with self._context.catalog.reading() as tx:
            found = await tx.contexts.list(
                tenant_id, after=after, limit=limit + 1, descending=descending
            )
            sessions = [await tx.sessions.get(tenant_id, one.session_id) for one in found[:limit]]
        views = [
            ContextView(record, view_of(session, running=False))
            for record, session in zip(found[:limit], sessions, strict=True)
        ]
        return views, len(found) > limit

    async def delete(self, tenant_id: TenantId, context_id: str) -> Freed:
        """Lets go of it. Sessions that were started from it keep what they share."""
        async with self._context.catalog.reading() as tx:
            record = await tx.contexts.get(tenant_id, _checked(context_id))
        return await self._deletion.delete(tenant_id, record.session_id)

    async def _turn(self, session: Session, worker: Worker, request: TurnRequest) -> Turn:
        chat = await self._context.chat(worker)
        now = now_us()
        framing = request.framing
        text = chat.render(
            request.messages,
            now=started(empty_log(now)),
            framing=framing,
            add_generation_prompt=False,
        )
        ids = array("I", await chat.encode(text))
        limit = window(worker)
        if not 0 < len(ids) < limit:
            raise ContextOverflow(tokens=len(ids), limit=limit)
        hashes = chain_hashes(session.model, framing, request.messages)
        return Turn(
            id=TurnId(new_id("turn")),
            tenant_id=session.tenant_id,
            session_id=session.id,
            parent_turn_id=None,
            number=0,
            keep=0,
            tokens=ids,
            prompt_tokens=len(ids),
            log_tokens=len(ids),
            rebased=False,
            messages=[dict(message) for message in request.messages],
            reply=None,
            finish_reason="length",
            sampling={},
            usage={},
            logprobs=None,
            body_hash="",
            created_at=now,
            framing=framing.as_dict(),
            prefix_hash=hashes[-1] if hashes else None,
        )


def _document_messages(documents: Sequence[Document]) -> list[Message]:
    if not documents:
        return []
    parts = []
    for number, document in enumerate(documents, 1):
        title = document.title or f"Document {number}"
        parts.append(f"# {title}\n\n{document.text}")
    return [{"role": "system", "content": "\n\n".join(parts)}]


def _with_log(session: Session, turn: Turn, worker: Worker) -> Session:
    return replace(
        session,
        head_turn_id=turn.id,
        tokens=turn.log_tokens,
        worker_id=worker.id,
        worker_generation=worker.generation,
        fingerprint=worker.fingerprint.digest.hex(),
        page_tokens=worker.page_tokens,
    )


def _usage(
    turn: Turn, tiers: TierTokens, worker: Worker, seconds: float, retention: str | None
) -> Usage:
    return Usage(
        prompt_tokens=turn.prompt_tokens,
        output_tokens=0,
        cached=tiers,
        recomputed_tokens=0,
        ttft_seconds=seconds,
        total_seconds=seconds,
        written_tokens=written_tokens(
            prompt_tokens=turn.prompt_tokens,
            cached=tiers.total,
            page_tokens=worker.page_tokens,
            kept=True,
        ),
        retention=retention,
    )


def _usage_event(caller: Caller, session: Session, turn: Turn, usage: Usage) -> UsageEvent:
    read = usage.cached.total
    return UsageEvent(
        id=new_id("use"),
        tenant_id=turn.tenant_id,
        api_key_id=caller.api_key_id,
        session_id=SessionId(session.id),
        turn_id=turn.id,
        response_id=None,
        surface="contexts",
        model=session.model,
        retention=session.retention,
        input_tokens=usage.prompt_tokens,
        uncached_tokens=usage.prompt_tokens - read - usage.written_tokens,
        read_tokens=read,
        written_tokens=usage.written_tokens,
        output_tokens=0,
        reasoning_tokens=0,
        read_by_tier=usage.cached.as_dict(),
        recomputed_tokens=0,
        created_at=now_us(),
        project_id=caller.project_id,
    )


def _checked(context_id: str) -> str:
    if not is_id(context_id, "ctx"):
        raise NotFound("context", context_id)
    return context_id
