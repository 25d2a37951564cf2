"""Which model a name means: a served one, or a tenant's default behind an alias."""

from __future__ import annotations

import time
from dataclasses import dataclass
from fnmatch import fnmatchcase

from agentmem.catalog.records import Tenant
from agentmem.core import TenantId
from agentmem.errors import ModelNotFound, WorkerUnavailable
from agentmem.sessions.context import Context

# A change of a tenant's aliases takes effect within this.
_CACHE_SECONDS = 1.0
_CACHED_MAX = 10_000


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as it is listed. `created` is when it was first seen here, in seconds since the
    epoch; `aliases` are patterns that mean it."""

    id: str
    created: int
    owned_by: str
    aliases: tuple[str, ...]


class Models:
    """Resolves names for tenants."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._tenants: dict[TenantId, tuple[Tenant, float]] = {}
        self._first_seen: dict[str, int] = {}

    async def resolve(self, tenant_id: TenantId, name: str | None) -> str:
        """The served model that `name` means; None: the default one.

        Raises ModelNotFound, or WorkerUnavailable while no worker has registered at all.
        """
        known = await self._context.router.models()
        if name in known:
            return name
        if not known:
            raise WorkerUnavailable("No worker has registered yet.")
        tenant = await self._tenant(tenant_id)
        default = self._default(tenant, known)
        if name is None or any(fnmatchcase(name, alias) for alias in self._aliases(tenant)):
            if default is None:
                raise ModelNotFound(name or "(none given)", known=tuple(known))
            return default
        raise ModelNotFound(name, known=tuple(known))

    async def listed(self, tenant_id: TenantId) -> list[ServedModel]:
        """All served models."""
        tenant = await self._tenant(tenant_id)
        known = await self._context.router.models()
        default = self._default(tenant, known)
        return [
            ServedModel(
                id=model,
                created=self._first_seen.setdefault(model, int(time.time())),
                owned_by="agentmem",
                aliases=tuple(self._aliases(tenant)) if model == default else (),
            )
            for model in known
        ]

    def _default(self, tenant: Tenant, known: list[str]) -> str | None:
        for candidate in (tenant.default_model, self._context.limits.default_model):
            if candidate in known:
                return candidate
        return known[0] if len(known) == 1 else None

    def _aliases(self, tenant: Tenant) -> list[str]:
        own = tenant.model_aliases
        return list(self._context.limits.model_aliases) if own is None else own

    async def _tenant(self, tenant_id: TenantId) -> Tenant:
        cached = self._tenants.get(tenant_id)
        if cached is not None and cached[1] > time.monotonic():
            return cached[0]
        async with self._context.catalog.reading() as tx:
            tenant = await tx.tenants.get(tenant_id)
        if len(self._tenants) >= _CACHED_MAX:
            self._tenants.clear()
        self._tenants[tenant_id] = (tenant, time.monotonic() + _CACHE_SECONDS)
        return tenant
