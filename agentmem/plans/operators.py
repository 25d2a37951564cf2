"""What operators do with plans: write a version, give one to a tenant, and see what that changes.

Names are a plan's (`pro`, `pro@3` for a version) or its id; `default` is built in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agentmem.catalog import Catalog, Transaction
from agentmem.catalog.plans import PlanRecord, plan_or_raise
from agentmem.core import TenantId
from agentmem.errors import InvalidRequest
from agentmem.plans.book import TenantPlan, read_plan
from agentmem.plans.definition import (
    DEFAULT,
    DEFAULT_NAME,
    PlanDefinition,
    as_data,
    differences,
    read_definition,
    with_overrides,
)

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,99}\Z")

Difference = tuple[str, Any, Any]


@dataclass(frozen=True, slots=True)
class ShownPlan:
    """One version of a plan; the built-in one has no id and version 0."""

    name: str
    version: int
    id: str | None
    definition: PlanDefinition


@dataclass(frozen=True, slots=True)
class Assigned:
    """What a tenant has now, and what that changed: field, value before, value after."""

    plan: TenantPlan
    changes: list[Difference]


async def create_plan(
    catalog: Catalog, name: str, data: Mapping[str, Any]
) -> tuple[ShownPlan, list[Difference]]:
    """Writes the next version of a plan, and says what differs from the one before it (from the
    default plan where it is the first). Tenants stay with the version that they have.

    Raises InvalidRequest for a name or a definition that cannot be used.
    """
    if not _NAME.match(name) or name == DEFAULT_NAME:
        raise InvalidRequest(
            "A plan's name has 1 to 100 lower-case letters, digits, - and _, and is not "
            f"{DEFAULT_NAME!r}, which is built in; not {name!r}.",
            param="name",
        )
    definition = read_definition(dict(data))
    async with catalog.transaction() as tx:
        before = await tx.plans.find(name)
        record = await tx.plans.create(name, as_data(definition))
    old = DEFAULT if before is None else read_definition(before.definition)
    return _shown(record), differences(old, definition)


async def list_plans(catalog: Catalog) -> list[ShownPlan]:
    """The built-in plan, then all versions of all others, newest first."""
    async with catalog.reading() as tx:
        records = await tx.plans.versions()
    return [ShownPlan(DEFAULT_NAME, 0, None, DEFAULT), *(_shown(one) for one in records)]


async def show_plan(catalog: Catalog, name: str) -> ShownPlan:
    """One plan, its newest version unless another is named. Raises NotFound."""
    if name == DEFAULT_NAME:
        return ShownPlan(DEFAULT_NAME, 0, None, DEFAULT)
    async with catalog.reading() as tx:
        return _shown(await _find(tx, name))


async def assign_plan(
    catalog: Catalog,
    tenant: str,
    name: str,
    *,
    overrides: Mapping[str, Any] | None = None,
    dry_run: bool = False,
) -> Assigned:
    """Gives a tenant (its name or id) a plan, in force on every gateway within a second.

    `overrides` replace what they name of the plan for this tenant; None leaves those that it has,
    {} takes them away. `dry_run` only says what would change. Raises NotFound, or InvalidRequest
    where plan and overrides together are no plan.
    """
    async with catalog.transaction() as tx:
        tenant_id = (await tx.tenants.get(tenant)).id
        before = await read_plan(tx, tenant_id)
        record = None if name == DEFAULT_NAME else await _find(tx, name)
        base = DEFAULT if record is None else read_definition(record.definition)
        wanted = dict(before.overrides if overrides is None else overrides)
        after = with_overrides(base, wanted)
        if not dry_run:
            await tx.plans.subscribe(tenant_id, None if record is None else record.id, wanted)
        changes = differences(before.definition, after)
        plan = await read_plan(tx, tenant_id)
    return Assigned(plan, changes)


async def plan_of_tenant(catalog: Catalog, tenant: str) -> tuple[TenantId, TenantPlan]:
    """What a tenant (its name or id) has now. Raises NotFound."""
    async with catalog.reading() as tx:
        tenant_id = (await tx.tenants.get(tenant)).id
        return tenant_id, await read_plan(tx, tenant_id)


async def _find(tx: Transaction, name: str) -> PlanRecord:
    plain, _, version = name.partition("@")
    if version and not version.isdigit():
        raise InvalidRequest(f"A version is a number: {plain}@3, not {name!r}.", param="plan")
    found = await tx.plans.find(plain, int(version) if version else None)
    return plan_or_raise(found, name)


def _shown(record: PlanRecord) -> ShownPlan:
    return ShownPlan(record.name, record.version, record.id, read_definition(record.definition))
