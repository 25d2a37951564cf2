"""Plans (versions that never change) and subscriptions: which one a tenant has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from agentmem.catalog.ids import new_id, now_us
from agentmem.catalog.plantables import plans, subscriptions
from agentmem.catalog.upserts import upsert
from agentmem.core import TenantId
from agentmem.errors import NotFound


@dataclass(frozen=True, slots=True)
class PlanRecord:
    """One version of a plan, as it was written."""

    id: str
    name: str
    version: int
    definition: Mapping[str, Any]
    created_at: int


@dataclass(frozen=True, slots=True)
class Subscription:
    """Which plan a tenant has (None: the default one) and the state of its lapse.

    `due_at`: when the next state begins, None: never by itself.
    """

    tenant_id: TenantId
    plan_id: str | None
    overrides: Mapping[str, Any]
    state: str
    reason: str
    state_since: int
    due_at: int | None
    changed_at: int


class Plans:
    """Statements on `plans` and `subscriptions`; see `database.Transaction`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def create(self, name: str, definition: Mapping[str, Any]) -> PlanRecord:
        """The next version of the plan of this name. Operators' function.

        Two at once: the second one is an IntegrityError.
        """
        newest = select(func.coalesce(func.max(plans.c.version), 0)).where(plans.c.name == name)
        version = int((await self._connection.execute(newest)).scalar_one()) + 1
        record = PlanRecord(new_id("plan"), name, version, dict(definition), now_us())
        await self._connection.execute(insert(plans), asdict(record))
        return record

    async def find(self, name_or_id: str, version: int | None = None) -> PlanRecord | None:
        """A plan by its id, or by name: that version, else the newest. Operators' function."""
        query = select(plans).where((plans.c.name == name_or_id) | (plans.c.id == name_or_id))
        if version is not None:
            query = query.where(plans.c.version == version)
        query = query.order_by(plans.c.version.desc()).limit(1)
        row = (await self._connection.execute(query)).first()
        return None if row is None else PlanRecord(**row._mapping)

    async def versions(self, *, limit: int = 1_000) -> list[PlanRecord]:
        """All versions of all plans, by name, newest first. Operators' function."""
        query = select(plans).order_by(plans.c.name, plans.c.version.desc()).limit(limit)
        return [PlanRecord(**row._mapping) for row in await self._connection.execute(query)]

    async def of_tenant(self, tenant_id: TenantId) -> tuple[Subscription | None, PlanRecord | None]:
        """The tenant's subscription and its plan: one statement. None: as nobody has set it."""
        kept, plan = subscriptions.c, plans.c
        of_plan = [column.label(f"plan_{column.name}") for column in plan if column.name != "id"]
        query = (
            select(*kept, *of_plan)
            .outerjoin(plans, plan.id == kept.plan_id)
            .where(kept.tenant_id == tenant_id)
        )
        row = (await self._connection.execute(query)).first()
        if row is None:
            return None, None
        values = row._mapping
        subscription = Subscription(**{column.name: values[column.name] for column in kept})
        if subscription.plan_id is None:
            return subscription, None
        record = PlanRecord(
            subscription.plan_id,
            *(values[f"plan_{name}"] for name in ("name", "version", "definition", "created_at")),
        )
        return subscription, record

    async def subscribe(
        self, tenant_id: TenantId, plan_id: str | None, overrides: Mapping[str, Any]
    ) -> None:
        """Gives the tenant a plan; how far its lapse is stays as it is."""
        now = now_us()
        values = {"plan_id": plan_id, "overrides": dict(overrides), "changed_at": now}
        statement = upsert(self._connection, subscriptions).values(
            tenant_id=tenant_id, state="active", reason="", state_since=now, due_at=None, **values
        )
        await self._connection.execute(
            statement.on_conflict_do_update(index_elements=["tenant_id"], set_=values)
        )

    async def move(
        self,
        tenant_id: TenantId,
        *,
        before: str,
        state: str,
        reason: str,
        due_at: int | None,
        due_by: int | None = None,
    ) -> bool:
        """The tenant's lapse goes from `before` to `state`; False: it was elsewhere already.

        `due_by`: only if it was due by then.
        """
        now = now_us()
        if before == "active":
            # Whoever has no row is active; two that make it at once get one.
            made = upsert(self._connection, subscriptions).values(
                tenant_id=tenant_id,
                plan_id=None,
                overrides={},
                state="active",
                reason="",
                state_since=now,
                due_at=None,
                changed_at=now,
            )
            await self._connection.execute(made.on_conflict_do_nothing())
        query = update(subscriptions).where(
            subscriptions.c.tenant_id == tenant_id, subscriptions.c.state == before
        )
        if due_by is not None:
            query = query.where(subscriptions.c.due_at <= due_by)
        result = await self._connection.execute(
            query.values(state=state, reason=reason, state_since=now, due_at=due_at, changed_at=now)
        )
        return result.rowcount == 1

    async def due(self, now: int, *, limit: int = 100) -> list[Subscription]:
        """Whose next state is due, longest first. Operators' function."""
        query = (
            select(subscriptions)
            .where(subscriptions.c.due_at <= now)
            .order_by(subscriptions.c.due_at)
            .limit(limit)
        )
        return [Subscription(**row._mapping) for row in await self._connection.execute(query)]

    async def in_state(self, state: str, *, limit: int = 100) -> list[Subscription]:
        """Whose lapse is there, those that came there last first. Operators' function."""
        query = (
            select(subscriptions)
            .where(subscriptions.c.state == state)
            .order_by(subscriptions.c.state_since.desc())
            .limit(limit)
        )
        return [Subscription(**row._mapping) for row in await self._connection.execute(query)]

    async def lock(self, tenant_id: TenantId) -> None:
        """Holds the tenant's subscription until the transaction ends, so that nobody else counts
        what it has meanwhile. (SQLite has one writer anyway.)"""
        query = select(subscriptions.c.tenant_id).where(subscriptions.c.tenant_id == tenant_id)
        await self._connection.execute(query.with_for_update())


def plan_or_raise(record: PlanRecord | None, name: str) -> PlanRecord:
    """The plan, or NotFound."""
    if record is None:
        raise NotFound("plan", name)
    return record
