"""The end of a turn: one transaction, in which everything of it appears, or nothing.

A named session is fenced by its lease's generation and its log's head. Any other turn extends its
session if that still ends where the turn began and nobody holds it, else it branches off.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from agentmem.catalog import Transaction
from agentmem.catalog.ids import new_id, now_us
from agentmem.catalog.records import Item, Response, Session, Turn, UsageEvent
from agentmem.core import PageKey, TierTokens, durable_pages
from agentmem.errors import LeaseLost
from agentmem.sessions.bases import Bases, branched
from agentmem.sessions.context import Context, session_fingerprint
from agentmem.sessions.durability import DurabilityTracker, Watched
from agentmem.sessions.keeping import Expected, Keeping
from agentmem.sessions.leases import LeaseKeeper
from agentmem.sessions.log import extended_log
from agentmem.sessions.messages import extend_hash
from agentmem.sessions.preparation import PreparedTurn
from agentmem.sessions.replay import pack_deltas
from agentmem.sessions.reply import Reply
from agentmem.sessions.requests import RetryKey
from agentmem.sessions.retries import request_key, retry_record
from agentmem.sessions.savings import PrefillSpeed
from agentmem.sessions.usage import LoadWatch, Usage, recomputed_tokens, written_tokens

_MICROSECONDS = 1_000_000


@dataclass(frozen=True, slots=True)
class _Outcome:
    """A turn that was written: its session as it is now, and its durable position (tokens)."""

    turn: Turn
    session: Session
    durable_position: int


class TurnCommitter:
    """Writes finished turns and hands their pages to the durability tracker."""

    def __init__(
        self,
        context: Context,
        leases: LeaseKeeper,
        tracker: DurabilityTracker,
        bases: Bases,
        speed: PrefillSpeed,
        *,
        keeping: Keeping,
    ) -> None:
        self._context = context
        self._leases = leases
        self._tracker = tracker
        self._bases = bases
        self._speed = speed
        self._keeping = keeping

    async def commit(self, prepared: PreparedTurn, reply: Reply, watch: LoadWatch) -> Turn:
        """Appends the turn to the log and frees the lease. Raises LeaseLost when fenced off."""
        context, worker = self._context, prepared.worker
        session = prepared.base.session
        ids = prepared.prompt.ids[:]
        ids.extend(reply.ids)
        keys = context.keys(session.tenant_id, worker.fingerprint, ids, worker.page_tokens)
        usage = await self._usage(prepared, reply, watch, keys)
        turn = _turn(prepared, reply, usage)
        if not prepared.request.store:
            # Nothing of it is kept but what it used. Its pages stay unclaimed: only cache.
            async with context.catalog.transaction() as tx:
                await tx.usage_events.insert(_usage_event(prepared, turn, None, usage))
                if prepared.base.lease is not None:
                    await tx.leases.release(prepared.base.lease)
            if prepared.base.lease is not None:
                self._leases.released(prepared.base.lease)
            self._count(turn, session.model, usage)
            return turn
        orphans = self._orphans(prepared, set(keys))

        async def write(tx: Transaction) -> _Outcome:
            outcome = await self._write(tx, prepared, reply, turn, usage)
            if orphans:
                await tx.unclaims.add(session.tenant_id, session.id, orphans)
            return outcome

        async def is_there(tx: Transaction) -> bool:
            return await tx.turns.exists(session.tenant_id, turn.id)

        done = await context.catalog.attempt(write, kept=is_there)
        if prepared.base.lease is not None:
            self._leases.released(prepared.base.lease)
        context.logs.put(extended_log(prepared.chat, prepared.log, done.turn, prepared.prompt))
        self._bases.note(session.tenant_id, done.turn, done.session)
        await self._watch(prepared, done, keys[: durable_pages(len(ids), worker.page_tokens)])
        self._count(done.turn, session.model, usage)
        return done.turn

    async def _write(
        self,
        tx: Transaction,
        prepared: PreparedTurn,
        reply: Reply,
        turn: Turn,
        usage: Usage,
    ) -> _Outcome:
        if prepared.retry is not None:
            await _check_first(tx, prepared, prepared.retry[1])
        session, made = await self._session(tx, prepared)
        turn = replace(turn, session_id=session.id)
        await tx.turns.insert(turn)
        durable: int | None = 0
        if made:
            durable = await tx.sessions.advance(session, turn, prepared.worker)
        else:
            session = _begun(session, turn, prepared)
            durable = session.durable_position
            await tx.sessions.create(session)
        if durable is None:
            self._context.metrics.leases_lost.inc()
            raise LeaseLost("The session moved on meanwhile; this turn was not kept.")
        await tx.usage_events.insert(_usage_event(prepared, turn, session, usage))
        if prepared.plan is not None:
            await _write_response(tx, prepared, reply, turn, session)
        if prepared.retry is not None:
            attempt, key = prepared.retry
            await tx.retries.insert(
                retry_record(prepared.caller, key, attempt, turn, prepared.plan)
            )
        if prepared.base.lease is not None:
            await tx.leases.release(prepared.base.lease)
        return _Outcome(turn, session, durable)

    async def _session(self, tx: Transaction, prepared: PreparedTurn) -> tuple[Session, bool]:
        """The session to write the turn into, and whether it is there already.

        Raises LeaseLost when the log that the turn was built on is gone.
        """
        base = prepared.base
        session = base.session
        if base.lease is not None:
            if not await tx.leases.is_current(base.lease):
                self._context.metrics.leases_lost.inc()
                raise LeaseLost("Another gateway took the session over; this turn was not kept.")
            return session, True
        parent = prepared.log.turn_id
        # The lease's row before the turn's, as everywhere.
        held = await tx.leases.find(session.tenant_id, session.id, lock=True) if base.made else None
        if parent is not None and not await tx.turns.pin(session.tenant_id, parent):
            raise LeaseLost("The conversation was deleted meanwhile; this turn was not kept.")
        if not base.made:
            return session, False
        current = await tx.sessions.with_head(session.tenant_id, parent or "")
        if held is None and current is not None and current.id == session.id:
            return session, True
        return branched(session, parent), False

    async def _usage(
        self, prepared: PreparedTurn, reply: Reply, watch: LoadWatch, keys: list[PageKey]
    ) -> Usage:
        prompt, worker, session = prepared.prompt, prepared.worker, prepared.base.session
        now, kept = int(time.time()), prepared.request.store
        tiers: TierTokens = await watch.tiers(reply.cached, keys, worker.page_tokens)
        cached, ttft = tiers.total, reply.ttft_seconds
        saved = None
        if cached:
            saved = self._speed.saved(
                worker.id, worker.generation, prompt_tokens=len(prompt.ids), ttft_seconds=ttft
            )
        else:
            self._speed.note(
                worker.id, worker.generation, computed_tokens=len(prompt.ids), seconds=ttft
            )
        return Usage(
            prompt_tokens=len(prompt.ids),
            output_tokens=len(reply.ids),
            cached=tiers,
            recomputed_tokens=recomputed_tokens(
                kept=prompt.keep, log_tokens=len(prepared.log.ids), cached=cached
            ),
            ttft_seconds=ttft,
            total_seconds=time.perf_counter() - prepared.arrived,
            written_tokens=written_tokens(
                prompt_tokens=len(prompt.ids),
                cached=cached,
                page_tokens=worker.page_tokens,
                kept=kept,
            ),
            reasoning_tokens=reply.reasoning_tokens,
            seconds_saved=saved,
            retention=session.retention,
            asked_retention=session.asked_retention,
            expires_at=now + session.log_retention_seconds if kept else None,
            kv_expires_at=now + session.kv_retention_seconds if kept else None,
        )

    async def _watch(self, prepared: PreparedTurn, done: _Outcome, keys: list[PageKey]) -> None:
        page_tokens = prepared.worker.page_tokens
        session = done.session
        self._keeping.expect(Expected(session.tenant_id, session.id, done.turn.id, keys))
        self._tracker.watch(
            Watched(
                done.session.tenant_id,
                done.session.id,
                done.turn.id,
                keys,
                page_tokens,
                time.time() + done.session.kv_retention_seconds,
                await self._context.claim_terms(done.session),
                durable_pages=done.durable_position // page_tokens,
            )
        )

    def _orphans(self, prepared: PreparedTurn, kept: set[PageKey]) -> list[PageKey]:
        """Keys of a named session's old log that the new one no longer has: after a re-base, an
        edit, or under another fingerprint. Their claim is given up with the commit."""
        session, worker = prepared.base.session, prepared.worker
        fingerprint = session_fingerprint(session)
        if not prepared.base.made or fingerprint is None or session.page_tokens is None:
            return []
        same = (fingerprint, session.page_tokens) == (worker.fingerprint, worker.page_tokens)
        straight = prepared.log.turn_id == session.head_turn_id
        if same and straight and not prepared.prompt.rebased:
            return []
        old = self._context.logs.get(session.head_turn_id) if session.head_turn_id else None
        ids = old.ids if old is not None else prepared.log.ids
        keys = self._context.keys(session.tenant_id, fingerprint, ids, session.page_tokens)
        return [key for key in keys if key not in kept]

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


async def _check_first(tx: Transaction, prepared: PreparedTurn, key: RetryKey) -> None:
    """Raises LeaseLost when another gateway answered a request with this Idempotency-Key: it was
    sent to both before either had an answer."""
    if key.idempotency_key is None:
        return
    name = (prepared.caller.tenant_id, prepared.caller.api_key_id, request_key(key))
    await tx.retries.lock(*name)
    if await tx.retries.find(*name):
        raise LeaseLost("This request was answered elsewhere meanwhile; send it again for that.")


async def _write_response(
    tx: Transaction,
    prepared: PreparedTurn,
    reply: Reply,
    turn: Turn,
    session: Session,
) -> None:
    plan, now = prepared.plan, now_us()
    assert plan is not None, "only a planned response is written"
    replayed = plan.stored and plan.surface == "responses"
    await tx.responses.insert(
        Response(
            id=plan.id,
            tenant_id=turn.tenant_id,
            surface=plan.surface,
            status="incomplete" if turn.finish_reason == "length" else "completed",
            stored=plan.stored,
            session_id=session.id,
            turn_id=turn.id,
            previous_response_id=plan.previous_response_id,
            conversation_id=plan.conversation_id,
            request=plan.request,
            error=None,
            deltas=pack_deltas(reply.deltas) if replayed else None,
            created_at=prepared.created_at,
            completed_at=now,
            expires_at=now + session.log_retention_seconds * _MICROSECONDS,
            project_id=plan.project_id,
        )
    )
    told = [("input", item) for item in plan.input_items]
    told += [("output", item) for item in plan.output_items(turn, reply.deltas)]
    await tx.items.append(
        [
            Item(item["id"], turn.tenant_id, plan.id, plan.conversation_id, kind, item, now)
            for kind, item in told
        ]
    )


def _begun(session: Session, turn: Turn, prepared: PreparedTurn) -> Session:
    """A session as its first own turn makes it."""
    worker, now = prepared.worker, now_us()
    digest = worker.fingerprint.digest.hex()
    same_pages = (session.fingerprint, session.page_tokens) == (digest, worker.page_tokens)
    durable = min(session.durable_position, prepared.prompt.keep) if same_pages else 0
    return replace(
        session,
        head_turn_id=turn.id,
        turns=turn.number,
        tokens=turn.log_tokens,
        durable_position=durable - durable % worker.page_tokens,
        rebases=int(turn.rebased),
        state="active",
        fork_turn=None if session.parent_session_id is None else prepared.log.number,
        worker_id=worker.id,
        worker_generation=worker.generation,
        fingerprint=digest,
        page_tokens=worker.page_tokens,
        expires_at=now + session.log_retention_seconds * _MICROSECONDS,
        updated_at=now,
        # Also of a branch: it belongs to whoever made it.
        project_id=prepared.caller.project_id,
    )


def _usage_event(
    prepared: PreparedTurn, turn: Turn, session: Session | None, usage: Usage
) -> UsageEvent:
    plan, read = prepared.plan, usage.cached.total
    return UsageEvent(
        id=new_id("use"),
        tenant_id=turn.tenant_id,
        api_key_id=prepared.caller.api_key_id,
        session_id=None if session is None else session.id,
        turn_id=turn.id,
        response_id=None if plan is None else plan.id,
        surface="sessions" if plan is None else plan.surface,
        model=prepared.base.session.model,
        retention=None if session is None else session.retention,
        input_tokens=usage.prompt_tokens,
        uncached_tokens=usage.prompt_tokens - read - usage.written_tokens,
        read_tokens=read,
        written_tokens=usage.written_tokens,
        output_tokens=usage.output_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        read_by_tier=usage.cached.as_dict(),
        recomputed_tokens=usage.recomputed_tokens,
        created_at=now_us(),
        project_id=prepared.caller.project_id,
    )


def _turn(prepared: PreparedTurn, reply: Reply, usage: Usage) -> Turn:
    prompt, request = prepared.prompt, prepared.request
    tokens = prompt.ids[prompt.keep :]
    tokens.extend(reply.ids)
    message = reply.message(prepared.turn_id)
    same_framing = prompt.framing == prepared.log.framing
    return Turn(
        id=prepared.turn_id,
        tenant_id=prepared.base.session.tenant_id,
        session_id=prepared.base.session.id,
        parent_turn_id=prepared.log.turn_id,
        number=prepared.number,
        keep=prompt.keep,
        tokens=tokens,
        prompt_tokens=len(prompt.ids),
        log_tokens=len(prompt.ids) + len(reply.ids),
        rebased=prompt.rebased,
        messages=[dict(message) for message in prepared.base.messages],
        reply=message,
        finish_reason=reply.finish_reason,
        sampling=request.sampling_fields(),
        usage=usage.as_dict(),
        logprobs=list(reply.logprobs) if request.logprobs else None,
        body_hash=prepared.body_hash,
        created_at=prepared.created_at,
        framing=None if same_framing else prompt.framing.as_dict(),
        prefix_hash=extend_hash(prepared.prefix_hash, message),
        dropped=prompt.dropped,
        top_logprobs=[list(one) for one in reply.top_logprobs] if request.top_logprobs else None,
    )
