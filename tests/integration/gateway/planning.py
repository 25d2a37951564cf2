"""Plans for the tenants of tests."""

from __future__ import annotations

from typing import Any

from agentmem.core import TenantId
from agentmem.plans.operators import assign_plan, create_plan
from agentmem.testing.gateway import RunningGateway

SHORT = {"kv_retention_seconds": 600, "log_retention_seconds": 1_200}
LONG = {"kv_retention_seconds": 6_000, "log_retention_seconds": 12_000}


async def give_plan(gateway: RunningGateway, tenant_id: TenantId, **definition: Any) -> None:
    """Gives the tenant a plan with just these fields set, in force at once."""
    await create_plan(gateway.catalog, "tests", definition)
    await assign_plan(gateway.catalog, tenant_id, "tests")
    gateway.gateway.service.plans.forget(tenant_id)
