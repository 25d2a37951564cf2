"""Plans, as the sessions' service and the API use them."""

from __future__ import annotations

from agentmem.catalog import Catalog
from agentmem.core import TenantId
from agentmem.plans.book import PlanBook, TenantPlan


class Plans:
    """The facade: which plan a tenant has."""

    def __init__(self, catalog: Catalog) -> None:
        self._book = PlanBook(catalog)

    async def of(self, tenant_id: TenantId) -> TenantPlan:
        """See `PlanBook.of`."""
        return await self._book.of(tenant_id)

    def forget(self, tenant_id: TenantId) -> None:
        """This process has changed the tenant's plan: it is in force here at once."""
        self._book.forget(tenant_id)
