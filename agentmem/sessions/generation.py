"""From a prepared turn to a whole reply: the engine's stream into the run's events."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import cast

from agentmem.catalog.records import Session
from agentmem.engine.base import Engine, GenerateChunk, GenerateRequest
from agentmem.engine.output import PlainText
from agentmem.errors import EngineFailed
from agentmem.router.registry import Assignment
from agentmem.sessions.chat import TextStream
from agentmem.sessions.context import Context
from agentmem.sessions.preparation import PreparedTurn
from agentmem.sessions.reply import Reply
from agentmem.sessions.runs import TurnRun
from agentmem.sessions.usage import LoadWatch
from agentmem.sessions.warmth import tokens_to_load


class Generator:
    """Runs the engine for a turn."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def generate(self, run: TurnRun, prepared: PreparedTurn) -> tuple[Reply, LoadWatch]:
        """Streams into the run. Raises EngineFailed unless the reply is whole."""
        watch = LoadWatch(self._context.pages, self._context.metrics)
        await watch.start()
        session, worker = prepared.base.session, prepared.worker
        async with self._context.router.running_on(worker) as assignment, AsyncExitStack() as gate:
            reply = await self._open_reply(assignment.engine, prepared)
            try:
                await _open(assignment, session)
                load = tokens_to_load(session, assignment, prepared.prompt.keep)
                if load:
                    self._prefetch(prepared)
                await gate.enter_async_context(assignment.gate.hold(load))
                request = await self._request(assignment.engine, prepared)
                # Closing the stream early is what aborts the request in the engine.
                stream = cast(
                    "AsyncGenerator[GenerateChunk, None]", assignment.engine.generate(request)
                )
                async with aclosing(stream):
                    async for chunk in stream:
                        await gate.aclose()  # the prompt is computed: nothing is loading any more
                        await self._take(run, prepared, reply, chunk)
                if reply.finish_reason not in ("stop", "length") or not reply.ids:
                    reason = reply.finish_reason or "no reason given"
                    raise EngineFailed(f"The worker ended the turn early ({reason}).")
                rest = await reply.finish()
                if rest is not None:
                    run.publish(rest)
            finally:
                await reply.aclose()
            assignment.warm.touch(session.id, len(prepared.prompt.ids) + len(reply.ids))
        return reply, watch

    def _prefetch(self, prepared: PreparedTurn) -> None:
        """Has the node bring the log's pages nearer while the request waits its turn."""
        worker, kept = prepared.worker, prepared.prompt.ids[: prepared.prompt.keep]
        tenant_id = prepared.caller.tenant_id
        keys = self._context.keys(tenant_id, worker.fingerprint, kept, worker.page_tokens)
        if keys:
            self._context.pages.begin_prefetch(keys)

    async def _open_reply(self, engine: Engine, prepared: PreparedTurn) -> Reply:
        parser = await engine.open_parser(prepared.output)
        # A parser needs the special tokens that mark calls and thinking.
        special = not isinstance(parser, PlainText)
        return Reply(TextStream(prepared.chat, prepared.request.stop, special=special), parser)

    async def _request(self, engine: Engine, prepared: PreparedTurn) -> GenerateRequest:
        request = prepared.request
        constraint = None
        if request.response_schema is not None:
            schema = request.response_schema or {"type": "object"}
            constraint = await engine.schema_constraint(prepared.output, json.dumps(schema))
        elif prepared.output.tools and request.tool_choice.mode != "none":
            constraint = await engine.tool_constraint(prepared.output)
        return GenerateRequest(
            request_id=prepared.turn_id,
            token_ids=prepared.prompt.ids.tolist(),
            sampling=request.sampling(prepared.max_tokens, constraint),
            salt=self._context.secrets.tenant_salt(prepared.caller.tenant_id),
            session_id=prepared.base.session.id,
            logprobs=request.logprobs,
            top_logprobs=request.top_logprobs,
        )

    async def _take(
        self, run: TurnRun, prepared: PreparedTurn, reply: Reply, chunk: GenerateChunk
    ) -> None:
        if chunk.token_ids and not reply.ids:
            reply.ttft_seconds = time.perf_counter() - prepared.arrived
            model = prepared.base.session.model
            self._context.metrics.ttft.labels(model).observe(reply.ttft_seconds)
        delta = await reply.push(chunk)
        if delta is not None:
            run.publish(delta)


async def _open(assignment: Assignment, session: Session) -> None:
    """Registers the session with the engine where it may not be known yet."""
    if session.id not in assignment.warm:
        await assignment.engine.open_session(session.id)
