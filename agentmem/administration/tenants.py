"""Tenants and their projects; each act in the audit log."""

from __future__ import annotations

from collections.abc import Sequence

from agentmem.administration.actors import Actor
from agentmem.catalog import Catalog
from agentmem.catalog.records import Project, Tenant


class TenantsService:
    """Tenants are named by name or id; NotFound is raised where there is none."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def create(self, actor: Actor, name: str) -> Tenant:
        """A tenant with its default project. Raises InvalidRequest when the name is taken."""
        async with self._catalog.transaction() as tx:
            tenant = await tx.tenants.create(name)
            await tx.audit.append(
                actor=actor.id, action="tenant.create", target=tenant.id, tenant_id=tenant.id
            )
        return tenant

    async def get(self, tenant: str) -> Tenant:
        """One tenant."""
        async with self._catalog.reading() as tx:
            return await tx.tenants.get(tenant)

    async def set_models(
        self,
        actor: Actor,
        tenant: str,
        *,
        default_model: str | None = None,
        model_aliases: Sequence[str] | None = None,
    ) -> Tenant:
        """Sets which model the tenant gets by default and which names mean it.

        None leaves a value as it is; an empty one gives it back to the gateway's settings. Returns
        the tenant as it is now. Raises InvalidRequest for names that can be none.
        """
        async with self._catalog.transaction() as tx:
            found = await tx.tenants.get(tenant)
            default = found.default_model if default_model is None else default_model or None
            aliases = found.model_aliases if model_aliases is None else model_aliases or None
            await tx.tenants.set_models(found.id, default_model=default, model_aliases=aliases)
            changed = await tx.tenants.get(found.id)
            if changed != found:
                await tx.audit.append(
                    actor=actor.id,
                    action="tenant.set",
                    target=found.id,
                    tenant_id=found.id,
                    details={
                        "default_model": changed.default_model,
                        "model_aliases": changed.model_aliases,
                    },
                )
        return changed

    async def suspend(self, actor: Actor, tenant: str, *, suspended: bool = True) -> Tenant:
        """Has nothing answered to the tenant's keys, within a second, or answers them again.

        What is kept stays kept; turns that run go on to their end.
        """
        async with self._catalog.transaction() as tx:
            found = await tx.tenants.get(tenant)
            if await tx.tenants.set_suspended(found.id, suspended=suspended):
                await tx.audit.append(
                    actor=actor.id,
                    action="tenant.suspend" if suspended else "tenant.unsuspend",
                    target=found.id,
                    tenant_id=found.id,
                )
            return await tx.tenants.get(found.id)

    async def create_project(self, actor: Actor, tenant: str, name: str) -> Project:
        """A project. Raises InvalidRequest when the name is taken or there are too many."""
        async with self._catalog.transaction() as tx:
            owner = await tx.tenants.get(tenant)
            project = await tx.projects.create(owner.id, name)
            await tx.audit.append(
                actor=actor.id, action="project.create", target=project.id, tenant_id=owner.id
            )
        return project

    async def projects(self, tenant: str) -> list[Project]:
        """A tenant's projects, oldest first."""
        async with self._catalog.reading() as tx:
            return await tx.projects.list((await tx.tenants.get(tenant)).id)

    async def list(self) -> list[Tenant]:
        """All tenants, oldest first."""
        async with self._catalog.reading() as tx:
            return await tx.tenants.list()
