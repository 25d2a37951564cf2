"""All services of administration over one catalog: what gateways and the command line share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agentmem.administration.audit import AuditService
from agentmem.administration.keys import KeysService
from agentmem.administration.tenants import TenantsService
from agentmem.administration.uses import KeyUses
from agentmem.catalog import Catalog
from agentmem.sessions.secrets import Secrets


class Administration:
    """`tenants`, `keys`, `audit` act and read; `uses` notes when keys are used."""

    def __init__(self, catalog: Catalog, secrets: Secrets) -> None:
        self.tenants = TenantsService(catalog)
        self.keys = KeysService(catalog, secrets)
        self.audit = AuditService(catalog)
        self.uses = KeyUses(catalog)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keeps the loops going; writes what they have at last."""
        loop = asyncio.create_task(self.uses.run())
        try:
            yield
        finally:
            self.uses.stop()
            await loop
