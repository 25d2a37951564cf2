"""The workers as this gateway sees them: rows of the catalog, re-read at most twice a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from agentmem.catalog import Catalog
from agentmem.catalog.ids import now_us
from agentmem.catalog.records import Worker
from agentmem.core import WorkerId
from agentmem.engine.base import Engine
from agentmem.errors import ModelNotFound, WorkerUnavailable
from agentmem.router.admission import TokenGate
from agentmem.router.placement import choose_worker, is_ready
from agentmem.router.warmth import WarmSessions

CACHE_SECONDS = 0.5

EngineFactory = Callable[[Worker], Engine]


@dataclass(frozen=True, slots=True)
class Assignment:
    """One start of an engine: its client, its gate for tokens being loaded, what it holds."""

    worker: Worker
    engine: Engine
    gate: TokenGate
    warm: WarmSessions


class Router:
    """Assigns workers. `silence_seconds_max` is how old a ready worker's heartbeat may be."""

    def __init__(
        self, catalog: Catalog, engine_factory: EngineFactory, *, silence_seconds_max: float
    ) -> None:
        self._catalog = catalog
        self._engine_factory = engine_factory
        self._silence_seconds_max = silence_seconds_max
        self._workers: list[Worker] = []
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()
        self._assignments: dict[WorkerId, Assignment] = {}
        self._running: dict[WorkerId, int] = {}

    async def workers(self) -> list[Worker]:
        """All workers, whatever their state, at most 0.5 s old."""
        if time.monotonic() - self._read_at > CACHE_SECONDS:
            async with self._reading:
                if time.monotonic() - self._read_at > CACHE_SECONDS:
                    async with self._catalog.reading() as tx:
                        self._workers = await tx.workers.list()
                    self._read_at = time.monotonic()
        return self._workers

    async def models(self) -> list[str]:
        """Names of the models that workers here serve, whether ready or not."""
        return sorted({worker.model for worker in await self.workers()})

    async def check_model(self, model: str) -> None:
        """Raises ModelNotFound, or WorkerUnavailable while no worker has registered at all."""
        known = await self.models()
        if not known:
            raise WorkerUnavailable("No worker has registered yet.")
        if model not in known:
            raise ModelNotFound(model, known=tuple(known))

    async def describe(self, model: str) -> Worker | None:
        """A worker of this model, ready or not: what its pages and window look like."""
        served = [worker for worker in await self.workers() if worker.model == model]
        return min(served, key=lambda worker: (worker.state != "ready", worker.id), default=None)

    async def ready(self) -> list[Worker]:
        """Workers that can run a turn now."""
        now = now_us()
        return [
            worker
            for worker in await self.workers()
            if is_ready(worker, now_us=now, silence_seconds_max=self._silence_seconds_max)
        ]

    async def choose(self, model: str, last: WorkerId | None) -> Worker:
        """The worker for a session of `model` that last ran on `last`.

        Raises ModelNotFound, or WorkerUnavailable with what the workers are doing instead.
        """
        ready = [worker for worker in await self.ready() if worker.model == model]
        chosen = choose_worker(ready, last=last, running=self._running)
        if chosen is not None:
            return chosen
        await self.check_model(model)
        # Callers are told the states; their details are for operators (`describe_states`).
        states = sorted({worker.state for worker in await self.workers() if worker.model == model})
        raise WorkerUnavailable(
            f"No worker for model {model!r} is ready (they are {', '.join(states)} or silent)."
        )

    @asynccontextmanager
    async def running_on(self, worker: Worker) -> AsyncIterator[Assignment]:
        """Counts one running request on the worker for the block."""
        assignment = await self._assign(worker)
        self._running[worker.id] = self._running.get(worker.id, 0) + 1
        try:
            yield assignment
        finally:
            self._running[worker.id] -= 1

    def running(self, worker: Worker) -> int:
        """Requests of this gateway that run on the worker now."""
        return self._running.get(worker.id, 0)

    async def _assign(self, worker: Worker) -> Assignment:
        known = self._assignments.get(worker.id)
        if known is not None and (known.worker.generation, known.worker.url) == (
            worker.generation,
            worker.url,
        ):
            return known
        assignment = Assignment(
            worker,
            self._engine_factory(worker),
            TokenGate(worker.host_pool_tokens // 2),
            WarmSessions(worker.hbm_tokens or worker.context_tokens),
        )
        self._assignments[worker.id] = assignment
        if known is not None and known.engine is not assignment.engine:
            await known.engine.aclose()
        return assignment

    def _state(self, worker: Worker) -> str:
        silent = (now_us() - worker.heartbeat_at) / 1e6
        if worker.state == "ready" and silent > self._silence_seconds_max:
            return f"silent for {silent:.0f} s"
        return f"{worker.state} ({worker.detail})" if worker.detail else worker.state

    async def describe_states(self) -> str:
        """One line for /readyz: every worker and its state."""
        workers = await self.workers()
        return ", ".join(f"{w.id} is {self._state(w)}" for w in workers) or "none registered"

    async def aclose(self) -> None:
        """Lets go of all engines."""
        assignments, self._assignments = list(self._assignments.values()), {}
        for assignment in assignments:
            await assignment.engine.aclose()
