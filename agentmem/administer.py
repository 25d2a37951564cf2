"""Composition root of the command line's administration: settings in, one act, done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from agentmem.administration.actors import SYSTEM, cli_actor
from agentmem.administration.services import Administration
from agentmem.app import migrate_catalog, with_catalog
from agentmem.catalog import Catalog
from agentmem.catalog.records import Tenant
from agentmem.config import Settings
from agentmem.sessions.secrets import load_secrets

T = TypeVar("T")

FIRST_TENANT = "default"
FIRST_KEY = "first"


def administer(settings: Settings, work: Callable[[Administration], Awaitable[T]]) -> T:
    """Does `work` with the services of administration on the catalog of these settings.

    Raises ConfigurationInvalid when the catalog or the secrets cannot be used.
    """

    async def opened(catalog: Catalog) -> T:
        return await work(Administration(catalog, load_secrets(settings.secrets_dir)))

    return asyncio.run(with_catalog(settings, opened))


def create_tenant(settings: Settings, name: str) -> str:
    """Creates a tenant and returns its id. Raises InvalidRequest when the name is taken."""
    return administer(settings, lambda all_: all_.tenants.create(cli_actor(), name)).id


def set_tenant_models(
    settings: Settings,
    tenant: str,
    *,
    default_model: str | None = None,
    model_aliases: Sequence[str] | None = None,
) -> Tenant:
    """See `TenantsService.set_models`."""
    return administer(
        settings,
        lambda all_: all_.tenants.set_models(
            cli_actor(), tenant, default_model=default_model, model_aliases=model_aliases
        ),
    )


def create_key(settings: Settings, tenant: str, *, name: str = "") -> str:
    """Creates an API key of a tenant (its name or id) and returns it: it is not stored.

    Raises NotFound for an unknown tenant.
    """
    return administer(
        settings, lambda all_: all_.keys.create(cli_actor(), tenant, name=name)
    ).secret


def ensure_first_key(settings: Settings) -> str | None:
    """Brings the schema up to date; where there is no tenant yet, makes one and returns its key."""

    async def ensure(all_: Administration) -> str | None:
        if await all_.tenants.list():
            return None
        tenant = await all_.tenants.create(SYSTEM, FIRST_TENANT)
        return (await all_.keys.create(SYSTEM, tenant.id, name=FIRST_KEY)).secret

    migrate_catalog(settings)
    return administer(settings, ensure)
