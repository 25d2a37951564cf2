"""All services of administration over one catalog: what gateways and the command line share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from agentmem.administration.audit import AuditService
from agentmem.administration.keys import KeysService
from agentmem.administration.oidc import OidcService, OidcSettings
from agentmem.administration.operators import OperatorsService
from agentmem.administration.signin import SignInService
from agentmem.administration.tenants import TenantsService
from agentmem.administration.uses import KeyUses
from agentmem.catalog import Catalog
from agentmem.sessions.secrets import Secrets


@dataclass(frozen=True, slots=True)
class SignInSettings:
    """How operators sign in. `url`: what their browsers reach the gateway by."""

    url: str = "http://127.0.0.1:8700"
    idle_seconds: float = 3_600.0
    seconds_max: float = 43_200.0
    oidc: OidcSettings | None = None


class Administration:
    """The services: each acts and reads; `uses` notes when keys are used."""

    def __init__(
        self, catalog: Catalog, secrets: Secrets, sign_in: SignInSettings | None = None
    ) -> None:
        self.settings = sign_in or SignInSettings()
        self.tenants = TenantsService(catalog)
        self.keys = KeysService(catalog, secrets)
        self.audit = AuditService(catalog)
        self.uses = KeyUses(catalog)
        self.operators = OperatorsService(catalog, secrets)
        self.sign_ins = SignInService(
            catalog,
            secrets,
            idle_seconds=self.settings.idle_seconds,
            seconds_max=self.settings.seconds_max,
        )
        self.oidc = None
        if self.settings.oidc is not None:
            self.oidc = OidcService(catalog, self.sign_ins, self.settings.oidc)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keeps the loops going; writes what they have at last."""
        loop = asyncio.create_task(self.uses.run())
        try:
            yield
        finally:
            self.uses.stop()
            await loop
