"""Running a turn: lease, prompt, engine, commit. One transaction, or nothing.

    begin()                      run, a task of its own
    ------------------------     ------------------------------------------------------
    session, lease               engine streams ids → deltas
    log, prompt, worker          commit: generation and head checked, turn written,
    limits checked               lease released; then the pages are claimed and watched

Whatever goes wrong before the commit leaves the log where it was.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import cast

from agentmem.catalog.ids import new_id, now_us
from agentmem.catalog.records import Lease, Session, Turn, Worker
from agentmem.core import SessionId, TenantId, TurnId
from agentmem.engine.base import CachedTokens, GenerateChunk, GenerateRequest
from agentmem.errors import (
    AgentmemError,
    ContextOverflow,
    EngineFailed,
    SessionBusy,
    TurnConflict,
    WorkerUnavailable,
)
from agentmem.router.registry import Assignment
from agentmem.sessions.chat import TextStream
from agentmem.sessions.commit import PreparedTurn, Reply, TurnCommitter
from agentmem.sessions.context import Context
from agentmem.sessions.durability import DurabilityTracker
from agentmem.sessions.leases import LeaseKeeper
from agentmem.sessions.log import extend_prompt
from agentmem.sessions.requests import TurnRequest
from agentmem.sessions.runs import (
    Listener,
    TurnCompleted,
    TurnCreated,
    TurnDelta,
    TurnFailed,
    TurnRun,
    finished_run,
)
from agentmem.sessions.usage import LoadWatch
from agentmem.sessions.warmth import tokens_to_load
from agentmem.telemetry import get_logger

_log = get_logger("agentmem.sessions.turns")


class TurnRunner:
    """Begins turns and sees them through; at most one per session, by its lease."""

    def __init__(self, context: Context, leases: LeaseKeeper, tracker: DurabilityTracker) -> None:
        self._context = context
        self._leases = leases
        self._committer = TurnCommitter(context, leases, tracker)
        self._runs: dict[SessionId, TurnRun] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False

    async def begin(self, tenant_id: TenantId, session_id: str, request: TurnRequest) -> Listener:
        """Starts the turn, or joins or replays the one that `expected_turn` names.

        Raises NotFound, SessionBusy, TurnConflict, ContextOverflow, InvalidRequest,
        WorkerUnavailable: in all these cases nothing has changed. Close the listener.
        """
        arrived = time.perf_counter()
        if self._draining:
            raise WorkerUnavailable("This gateway is shutting down.", retry_after_seconds=1.0)
        body_hash = request.body_hash()
        lease = None
        async with self._context.catalog.transaction(durable=False) as tx:
            session = await tx.sessions.get(tenant_id, session_id)
            expected = request.expected_turn
            if expected is None or expected == session.turns + 1:
                running = self._runs.get(session.id)
                if expected is not None and running is not None and not running.over:
                    return _join(running, expected, body_hash)
                lease = await self._leases.take(tx, session)
        if lease is None:
            return await self._replay(session, request, body_hash)
        self._leases.hold(lease)
        try:
            prepared = await self._prepare(session, lease, request, body_hash, arrived)
        except BaseException:
            await self._leases.release(lease)
            raise
        return self._start(prepared)

    async def drain(self, seconds: float) -> None:
        """Takes no new turns, waits for the running ones, ends those that take longer."""
        self._draining = True
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=seconds)
            for run in list(self._runs.values()):
                run.end()
            if late:
                _log.warning("turns were ended by the shutdown", turns=len(late))
                await asyncio.wait(late)

    async def _replay(self, session: Session, request: TurnRequest, body_hash: str) -> Listener:
        """The committed turn that the caller names, or why it cannot be that one."""
        expected = request.expected_turn
        assert expected is not None, "only a named turn is replayed"
        if expected > session.turns + 1:
            raise TurnConflict(
                f"expected_turn is {expected}, but the session has {session.turns} turns: "
                f"its next one is {session.turns + 1}.",
                turns=session.turns,
            )
        turn = None
        if session.head_turn_id is not None:
            async with self._context.catalog.reading() as tx:
                turn = await tx.turns.numbered(session.tenant_id, session.head_turn_id, expected)
        if turn is None or turn.body_hash != body_hash:
            raise TurnConflict(
                f"Turn {expected} is in the log already, with another body.",
                turns=session.turns,
            )
        return finished_run(turn, session.id, turn.reply["content"]).listen()

    async def _prepare(
        self, session: Session, lease: Lease, request: TurnRequest, body_hash: str, arrived: float
    ) -> PreparedTurn:
        context = self._context
        worker = await context.router.choose(session.model, session.worker_id)
        chat = await context.chat(worker)
        now = now_us()
        log = await context.log(session, chat, now_us=now)
        prompt = await extend_prompt(chat, log, request.messages)
        limit = _window(worker)
        if request.max_tokens is None:
            left = limit - len(prompt.ids)
            max_tokens = max(1, min(context.limits.turn_tokens_default, left))
        else:
            max_tokens = request.max_tokens
        if len(prompt.ids) + max_tokens > limit:
            raise ContextOverflow(tokens=len(prompt.ids) + max_tokens, limit=limit)
        return PreparedTurn(
            turn_id=TurnId(new_id("turn")),
            number=session.turns + 1,
            session=session,
            lease=lease,
            log=log,
            prompt=prompt,
            chat=chat,
            worker=worker,
            sampling=request.sampling(max_tokens),
            request=request,
            body_hash=body_hash,
            arrived=arrived,
            created_at=now,
        )

    def _start(self, prepared: PreparedTurn) -> Listener:
        session = prepared.session
        run = TurnRun(
            session.id,
            prepared.number,
            prepared.body_hash,
            retryable=prepared.request.expected_turn is not None,
        )
        run.publish(TurnCreated(prepared.turn_id, run.number))
        listener = run.listen()
        self._runs[session.id] = run
        run.task = asyncio.create_task(self._run(run, prepared))
        self._tasks.add(run.task)
        run.task.add_done_callback(self._tasks.discard)
        return listener

    async def _run(self, run: TurnRun, prepared: PreparedTurn) -> None:
        """The task of one turn: publishes its end, whatever happens, once its lease is free.

        So whoever hears of the end can send the next turn, or this one again, at once.
        """
        with self._context.metrics.turns_running.track_inprogress():
            end = await self._end(run, prepared)
            run.settle()
            if isinstance(end, TurnFailed):
                await self._leases.release(prepared.lease)
            if self._runs.get(run.session_id) is run:
                del self._runs[run.session_id]
            run.publish(end)

    async def _end(self, run: TurnRun, prepared: PreparedTurn) -> TurnCompleted | TurnFailed:
        """Runs the turn and says how it ended; never raises."""
        outcome = "completed"
        try:
            run.begin()
            return TurnCompleted(await self._compute(run, prepared))
        except asyncio.CancelledError:
            # Nobody listens any more, or the gateway is shutting down.
            outcome = "aborted"
            return TurnFailed(EngineFailed("The turn was ended before it was done."))
        except AgentmemError as error:
            outcome = type(error).__name__
            return TurnFailed(error)
        # loop edge: of a task; the caller gets an answer, the log gets the traceback.
        except Exception:  # noqa: BLE001
            outcome = "internal"
            _log.exception("a turn failed unexpectedly", session_id=run.session_id)
            return TurnFailed(AgentmemError("The turn failed for an internal reason."))
        finally:
            self._context.metrics.turns.labels(prepared.session.model, outcome).inc()

    async def _compute(self, run: TurnRun, prepared: PreparedTurn) -> Turn:
        """Generates within the turn's time, then commits, which no cancellation interrupts."""
        context = self._context
        seconds = context.limits.turn_seconds_max
        watch = LoadWatch(context.pages, context.metrics)
        try:
            async with asyncio.timeout(seconds):
                await watch.start()
                reply = await self._generate(run, prepared)
        except TimeoutError as error:
            raise EngineFailed(f"The turn took longer than {seconds:g} s and was ended.") from error
        commit = asyncio.create_task(self._committer.commit(prepared, reply, watch))
        try:
            return await asyncio.shield(commit)
        except asyncio.CancelledError:
            # The reply is whole: a listener that leaves now does not undo it.
            return await commit

    async def _generate(self, run: TurnRun, prepared: PreparedTurn) -> Reply:
        """Streams from the engine into the run. Raises EngineFailed unless the reply is whole."""
        session, worker = prepared.session, prepared.worker
        request = GenerateRequest(
            request_id=prepared.turn_id,
            token_ids=prepared.prompt.ids.tolist(),
            sampling=prepared.sampling,
            salt=self._context.secrets.tenant_salt(session.tenant_id),
            session_id=session.id,
            logprobs=prepared.request.logprobs,
        )
        reply = Reply(TextStream(prepared.chat, prepared.request.stop))
        async with self._context.router.running_on(worker) as assignment, AsyncExitStack() as gate:
            await self._open(assignment, session)
            await gate.enter_async_context(
                assignment.gate.hold(tokens_to_load(session, assignment, prepared.prompt.keep))
            )
            # Closing the stream early is what aborts the request in the engine.
            stream = cast(
                "AsyncGenerator[GenerateChunk, None]", assignment.engine.generate(request)
            )
            async with aclosing(stream):
                async for chunk in stream:
                    await gate.aclose()  # the prompt is computed: nothing is loading any more
                    self._take(run, prepared, reply, chunk)
            if reply.finish_reason not in ("stop", "length") or not reply.ids:
                reason = reply.finish_reason or "no reason given"
                raise EngineFailed(f"The worker ended the turn early ({reason}).")
            assignment.warm.touch(session.id, len(prepared.prompt.ids) + len(reply.ids))
        rest = reply.text.finish()
        if rest:
            run.publish(TurnDelta(rest, (), ()))
        return reply

    def _take(
        self,
        run: TurnRun,
        prepared: PreparedTurn,
        reply: Reply,
        chunk: GenerateChunk,
    ) -> None:
        if chunk.token_ids:
            if not reply.ids:
                reply.ttft_seconds = time.perf_counter() - prepared.arrived
                self._context.metrics.ttft.labels(prepared.session.model).observe(
                    reply.ttft_seconds
                )
            reply.ids.extend(chunk.token_ids)
            reply.logprobs.extend(chunk.logprobs)
            piece = reply.text.push(chunk.token_ids)
            run.publish(TurnDelta(piece, chunk.token_ids, chunk.logprobs))
        if chunk.finish_reason is not None:
            reply.finish_reason = chunk.finish_reason
            reply.cached = chunk.cached or CachedTokens()

    async def _open(self, assignment: Assignment, session: Session) -> None:
        """Registers the session with the engine where it may not be known yet."""
        if session.id not in assignment.warm:
            await assignment.engine.open_session(session.id)


def _window(worker: Worker) -> int:
    """The most tokens that prompt and reply may have together on this worker."""
    return min(worker.context_tokens, worker.hbm_tokens or worker.context_tokens)


def _join(running: TurnRun, expected: int, body_hash: str) -> Listener:
    """A repeat of the turn that is running here and now: it follows along."""
    if running.number != expected:
        raise SessionBusy(running.session_id, retry_after_seconds=1.0)
    if running.body_hash != body_hash:
        raise TurnConflict(
            f"Turn {expected} is running already, with another body.", turns=expected - 1
        )
    return running.listen()
