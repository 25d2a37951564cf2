"""The end of a turn: one transaction, fenced by the lease's generation and the log's head."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from agentmem.catalog.records import Lease, Session, Turn, Worker
from agentmem.core import PageKey, TurnId, durable_pages
from agentmem.engine.base import CachedTokens, Sampling
from agentmem.errors import LeaseLost
from agentmem.sessions.chat import Chat, TextStream
from agentmem.sessions.context import Context, session_fingerprint
from agentmem.sessions.durability import DurabilityTracker, Watched
from agentmem.sessions.leases import LeaseKeeper
from agentmem.sessions.log import Log, Prompt, extended_log
from agentmem.sessions.requests import TurnRequest
from agentmem.sessions.usage import LoadWatch, Usage, recomputed_tokens


@dataclass(frozen=True, slots=True)
class PreparedTurn:
    """Everything that a turn needs to run.

    `arrived` is on the monotonic clock, `created_at` in microseconds since the epoch.
    """

    turn_id: TurnId
    number: int
    session: Session
    lease: Lease
    log: Log
    prompt: Prompt
    chat: Chat
    worker: Worker
    sampling: Sampling
    request: TurnRequest
    body_hash: str
    arrived: float
    created_at: int


@dataclass(slots=True)
class Reply:
    """What the engine made of it, as it comes in."""

    text: TextStream
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str = ""
    cached: CachedTokens = field(default_factory=CachedTokens)
    ttft_seconds: float = 0.0


class TurnCommitter:
    """Writes finished turns and hands their pages to the durability tracker."""

    def __init__(self, context: Context, leases: LeaseKeeper, tracker: DurabilityTracker) -> None:
        self._context = context
        self._leases = leases
        self._tracker = tracker

    async def commit(self, prepared: PreparedTurn, reply: Reply, watch: LoadWatch) -> Turn:
        """Appends the turn to the log and frees the lease. Raises LeaseLost when fenced off."""
        context, session, worker = self._context, prepared.session, prepared.worker
        ids = prepared.prompt.ids[:]
        ids.extend(reply.ids)
        keys = context.keys(session.tenant_id, worker.fingerprint, ids, worker.page_tokens)
        usage = await self._usage(prepared, reply, watch, keys)
        turn = _turn(prepared, reply, usage)
        orphans = self._orphans(prepared, set(keys))
        async with context.catalog.transaction() as tx:
            if not await tx.leases.is_current(prepared.lease):
                context.metrics.leases_lost.inc()
                raise LeaseLost("Another gateway took the session over; this turn was not kept.")
            await tx.turns.insert(turn)
            durable = await tx.sessions.advance(session, turn, worker)
            if durable is None:
                context.metrics.leases_lost.inc()
                raise LeaseLost("The session moved on meanwhile; this turn was not kept.")
            if orphans:
                await tx.unclaims.add(session.tenant_id, session.id, orphans)
            await tx.leases.release(prepared.lease)
        self._leases.released(prepared.lease)
        context.logs.put(extended_log(prepared.log, turn, prepared.prompt))
        pages = durable_pages(len(ids), worker.page_tokens)
        self._tracker.watch(
            Watched(
                session.tenant_id,
                session.id,
                turn.id,
                keys[:pages],
                worker.page_tokens,
                time.time() + session.kv_retention_seconds,
                durable_pages=durable // worker.page_tokens,
            )
        )
        self._count(turn, session.model, usage)
        return turn

    async def _usage(
        self, prepared: PreparedTurn, reply: Reply, watch: LoadWatch, keys: list[PageKey]
    ) -> Usage:
        prompt = prepared.prompt
        tiers = await watch.tiers(reply.cached, keys, prepared.worker.page_tokens)
        return Usage(
            prompt_tokens=len(prompt.ids),
            output_tokens=len(reply.ids),
            cached=tiers,
            recomputed_tokens=recomputed_tokens(
                kept=prompt.keep, log_tokens=len(prepared.log.ids), cached=tiers.total
            ),
            ttft_seconds=reply.ttft_seconds,
            total_seconds=time.perf_counter() - prepared.arrived,
        )

    def _orphans(self, prepared: PreparedTurn, kept: set[PageKey]) -> list[PageKey]:
        """Keys of the old log that the new one no longer has: after a re-base, or under another
        fingerprint. Their claim is given up with the commit."""
        session, worker = prepared.session, prepared.worker
        fingerprint = session_fingerprint(session)
        if fingerprint is None or session.page_tokens is None:
            return []
        same = (fingerprint, session.page_tokens) == (worker.fingerprint, worker.page_tokens)
        if same and not prepared.prompt.rebased:
            return []
        old = self._context.keys(
            session.tenant_id, fingerprint, prepared.log.ids, session.page_tokens
        )
        return [key for key in old if key not in kept]

    def _count(self, turn: Turn, model: str, usage: Usage) -> None:
        metrics = self._context.metrics
        metrics.turn_seconds.labels(model).observe(usage.total_seconds)
        metrics.tokens.labels(model, "prompt").inc(usage.prompt_tokens)
        metrics.tokens.labels(model, "output").inc(usage.output_tokens)
        metrics.tokens.labels(model, "recomputed").inc(usage.recomputed_tokens)
        for tier, tokens in usage.cached.as_dict().items():
            metrics.tokens.labels(model, f"cached_{tier}").inc(tokens)
        if turn.rebased:
            metrics.rebases.labels(model).inc()


def _turn(prepared: PreparedTurn, reply: Reply, usage: Usage) -> Turn:
    prompt, request = prepared.prompt, prepared.request
    tokens = prompt.ids[prompt.keep :]
    tokens.extend(reply.ids)
    return Turn(
        id=prepared.turn_id,
        tenant_id=prepared.session.tenant_id,
        session_id=prepared.session.id,
        parent_turn_id=prepared.log.turn_id,
        number=prepared.number,
        keep=prompt.keep,
        tokens=tokens,
        prompt_tokens=len(prompt.ids),
        log_tokens=len(prompt.ids) + len(reply.ids),
        rebased=prompt.rebased,
        messages=[dict(message) for message in request.messages],
        reply={"role": "assistant", "content": reply.text.text},
        finish_reason=reply.finish_reason,
        sampling=request.sampling_fields(),
        usage=usage.as_dict(),
        logprobs=list(reply.logprobs) if request.logprobs else None,
        body_hash=prepared.body_hash,
        created_at=prepared.created_at,
    )
