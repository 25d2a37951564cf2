"""The worker process: one SGLang server, kept running, proved to work, and shown in the catalog.

Composition root of `agentmem worker`, as `app` is of the gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shlex
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from agentmem.catalog import Catalog, DatabaseOptions
from agentmem.catalog.records import Worker
from agentmem.config import Settings
from agentmem.core import Fingerprint, WorkerId
from agentmem.engine.sglang.canary import Canary
from agentmem.engine.sglang.client import SglangEngine
from agentmem.engine.sglang.launch import (
    EngineOptions,
    LaunchPlan,
    cuda_is_there,
    memory_layout,
    plan_launch,
)
from agentmem.engine.sglang.model.check import ModelDescription, inspect_model
from agentmem.engine.sglang.model.fingerprint import fingerprint_of, weights_digest
from agentmem.engine.sglang.model.smollm2 import ensure_smollm2
from agentmem.engine.sglang.parsing.process import ParsingOptions, ParsingProcess
from agentmem.engine.sglang.process import SglangProcess
from agentmem.errors import AgentmemError, EngineFailed, NodeUnavailable
from agentmem.loopback import free_port
from agentmem.node.client import NodeClient
from agentmem.sessions.chat import Chat

logger = structlog.get_logger("agentmem.worker")

_HEARTBEAT_SECONDS = 1.0
_WATCH_SECONDS = 0.2
_DRAIN_SECONDS_MAX = 30.0
# Gateways read the registry at most half a second late; until then turns may still arrive.
_REGISTRY_LAG_SECONDS = 0.6
_RESTART_SECONDS_MIN = 1.0
_RESTART_SECONDS_MAX = 30.0
# Two canaries in a row: one alone may have met a node agent that was just being restarted.
_CANARY_FAILURES_MAX = 2


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model on disk with all that the catalog and the engine need to know of it."""

    description: ModelDescription
    name: str
    context_tokens: int
    fingerprint: Fingerprint


def resolve_model(settings: Settings, progress: Callable[[str], None]) -> ServedModel:
    """Fetches or finds the model, checks that it can be served, and makes its fingerprint.

    Raises ModelUnsupported or ConfigurationInvalid with a sentence saying why not.
    """
    path = Path(settings.model) if settings.model else ensure_smollm2(settings.models_dir, progress)
    description = inspect_model(path)
    progress(f"Reading the weights of {description.name}, to tell their pages from others'")
    fingerprint = fingerprint_of(
        description,
        page_tokens=settings.page_tokens,
        layout=memory_layout(cuda=cuda_is_there()),
        kv_dtype=description.dtype,
        tp_size=1,
        weights_digest=weights_digest(path, settings.models_dir),
    )
    context = description.context_tokens
    if settings.context_tokens:
        context = min(context, settings.context_tokens)
    return ServedModel(description, settings.model_name or description.name, context, fingerprint)


class WorkerProcess:
    """Starts the engine, watches it, restarts it, and drains it at the end."""

    def __init__(self, settings: Settings, model: ServedModel, catalog: Catalog) -> None:
        self._settings = settings
        self._model = model
        self._catalog = catalog
        self._stop = asyncio.Event()
        self._nodes = NodeClient(settings.node_socket, role="worker")
        self._parsing = self._parsing_process()
        self._worker = self._unregistered()

    def _unregistered(self) -> Worker:
        model, settings = self._model, self._settings
        return Worker(
            id=WorkerId(_worker_id(settings.data_dir)),
            url="",
            model=model.name,
            model_path=str(model.description.path),
            fingerprint=model.fingerprint,
            page_tokens=settings.page_tokens,
            context_tokens=model.context_tokens,
            kv_bytes_per_token=model.description.kv_bytes_per_token,
            hbm_tokens=0,
            host_pool_tokens=0,
            node_socket=str(settings.node_socket),
            state="starting",
            pid=os.getpid(),
        )

    def _parsing_process(self) -> ParsingProcess:
        settings, path = self._settings, self._model.description.path
        chat = Chat.load(path)
        options = ParsingOptions(
            model_path=path,
            template=chat.template_source,
            has_tools=chat.has_tools,
            tool_parser=settings.tool_parser,
            reasoning_parser=settings.reasoning_parser,
        )
        return ParsingProcess(options, settings.data_dir / "logs" / "parsing.log")

    def stop(self) -> None:
        """Asks for the end: drain, then stop. A second call ends the draining too."""
        self._stop.set()

    async def run(self) -> None:
        """Until `stop`: start, watch, and after a failure start again, ever more slowly."""
        async with self._catalog.transaction() as tx:
            generation = await tx.workers.register(self._worker)
        self._worker = replace(self._worker, generation=generation)
        tasks = [
            asyncio.create_task(self._heartbeats()),
            asyncio.create_task(self._parsing.keep_alive()),
        ]
        pause = _RESTART_SECONDS_MIN
        try:
            while not self._stop.is_set():
                started = time.monotonic()
                try:
                    await self._life()
                except AgentmemError as error:
                    logger.error("engine failed", reason=error.message)
                    await self._show("starting", detail=error.message.splitlines()[0])
                if time.monotonic() - started > _RESTART_SECONDS_MAX:
                    pause = _RESTART_SECONDS_MIN
                if not self._stop.is_set():
                    await self._sleep(pause)
                    pause = min(pause * 2, _RESTART_SECONDS_MAX)
        finally:
            for task in tasks:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            self._parsing.kill()
            await self._show("dead", detail="stopped")
            self._nodes.close()

    async def _life(self) -> None:
        """One engine from start to end."""
        await self._node_is_there()
        await self._start_parsing()
        plan = self._plan()
        process = SglangProcess(plan, self._settings.data_dir / "logs" / "sglang.log")
        engine = SglangEngine(plan.url)
        canary = self._canary(engine)
        try:
            await self._start(process, canary)
            death = await self._watch(process, canary)
            if death is not None:
                await self._show("starting", detail=death)
                raise EngineFailed(death)
            await self._drain(engine, canary)
        finally:
            await engine.aclose()
            await asyncio.to_thread(process.kill)

    def _plan(self) -> LaunchPlan:
        settings, model = self._settings, self._model
        options = EngineOptions(
            model_path=model.description.path,
            model_name=model.name,
            fingerprint=model.fingerprint,
            context_tokens=model.context_tokens,
            page_tokens=settings.page_tokens,
            kv_bytes_per_token=model.description.kv_bytes_per_token,
            node_socket=settings.node_socket,
            hbm_tokens=settings.hbm_tokens,
            host_pool_ratio=settings.host_pool_ratio,
            cuda=cuda_is_there(),
            reasoning_parser=self._parsing.reasoning_parser,
            arguments=tuple(shlex.split(settings.engine_arguments)),
            plugin_module=settings.plugin_module,
            plugin_class=settings.plugin_class,
        )
        return plan_launch(
            options,
            python=sys.executable,
            port=free_port(),
            run_dir=settings.run_dir / "engine",
            engine_id=f"{self._worker.id}-{secrets.token_hex(4)}",
        )

    def _canary(self, engine: SglangEngine) -> Canary:
        return Canary(
            engine,
            self._nodes,
            fingerprint=self._model.fingerprint,
            page_tokens=self._settings.page_tokens,
            vocabulary=self._model.description.vocab_size,
        )

    async def _start_parsing(self) -> None:
        """The parsing server is there, and the catalog says where. It outlives engines."""
        if self._parsing.pid is not None:
            return
        self._progress("the parsing server is starting")
        await self._parsing.start()
        self._worker = replace(
            self._worker,
            parser_address=self._parsing.address,
            tool_parser=self._parsing.tool_parser,
            reasoning_parser=self._parsing.reasoning_parser,
        )

    async def _start(self, process: SglangProcess, canary: Canary) -> None:
        await self._show("starting", detail="SGLang is starting")
        start = asyncio.create_task(
            process.start(
                deadline_seconds=self._settings.engine_start_seconds_max, progress=self._progress
            )
        )
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait({start, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not start.done():
            start.cancel()
            raise EngineFailed("The worker was stopped while SGLang was starting")
        await start
        self._progress("proving that pages are stored and loaded")
        await canary.prove()
        assert process.proof is not None, "start() leaves the proof"
        self._worker = replace(
            self._worker,
            url=process.url,
            hbm_tokens=process.proof.hbm_tokens,
            host_pool_tokens=process.proof.host_pool_tokens,
        )
        await self._show("ready")
        logger.info("worker is ready", url=process.url, scheduler_pid=process.proof.pid)

    async def _watch(self, process: SglangProcess, canary: Canary) -> str | None:
        """Returns what died, or None when `stop` was called."""
        failures = 0
        next_canary = time.monotonic() + self._settings.canary_interval_seconds
        while not await self._sleep(_WATCH_SECONDS):
            death = process.death()
            if death is not None:
                return death
            if time.monotonic() < next_canary:
                continue
            reason = await self._canary_failure(canary)
            failures = failures + 1 if reason else 0
            if failures >= _CANARY_FAILURES_MAX:
                await self._show("draining", detail=f"canary: {reason}")
                return f"The canary failed {failures} times: {reason}"
            next_canary = time.monotonic() + self._settings.canary_interval_seconds
        return None

    async def _canary_failure(self, canary: Canary) -> str | None:
        try:
            await canary.prove()
        except NodeUnavailable as error:
            # The agent's failure, not the engine's: pages wait in shared memory until it is back.
            logger.warning("no canary without the node agent", reason=error.message)
            return None
        except (AgentmemError, TimeoutError) as error:
            logger.error("canary failed", reason=str(error))
            return str(error) or "it timed out"
        return None

    async def _drain(self, engine: SglangEngine, canary: Canary) -> None:
        """No new turns, running ones end, and every page that SGLang has queued is handed over."""
        await self._show("draining")
        await asyncio.sleep(_REGISTRY_LAG_SECONDS)
        try:
            async with asyncio.timeout(_DRAIN_SECONDS_MAX):
                while await engine.running_requests():
                    await asyncio.sleep(_WATCH_SECONDS)
                await canary.store_barrier()
        except (AgentmemError, TimeoutError) as error:
            logger.error(
                "drained only in part: pages not yet stored are recomputed", reason=str(error)
            )

    async def _node_is_there(self) -> None:
        while not self._stop.is_set():
            try:
                await asyncio.to_thread(self._nodes.ping)
            except NodeUnavailable as error:
                self._progress(f"waiting for the node agent: {error.message}")
                await self._sleep(_WATCH_SECONDS * 2)
            else:
                return

    async def _heartbeats(self) -> None:
        while True:
            await asyncio.sleep(_HEARTBEAT_SECONDS)
            await self._beat()

    async def _show(self, state: str, *, detail: str = "") -> None:
        self._worker = replace(self._worker, state=state, detail=detail)
        async with self._catalog.transaction(durable=False) as tx:
            replaced = not await tx.workers.update(self._worker)
        self._end_if(replaced)

    async def _beat(self) -> None:
        worker = self._worker
        async with self._catalog.transaction(durable=False) as tx:
            replaced = not await tx.workers.heartbeat(
                worker.id, worker.generation, state=worker.state, detail=worker.detail
            )
        self._end_if(replaced)

    def _end_if(self, replaced: bool) -> None:
        if replaced and not self._stop.is_set():
            logger.error("another process took this worker's place", worker=self._worker.id)
            self._stop.set()

    def _progress(self, text: str) -> None:
        if text != self._worker.detail:
            self._worker = replace(self._worker, detail=text)
            logger.info("progress", detail=text)

    async def _sleep(self, seconds: float) -> bool:
        """True when `stop` was called meanwhile."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)
        return self._stop.is_set()


def _worker_id(data_dir: Path) -> str:
    """The worker's name, kept over restarts so that sessions find their worker again."""
    path = data_dir / "worker-id"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"wkr_{secrets.token_hex(8)}")
    return path.read_text().strip()


async def _run(settings: Settings) -> None:
    model = await asyncio.to_thread(
        resolve_model, settings, lambda text: logger.info("progress", detail=text)
    )
    # A heartbeat a second: it needs no more connections.
    catalog = Catalog(
        settings.catalog_url, DatabaseOptions(pool_size=2, application_name="agentmem worker")
    )
    try:
        await catalog.check_schema()
        worker = WorkerProcess(settings, model, catalog)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, worker.stop)
        await worker.run()
    finally:
        await catalog.aclose()


def run_worker(settings: Settings) -> None:
    """What `agentmem worker` runs; returns after SIGTERM or SIGINT, drained."""
    asyncio.run(_run(settings))
