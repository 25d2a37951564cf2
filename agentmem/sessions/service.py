"""What agents do with sessions. Every method takes the tenant and tells others' ids apart from
nothing: NotFound is the same for both."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from agentmem.catalog import Catalog
from agentmem.catalog.records import Turn
from agentmem.core import ProjectId, TenantId, Tier
from agentmem.errors import InvalidRequest
from agentmem.plans.classes import RetentionName
from agentmem.plans.service import Plans
from agentmem.sessions.bases import checked_id
from agentmem.sessions.context import Context
from agentmem.sessions.contexts import Contexts
from agentmem.sessions.creation import Creation
from agentmem.sessions.deletion import Deletion
from agentmem.sessions.durability import DurabilityTracker
from agentmem.sessions.hibernation import Hibernated, Hibernation, Resumed
from agentmem.sessions.keeping import Keeping
from agentmem.sessions.lapse import Lapse
from agentmem.sessions.leases import LeaseKeeper
from agentmem.sessions.limits import Limits
from agentmem.sessions.models import Models, ServedModel
from agentmem.sessions.ports import Freed
from agentmem.sessions.requests import Caller, ResponsePlan, RetryKey, Target, TurnRequest
from agentmem.sessions.runs import Listener
from agentmem.sessions.secrets import Secrets
from agentmem.sessions.turns import TurnRunner
from agentmem.sessions.unclaiming import Unclaimer
from agentmem.sessions.views import (
    Page,
    SessionResidency,
    SessionView,
    TierShare,
    expected_pages,
    view_of,
)


class SessionsService:
    """The facade that `api` calls. `running()` keeps its loops alive."""

    def __init__(self, context: Context) -> None:
        self._context = context
        limits = context.limits
        self._leases = LeaseKeeper(context.catalog, context.owner, seconds=limits.lease_seconds)
        self._tracker = DurabilityTracker(
            context.catalog,
            context.pages,
            context.metrics,
            give_up_seconds=limits.hibernate_seconds_max,
        )
        self._unclaimer = Unclaimer(context.catalog, context.pages, context.metrics)
        self._keeping = Keeping(context)
        self._turns = TurnRunner(context, self._leases, self._tracker, self._keeping)
        self._hibernation = Hibernation(context, self._leases, self._tracker)
        self._models = Models(context)
        self._deletion = Deletion(context, self._leases, self._tracker, self._unclaimer)
        self._lapse = Lapse(
            context,
            self._tracker,
            self._hibernation,
            self._deletion,
            busy=self._turns.is_extending,
        )
        bases = self._turns.bases
        self._creation = Creation(context, bases, self._models, self._tracker, self._deletion)
        self.contexts = Contexts(
            context,
            bases,
            models=self._models,
            hibernation=self._hibernation,
            tracker=self._tracker,
            deletion=self._deletion,
        )

    @property
    def catalog(self) -> Catalog:
        """For the services built beside this one."""
        return self._context.catalog

    @property
    def secrets(self) -> Secrets:
        """For the services built beside this one."""
        return self._context.secrets

    @property
    def limits(self) -> Limits:
        """For the services built beside this one."""
        return self._context.limits

    @property
    def plans(self) -> Plans:
        """For the services built beside this one."""
        return self._context.plans

    @asynccontextmanager
    async def running(self, *, drain_seconds: float) -> AsyncIterator[None]:
        """Frees dead owners' leases, then keeps the loops going; drains running turns at last."""
        await self._leases.free_dead()
        loops = [
            asyncio.create_task(loop.run())
            for loop in (self._leases, self._tracker, self._unclaimer, self._lapse, self._keeping)
        ]
        try:
            yield
        finally:
            await self._turns.drain(drain_seconds)
            for loop in loops:
                loop.cancel()
            for loop in loops:
                with contextlib.suppress(asyncio.CancelledError):
                    await loop
            await self._leases.release_all()

    async def begin(
        self,
        caller: Caller,
        target: Target,
        request: TurnRequest,
        *,
        retry: RetryKey | None = None,
        plan: ResponsePlan | None = None,
    ) -> Listener:
        """See `TurnRunner.begin`."""
        return await self._turns.begin(caller, target, request, retry=retry, plan=plan)

    async def count_tokens(self, caller: Caller, target: Target, request: TurnRequest) -> int:
        """See `Preparation.count_tokens`."""
        return await self._turns.preparation.count_tokens(caller, target, request)

    def find_running(self, tenant_id: TenantId, response_id: str) -> Listener | None:
        """See `TurnRunner.find_running`."""
        return self._turns.find_running(tenant_id, response_id)

    def cancel(self, tenant_id: TenantId, response_id: str) -> bool:
        """See `TurnRunner.cancel`."""
        return self._turns.cancel(tenant_id, response_id)

    async def resolve_model(self, tenant_id: TenantId, name: str | None) -> str:
        """See `Models.resolve`."""
        return await self._models.resolve(tenant_id, name)

    async def models(self, tenant_id: TenantId) -> list[ServedModel]:
        """See `Models.listed`."""
        return await self._models.listed(tenant_id)

    async def token_text(self, model: str) -> Callable[[int], bytes]:
        """What tells the bytes of a model's token ids. Raises ModelNotFound."""
        worker = await self._context.router.choose(model, None)
        return (await self._context.chat(worker)).token_bytes

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
        """See `Creation.create`."""
        return await self._creation.create(
            tenant_id,
            model=model,
            metadata=metadata,
            kv_retention_seconds=kv_retention_seconds,
            log_retention_seconds=log_retention_seconds,
            retention=retention,
            context_id=context_id,
            origin=origin,
            session_id=session_id,
            project_id=project_id,
        )

    async def fork(
        self,
        tenant_id: TenantId,
        session_id: str,
        *,
        turn: int | None,
        metadata: Mapping[str, str] | None,
        project_id: ProjectId | None = None,
    ) -> SessionView:
        """See `Creation.fork`."""
        return await self._creation.fork(
            tenant_id, session_id, turn=turn, metadata=metadata, project_id=project_id
        )

    async def get(self, tenant_id: TenantId, session_id: str) -> SessionView:
        """One session. Raises NotFound."""
        async with self._context.catalog.reading() as tx:
            session = await tx.sessions.get(tenant_id, checked_id(session_id))
            lease = await tx.leases.find(tenant_id, session.id)
        return view_of(session, running=lease is not None)

    async def list_sessions(
        self,
        tenant_id: TenantId,
        *,
        after: str | None,
        limit: int,
        descending: bool,
        project_id: str | None = None,
    ) -> Page:
        """A tenant's sessions by creation, of one project where it is given (its name or id).

        Raises InvalidRequest for an unknown `after`, NotFound for the project.
        """
        async with self._context.catalog.reading() as tx:
            project = None
            if project_id is not None:
                project = (await tx.projects.get(tenant_id, project_id)).id
            found = await tx.sessions.list(
                tenant_id,
                after=after,
                limit=limit + 1,
                descending=descending,
                project_id=project,
            )
            shown = found[:limit]
            held = await tx.leases.held(tenant_id, [session.id for session in shown])
        views = [view_of(session, running=session.id in held) for session in shown]
        return Page(views, has_more=len(found) > limit)

    async def list_turns(
        self,
        tenant_id: TenantId,
        session_id: str,
        *,
        after: str | None,
        limit: int,
        descending: bool,
    ) -> tuple[list[Turn], bool]:
        """Turns of a session, those it inherited by a fork too; and whether there are more."""
        async with self._context.catalog.reading() as tx:
            session = await tx.sessions.get(tenant_id, checked_id(session_id))
            if session.head_turn_id is None:
                if after is not None:
                    raise _unknown_turn(after)
                return [], False
            number = None
            if after is not None:
                number = await tx.turns.number_of(tenant_id, session.head_turn_id, after)
                if number is None:
                    raise _unknown_turn(after)
            turns = await tx.turns.page(
                tenant_id,
                session.head_turn_id,
                after=number,
                limit=limit + 1,
                descending=descending,
            )
        return turns[:limit], len(turns) > limit

    async def hibernate(
        self, tenant_id: TenantId, session_id: str, tier: Tier = Tier.DISK
    ) -> Hibernated:
        """See `Hibernation.hibernate`."""
        return await self._hibernation.hibernate(tenant_id, checked_id(session_id), tier)

    async def resume(self, tenant_id: TenantId, session_id: str) -> Resumed:
        """See `Hibernation.resume`."""
        return await self._hibernation.resume(tenant_id, checked_id(session_id))

    async def residency(self, tenant_id: TenantId, session_id: str) -> SessionResidency:
        """Where the pages lie. Raises NodeUnavailable when the node agent does not answer."""
        async with self._context.catalog.reading() as tx:
            session = await tx.sessions.get(tenant_id, checked_id(session_id))
        keys = (await self._deletion.page_keys(session))[: expected_pages(session)]
        entries = await self._context.pages.residency(keys) if keys else []
        worker = await self._context.router.describe(session.model)
        page_tokens = session.page_tokens or 0
        page_bytes = page_tokens * (worker.kv_bytes_per_token if worker else 0)
        tiers = {}
        for tier in (Tier.DRAM, Tier.DISK, Tier.OBJECT):
            count = sum(tier in entry.tiers for entry in entries)
            tiers[tier] = TierShare(count, count * page_tokens, count * page_bytes)
        return SessionResidency(
            tokens=session.tokens,
            pages=len(keys),
            durable_pages=sum(entry.durable for entry in entries),
            durable_position=session.durable_position,
            tiers=tiers,
        )

    async def delete(self, tenant_id: TenantId, session_id: str) -> Freed:
        """See `Deletion.delete`."""
        return await self._deletion.delete(tenant_id, session_id)

    async def retract(self, tenant_id: TenantId, turn_id: str) -> Freed:
        """See `Deletion.retract`."""
        return await self._deletion.retract(tenant_id, turn_id)


def _unknown_turn(after: str) -> InvalidRequest:
    return InvalidRequest(f"No turn with id {after!r} to go on after.", param="after")
