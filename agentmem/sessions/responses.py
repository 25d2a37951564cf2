"""Stored responses: begun, followed, read back, cancelled, deleted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakValueDictionary

from agentmem.catalog import Transaction
from agentmem.catalog.ids import is_id, new_id, now_us
from agentmem.catalog.records import Item, Response, Turn
from agentmem.core import TenantId, TurnId
from agentmem.errors import AgentmemError, CatalogUnavailable, InvalidRequest, NotFound
from agentmem.sessions.diagnostics import diagnosis
from agentmem.sessions.messages import Message
from agentmem.sessions.openings import Asked, Opening, Openings, called_input, shown
from agentmem.sessions.outputs import output_items
from agentmem.sessions.replay import replayed_run
from agentmem.sessions.requests import Caller, ResponsePlan, RetryKey, TurnRequest
from agentmem.sessions.runs import Listener
from agentmem.sessions.sealing import Sealer
from agentmem.sessions.service import SessionsService
from agentmem.telemetry import get_logger

_log = get_logger("agentmem.sessions.responses")
_MICROSECONDS = 1_000_000
_NOTED_SECONDS_MAX = 2.0


@dataclass(frozen=True, slots=True)
class Begun:
    """A response that runs, or that is told once more. Close the listener, or `leave` it.

    `plan` is the response's own: of a repeat, that of the first request.
    """

    tenant_id: TenantId
    plan: ResponsePlan
    listener: Listener


@dataclass(frozen=True, slots=True)
class Found:
    """A response that was asked for: running (`row` is None), told once more, or without a turn
    (`listener` is None)."""

    plan: ResponsePlan
    row: Response | None
    listener: Listener | None


@dataclass(frozen=True, slots=True)
class _Running:
    """A stored response whose end has not been noted yet; `noted` is set when it is."""

    plan: ResponsePlan
    noted: asyncio.Event


class ResponsesService:
    """Every method raises NotFound for ids that are unknown, deleted or another tenant's."""

    def __init__(self, service: SessionsService) -> None:
        self.sealer = Sealer(service.secrets)
        self.openings = Openings(service, self.sealer)
        self._service = service
        self._running: dict[tuple[TenantId, str], _Running] = {}
        self._ended: dict[tuple[TenantId, str], str] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._left: set[asyncio.Task[None]] = set()

    async def begin(
        self,
        caller: Caller,
        asked: Asked,
        request_of: Callable[[Sequence[Message]], TurnRequest],
        echo_of: Callable[[str], Mapping[str, Any]],
        *,
        retry: RetryKey | None,
    ) -> Begun:
        """Starts a response, or joins the one that this request repeats.

        `request_of` makes the turn of its messages, `echo_of` what the object shows of the
        request, with the model's name. Raises what `SessionsService.begin` and `Openings.open` do.
        """
        repeat = retry is not None and (retry.attempt > 0 or retry.idempotency_key is not None)
        async with self._alone(asked.conversation_id):
            opening = await self.openings.open(caller.tenant_id, asked, wait=repeat)
            request = request_of(opening.messages)
            echo = {**echo_of(opening.model), "compacted": _compacted(opening)}
            plan = _plan(asked, opening, echo, stored=request.store)
            plan = replace(plan, project_id=caller.project_id)
            with called_input():
                listener = await self._service.begin(
                    caller, opening.target, request, retry=retry, plan=plan
                )
        begun = Begun(caller.tenant_id, plan, listener)
        if listener.response_id not in (None, plan.id):
            return await self._repeated(begun, listener.response_id or "")
        if request.store:
            self._running[caller.tenant_id, plan.id] = _Running(plan, asyncio.Event())
        return begun

    async def find(self, tenant_id: TenantId, response_id: str) -> Found:
        """A response, running or not. Close its listener."""
        if not is_id(response_id, "resp"):
            raise NotFound("response", response_id)
        listener = self._service.find_running(tenant_id, response_id)
        running = self._running.get((tenant_id, response_id))
        if running is not None and not running.plan.stored:
            running = None
        if listener is not None and running is not None:
            return Found(running.plan, None, listener)
        if listener is not None:
            listener.close()
        try:
            return await self._stored(tenant_id, response_id)
        except NotFound:
            if running is None:
                raise
        # It is over and came to nothing; whoever followed it is about to note that.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_NOTED_SECONDS_MAX):
                await running.noted.wait()
        return await self._stored(tenant_id, response_id)

    async def _stored(self, tenant_id: TenantId, response_id: str) -> Found:
        async with self._service.catalog.reading() as tx:
            row = await tx.responses.get(tenant_id, response_id)
            turn = (
                None if row.turn_id is None else await tx.turns.get(tenant_id, TurnId(row.turn_id))
            )
        listener = None
        if turn is not None:
            assert row.deltas is not None, "a stored response has its cuts"
            listener = replayed_run(turn, row.deltas, row.id).listen()
        return Found(_plan_of(row), row, listener)

    def finished(self, begun: Begun) -> None:
        """The turn is in the log: its row tells everything from now on."""
        self._note((begun.tenant_id, begun.plan.id))

    async def failed(self, begun: Begun, error: Mapping[str, Any]) -> str:
        """The turn came to nothing: keeps a row that says so (where the response is stored), and
        returns the status, "failed" or "cancelled"."""
        key = (begun.tenant_id, begun.plan.id)
        status = self._ended.get(key, "failed")
        if begun.plan.stored and status != "deleted":
            try:
                await self._write_failed(begun, status, None if status == "cancelled" else error)
            except CatalogUnavailable as unwritten:
                _log.warning("a failed response was not noted", error=unwritten.message)
        self._note(key)
        return "cancelled" if status == "deleted" else status

    def leave(self, begun: Begun, describe: Callable[[AgentmemError], Mapping[str, Any]]) -> None:
        """The caller left. A stored response runs on; if it fails, its row will say so."""
        running = (begun.tenant_id, begun.plan.id) in self._running
        if running and begun.plan.stored:
            task = asyncio.create_task(self._see_through(begun, describe))
            self._left.add(task)
            task.add_done_callback(self._left.discard)
        else:
            self.finished(begun)
            begun.listener.close()

    async def cancel(self, tenant_id: TenantId, response_id: str) -> Found:
        """Ends a running response. Raises InvalidRequest for one that is over."""
        found = await self.find(tenant_id, response_id)
        if found.row is None and found.listener is not None:
            await self._end(tenant_id, found, "cancelled")
            found = await self.find(tenant_id, response_id)
        if found.listener is not None:
            found.listener.close()
        assert found.row is not None, "it was ended"
        if found.row.status != "cancelled":
            raise InvalidRequest(
                f"The response is {found.row.status}: only one that runs can be cancelled.",
                param="response_id",
                code="response_not_running",
            )
        return found

    async def delete(self, tenant_id: TenantId, response_id: str) -> None:
        """Deletes a response, its items (but for those in a conversation), and its turn where
        nothing else builds on it. A running one is ended. May raise SessionBusy."""
        found = await self.find(tenant_id, response_id)
        if found.row is None:
            if not await self._end(tenant_id, found, "deleted"):
                return
            found = await self.find(tenant_id, response_id)
        if found.listener is not None:
            found.listener.close()
        async with self._service.catalog.transaction() as tx:
            await tx.items.leave_response(tenant_id, response_id)
            await tx.responses.delete(tenant_id, response_id)
        if found.row is not None and found.row.turn_id is not None:
            await self._service.retract(tenant_id, found.row.turn_id)

    async def input_items(self, tenant_id: TenantId, response_id: str) -> list[dict[str, Any]]:
        """All that the model was given: what came before, then the response's own input."""
        found = await self.find(tenant_id, response_id)
        if found.listener is not None:
            found.listener.close()
        async with self._service.catalog.reading() as tx:
            if found.row is not None:
                return await _told(tx, tenant_id, response_id, output=False)
            before: list[dict[str, Any]] = []
            if found.plan.previous_response_id is not None:
                with contextlib.suppress(NotFound):  # deleted meanwhile
                    before = await _told(tx, tenant_id, found.plan.previous_response_id)
            elif found.plan.conversation_id is not None:
                conversation_id = found.plan.conversation_id
                before = shown(await tx.items.of_conversation(tenant_id, conversation_id))
        return [*before, *map(dict, found.plan.input_items)]

    async def conversation(self, tenant_id: TenantId, response_id: str) -> list[dict[str, Any]]:
        """All items up to a response, its output included."""
        async with self._service.catalog.reading() as tx:
            return await _told(tx, tenant_id, response_id)

    async def diagnose(self, begun: Begun, turn: Turn) -> dict[str, Any] | None:
        """Why the prompt's beginning was not known, compared with an earlier response; None where
        there is nothing to compare with."""
        options = begun.plan.request.get("prompt_cache_options") or {}
        named = options.get("comparison_response_id")
        other_id = named or begun.plan.previous_response_id
        if other_id is None:
            return None
        try:
            return await diagnosis(
                self._service.catalog, begun.tenant_id, begun.plan, turn, other_id
            )
        except (NotFound, CatalogUnavailable):
            # The turn is in the log: its answer does not hang on what is only said about it.
            return {"type": "unavailable"}

    @contextlib.asynccontextmanager
    async def _alone(self, conversation_id: str | None) -> AsyncIterator[None]:
        """One at a time begins in a conversation, so that each has all items of those before."""
        if conversation_id is None:
            yield
            return
        lock = self._locks.setdefault(conversation_id, asyncio.Lock())
        async with lock:
            yield

    async def _repeated(self, begun: Begun, response_id: str) -> Begun:
        running = self._running.get((begun.tenant_id, response_id))
        if running is not None:
            return Begun(begun.tenant_id, running.plan, begun.listener)
        created = begun.listener.created
        async with self._service.catalog.reading() as tx:
            row = await tx.responses.of_turn(begun.tenant_id, created.turn_id)
            turn = None if row is None else await tx.turns.get(begun.tenant_id, created.turn_id)
        if row is None or turn is None:
            # It runs, and whoever asked for it first has left.
            return replace(begun, plan=replace(begun.plan, id=response_id))
        if row.deltas is None:
            return replace(begun, plan=_plan_of(row))
        begun.listener.close()
        listener = replayed_run(turn, row.deltas, row.id).listen()
        return Begun(begun.tenant_id, _plan_of(row), listener)

    def _note(self, key: tuple[TenantId, str]) -> None:
        running = self._running.pop(key, None)
        if running is not None:
            running.noted.set()

    async def _see_through(
        self, begun: Begun, describe: Callable[[AgentmemError], Mapping[str, Any]]
    ) -> None:
        try:
            await begun.listener.result()
            self.finished(begun)
        except AgentmemError as error:
            await self.failed(begun, describe(error))
        finally:
            begun.listener.close()

    async def _end(self, tenant_id: TenantId, found: Found, status: str) -> bool:
        """Ends a running response as cancelled or deleted; True: it is in the log all the same."""
        key = (tenant_id, found.plan.id)
        assert found.listener is not None, "it runs"
        self._ended[key] = status
        try:
            self._service.cancel(tenant_id, found.plan.id)
            await found.listener.result()
            return True
        except AgentmemError:
            await self.failed(Begun(tenant_id, found.plan, found.listener), {})
            return False
        finally:
            found.listener.close()
            # Whoever else follows it has heard of the end by then.
            asyncio.get_running_loop().call_later(60.0, self._ended.pop, key, None)

    async def _write_failed(
        self, begun: Begun, status: str, error: Mapping[str, Any] | None
    ) -> None:
        plan, now = begun.plan, now_us()
        limits, has = self._service.limits, await self._service.plans.of(begun.tenant_id)
        seconds = has.definition.terms(
            plan.request.get("retention"),
            kv_retention_seconds=limits.kv_retention_seconds,
            log_retention_seconds=limits.log_retention_seconds,
        ).log_retention_seconds
        row = Response(
            id=plan.id,
            tenant_id=begun.tenant_id,
            surface=plan.surface,
            status=status,
            stored=True,
            session_id=None,
            turn_id=None,
            previous_response_id=plan.previous_response_id,
            conversation_id=plan.conversation_id,
            request=plan.request,
            error=error,
            deltas=None,
            created_at=begun.listener.created.created_at,
            completed_at=now,
            expires_at=now + seconds * _MICROSECONDS,
            project_id=plan.project_id,
        )
        # A conversation goes on without what failed: its items stay the response's own.
        items = [
            Item(item["id"], begun.tenant_id, plan.id, None, "input", item, now)
            for item in plan.input_items
        ]
        async with self._service.catalog.transaction() as tx:
            if await tx.responses.insert_first(row):
                await tx.items.append(items)


async def _told(
    tx: Transaction, tenant_id: TenantId, response_id: str, *, output: bool = True
) -> list[dict[str, Any]]:
    """The items of a response and of all that it goes back to; its output only with `output`."""
    lineage = await tx.responses.lineage(tenant_id, response_id)
    items = await tx.items.of_responses(tenant_id, [row.id for row in lineage])
    first = lineage[0]
    told: list[Item] = []
    if first.conversation_id is not None and items[first.id]:
        told = await tx.items.of_conversation(
            tenant_id, first.conversation_id, before=items[first.id][0].position
        )
    for row in lineage:
        whole = output or row.id != response_id
        told.extend(item for item in items[row.id] if whole or item.kind == "input")
    return shown(told)


def _compacted(opening: Opening) -> bool:
    return any(item["type"] == "compaction" for item in opening.items)


def _plan(asked: Asked, opening: Opening, echo: Mapping[str, Any], *, stored: bool) -> ResponsePlan:
    return ResponsePlan(
        id=new_id("resp"),
        surface="responses",
        request=echo,
        stored=stored,
        input_items=opening.items,
        output_items=output_items,
        previous_response_id=asked.previous_response_id,
        conversation_id=asked.conversation_id,
    )


def _plan_of(row: Response) -> ResponsePlan:
    return ResponsePlan(
        id=row.id,
        surface="responses",
        request=row.request,
        stored=row.stored,
        previous_response_id=row.previous_response_id,
        conversation_id=row.conversation_id,
    )
