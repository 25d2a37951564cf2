"""Running a turn: base, prompt, engine, commit. One transaction, or nothing.

    begin()                        run, a task of its own
    --------------------------     ----------------------------------------------------
    repeat? → join or replay       engine streams ids → pieces → deltas
    base (lease if named)          commit: fences checked, turn and usage written,
    log, prompt, worker            lease released; then the pages are claimed and watched
    limits checked

Whatever goes wrong before the commit leaves the log where it was.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from agentmem.catalog.records import Session
from agentmem.core import SessionId, TenantId
from agentmem.errors import (
    AgentmemError,
    EngineFailed,
    SessionBusy,
    TurnConflict,
    WorkerUnavailable,
)
from agentmem.sessions.bases import Bases, checked_id
from agentmem.sessions.commit import TurnCommitter
from agentmem.sessions.context import Context
from agentmem.sessions.durability import DurabilityTracker
from agentmem.sessions.generation import Generator
from agentmem.sessions.keeping import Keeping
from agentmem.sessions.leases import LeaseKeeper
from agentmem.sessions.preparation import Preparation, PreparedTurn, TurnCall
from agentmem.sessions.requests import (
    Caller,
    InSession,
    ResponsePlan,
    RetryKey,
    Target,
    TurnRequest,
)
from agentmem.sessions.retries import Retries
from agentmem.sessions.runs import (
    Listener,
    TurnCompleted,
    TurnCreated,
    TurnFailed,
    TurnRun,
    finished_run,
)
from agentmem.sessions.savings import PrefillSpeed
from agentmem.telemetry import get_logger

_log = get_logger("agentmem.sessions.turns")


class TurnRunner:
    """Begins turns and sees them through; at most one per named session, by its lease."""

    def __init__(
        self,
        context: Context,
        leases: LeaseKeeper,
        tracker: DurabilityTracker,
        keeping: Keeping,
    ) -> None:
        self._context = context
        self._leases = leases
        self._retries = Retries(context.catalog)
        self._extending: Counter[SessionId] = Counter()
        self.bases = Bases(context, leases, self.is_extending)
        self.preparation = Preparation(context, self.bases)
        speed = PrefillSpeed()
        self._generator = Generator(context)
        self._committer = TurnCommitter(
            context, leases, tracker, self.bases, speed, keeping=keeping
        )
        self._named: dict[SessionId, TurnRun] = {}
        self._responses: dict[tuple[TenantId, str], TurnRun] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._runs: set[TurnRun] = set()
        self._draining = False

    async def begin(
        self,
        caller: Caller,
        target: Target,
        request: TurnRequest,
        *,
        retry: RetryKey | None = None,
        plan: ResponsePlan | None = None,
    ) -> Listener:
        """Starts the turn, or joins or replays the one that this request repeats.

        Raises NotFound, SessionBusy, TurnConflict, IdempotencyConflict, ContextOverflow,
        InvalidRequest, WorkerUnavailable: in all these cases nothing has changed. Close the
        listener.
        """
        arrived = time.perf_counter()
        if self._draining:
            raise WorkerUnavailable("This gateway is shutting down.", retry_after_seconds=1.0)
        if retry is None:
            call = TurnCall(caller, target, request, plan, None, arrived)
            return (await self._begin(call)).listen()
        attempt = self._retries.open(caller, retry)
        try:
            run = await self._retries.find(attempt, retry)
            if run is None:
                call = TurnCall(caller, target, request, plan, (attempt, retry), arrived)
                run = await self._begin(call)
                attempt.starts(run)
            else:
                self._retries.close(attempt)
        except BaseException:
            self._retries.close(attempt)
            raise
        return run.listen()

    def find_running(self, tenant_id: TenantId, response_id: str) -> Listener | None:
        """Follows a response that is running here, from its first event on."""
        run = self._responses.get((tenant_id, response_id))
        return None if run is None or run.over else run.listen()

    def cancel(self, tenant_id: TenantId, response_id: str) -> bool:
        """Ends a response that is running here; False: it is not."""
        run = self._responses.get((tenant_id, response_id))
        if run is None or run.over:
            return False
        run.end()
        return True

    async def drain(self, seconds: float) -> None:
        """Takes no new turns, waits for the running ones, ends those that take longer."""
        self._draining = True
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=seconds)
            for run in list(self._runs):
                run.end()
            if late:
                _log.warning("turns were ended by the shutdown", turns=len(late))
                await asyncio.wait(late)

    async def _begin(self, call: TurnCall) -> TurnRun:
        target, tenant_id = call.target, call.caller.tenant_id
        if isinstance(target, InSession) and call.request.expected_turn is not None:
            found = await self._expected(tenant_id, target, call.request)
            if found is not None:
                return found
        base = await self.bases.find(tenant_id, target, call.request)
        session_id = base.session.id
        self._extending[session_id] += 1
        try:
            prepared = await self.preparation.prepare(call, base)
            return self._start(prepared)
        except BaseException:
            self._no_longer_extends(session_id)
            if base.lease is not None:
                await self._leases.release(base.lease)
            raise

    async def _expected(
        self, tenant_id: TenantId, target: InSession, request: TurnRequest
    ) -> TurnRun | None:
        """The turn that `expected_turn` names if it runs or is in the log; None: it is the next.

        Raises TurnConflict or SessionBusy.
        """
        expected, body_hash = request.expected_turn, request.body_hash()
        assert expected is not None, "only a named turn is looked for"
        async with self._context.catalog.reading() as tx:
            session = await tx.sessions.get(tenant_id, checked_id(target.session_id))
        if expected == session.turns + 1:
            running = self._named.get(session.id)
            if running is None or running.over:
                return None
            return _joined(running, session, expected, body_hash)
        if expected > session.turns + 1:
            raise TurnConflict(
                f"expected_turn is {expected}, but the session has {session.turns} turns: "
                f"its next one is {session.turns + 1}.",
                turns=session.turns,
            )
        turn = None
        if session.head_turn_id is not None:
            async with self._context.catalog.reading() as tx:
                turn = await tx.turns.numbered(tenant_id, session.head_turn_id, expected)
        if turn is None or turn.body_hash != body_hash:
            raise TurnConflict(
                f"Turn {expected} is in the log already, with another body.",
                turns=session.turns,
            )
        return finished_run(turn)

    def _start(self, prepared: PreparedTurn) -> TurnRun:
        request, plan = prepared.request, prepared.plan
        keyed = prepared.retry is not None and prepared.retry[1].idempotency_key is not None
        found_again = plan is not None and plan.stored and plan.surface == "responses"
        run = TurnRun(
            prepared.number,
            prepared.body_hash,
            retryable=request.expected_turn is not None or keyed or found_again,
            grace_seconds=self._context.limits.retry_grace_seconds if prepared.retry else 0.0,
            response_id=None if plan is None else plan.id,
        )
        run.publish(
            TurnCreated(
                prepared.turn_id,
                run.number,
                prepared.base.session.id,
                prepared.created_at,
                len(prepared.prompt.ids),
            )
        )
        if prepared.base.lease is not None:
            self._named[prepared.base.session.id] = run
        if plan is not None:
            self._responses[prepared.caller.tenant_id, plan.id] = run
        self._runs.add(run)
        run.task = asyncio.create_task(self._run(run, prepared))
        self._tasks.add(run.task)
        run.task.add_done_callback(self._tasks.discard)
        return run

    async def _run(self, run: TurnRun, prepared: PreparedTurn) -> None:
        """The task of one turn: publishes its end, whatever happens, once its lease is free.

        So whoever hears of the end can send the next turn, or this one again, at once.
        """
        session_id = prepared.base.session.id
        with self._context.metrics.turns_running.track_inprogress():
            end = await self._end(run, prepared)
            run.settle()
            if isinstance(end, TurnFailed) and prepared.base.lease is not None:
                await self._leases.release(prepared.base.lease)
            if self._named.get(session_id) is run:
                del self._named[session_id]
            if prepared.plan is not None:
                self._responses.pop((prepared.caller.tenant_id, prepared.plan.id), None)
            self._no_longer_extends(session_id)
            self._runs.discard(run)
            if prepared.retry is not None:
                attempt = prepared.retry[0]
                if isinstance(end, TurnCompleted) and not prepared.request.store:
                    self._retries.keep_unstored(attempt)
                else:
                    self._retries.close(attempt)
            run.publish(end)

    def is_extending(self, session_id: SessionId) -> bool:
        """Whether a turn that may become the session's end is running here, leased or not."""
        return session_id in self._extending

    def _no_longer_extends(self, session_id: SessionId) -> None:
        self._extending[session_id] -= 1
        if not self._extending[session_id]:
            del self._extending[session_id]

    async def _end(self, run: TurnRun, prepared: PreparedTurn) -> TurnCompleted | TurnFailed:
        """Runs the turn and says how it ended; never raises."""
        outcome = "completed"
        try:
            run.begin()
            return await self._compute(run, prepared)
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
            _log.exception("a turn failed unexpectedly", session_id=prepared.base.session.id)
            return TurnFailed(AgentmemError("The turn failed for an internal reason."))
        finally:
            self._context.metrics.turns.labels(prepared.base.session.model, outcome).inc()

    async def _compute(self, run: TurnRun, prepared: PreparedTurn) -> TurnCompleted:
        """Generates within the turn's time, then commits, which no cancellation interrupts."""
        seconds = self._context.limits.turn_seconds_max
        try:
            async with asyncio.timeout(seconds):
                reply, watch = await self._generator.generate(run, prepared)
        except TimeoutError as error:
            raise EngineFailed(f"The turn took longer than {seconds:g} s and was ended.") from error
        commit = asyncio.create_task(self._committer.commit(prepared, reply, watch))
        try:
            return TurnCompleted(await asyncio.shield(commit))
        except asyncio.CancelledError:
            # The reply is whole: a listener that leaves now does not undo it.
            return TurnCompleted(await commit)


def _joined(running: TurnRun, session: Session, expected: int, body_hash: str) -> TurnRun:
    """A repeat of the turn that is running here and now: it follows along."""
    if running.number != expected:
        raise SessionBusy(session.id, retry_after_seconds=1.0)
    if running.body_hash != body_hash:
        raise TurnConflict(
            f"Turn {expected} is running already, with another body.", turns=expected - 1
        )
    return running
