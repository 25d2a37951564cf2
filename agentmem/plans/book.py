"""Which plan a tenant has, as every gateway sees it: read from the catalog, kept for a second."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from agentmem.catalog import Catalog, Transaction
from agentmem.catalog.plans import PlanRecord, Subscription
from agentmem.core import TenantId
from agentmem.errors import TenantFrozen
from agentmem.plans.definition import (
    DEFAULT,
    DEFAULT_NAME,
    PlanDefinition,
    read_definition,
    with_overrides,
)

# A change is in force on every gateway within this time.
CACHE_SECONDS = 0.9
_CACHED_MAX = 10_000

State = Literal["active", "notice", "grace", "frozen", "deleted"]
CLOSED: tuple[State, ...] = ("frozen", "deleted")


@dataclass(frozen=True, slots=True)
class TenantPlan:
    """What a tenant has now. Times are microseconds since the epoch; `due_at`: when the next state
    of its lapse begins, None: never by itself."""

    definition: PlanDefinition = DEFAULT
    plan_id: str | None = None
    name: str = DEFAULT_NAME
    version: int = 0
    overrides: Mapping[str, Any] = field(default_factory=dict)
    state: State = "active"
    reason: str = ""
    state_since: int | None = None
    due_at: int | None = None

    def check_open(self) -> None:
        """Raises TenantFrozen where nothing new may begin."""
        if self.state in CLOSED:
            raise TenantFrozen(
                self.state, self.reason, since_us=self.state_since or 0, until_us=self.due_at
            )


DEFAULT_PLAN = TenantPlan()


class PlanBook:
    """Looks plans up; `of` asks the catalog at most once a second and tenant."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._known: dict[TenantId, tuple[TenantPlan, float]] = {}

    async def of(self, tenant_id: TenantId) -> TenantPlan:
        """The tenant's plan. Raises CatalogUnavailable."""
        known = self._known.get(tenant_id)
        if known is not None and known[1] > time.monotonic():
            return known[0]
        async with self._catalog.reading() as tx:
            plan = await read_plan(tx, tenant_id)
        if len(self._known) >= _CACHED_MAX:
            self._known.clear()
        self._known[tenant_id] = (plan, time.monotonic() + CACHE_SECONDS)
        return plan

    def forget(self, tenant_id: TenantId) -> None:
        """The next look is at the catalog."""
        self._known.pop(tenant_id, None)


async def read_plan(tx: Transaction, tenant_id: TenantId) -> TenantPlan:
    """The tenant's plan, as the catalog has it."""
    subscription, record = await tx.plans.of_tenant(tenant_id)
    return DEFAULT_PLAN if subscription is None else plan_of(subscription, record)


def plan_of(subscription: Subscription, record: PlanRecord | None) -> TenantPlan:
    """A subscription with its plan, ready to be asked."""
    base = DEFAULT if record is None else read_definition(record.definition)
    state: Any = subscription.state
    return TenantPlan(
        definition=with_overrides(base, subscription.overrides),
        plan_id=subscription.plan_id,
        name=DEFAULT_NAME if record is None else record.name,
        version=0 if record is None else record.version,
        overrides=subscription.overrides,
        state=state,
        reason=subscription.reason,
        state_since=subscription.state_since,
        due_at=subscription.due_at,
    )
