"""Tenants. Each is an operators' function: a tenant cannot name another one."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import insert, null, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from agentmem.catalog import tables
from agentmem.catalog.ids import new_id, now_us
from agentmem.catalog.projects import DEFAULT_NAME, Projects
from agentmem.catalog.records import Tenant
from agentmem.core import TenantId
from agentmem.errors import InvalidRequest, NotFound

_MODEL_CHARACTERS_MAX = 200


class Tenants:
    """Statements on `tenants`; see `database.Transaction`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def create(self, name: str) -> Tenant:
        """A tenant with its default project.

        Raises InvalidRequest when the name is empty, too long or taken.
        """
        if not name.strip() or len(name) > 200 or "\x00" in name:
            raise InvalidRequest("A tenant's name has 1 to 200 characters.", param="name")
        if await self.find(name) is not None:
            raise InvalidRequest(f"A tenant named {name!r} exists.", param="name")
        tenant = Tenant(id=TenantId(new_id("ten")), name=name, created_at=now_us())
        try:
            await self._connection.execute(
                insert(tables.tenants).values(
                    id=tenant.id, name=tenant.name, created_at=tenant.created_at
                )
            )
        except IntegrityError as error:
            # Another transaction took it since.
            raise InvalidRequest(f"A tenant named {name!r} exists.", param="name") from error
        await Projects(self._connection).create(tenant.id, DEFAULT_NAME)
        return tenant

    async def set_suspended(self, tenant_id: TenantId, *, suspended: bool) -> bool:
        """Whether that changed anything: a tenant that is suspended stays so since then."""
        table = tables.tenants
        current = table.c.suspended_at
        result = await self._connection.execute(
            update(table)
            .where(
                table.c.id == tenant_id, current.is_(None) if suspended else current.is_not(None)
            )
            .values(suspended_at=now_us() if suspended else None)
        )
        return result.rowcount == 1

    async def set_models(
        self,
        tenant_id: TenantId,
        *,
        default_model: str | None,
        model_aliases: Sequence[str] | None,
    ) -> None:
        """What the tenant's requests mean by no model at all, and by names of no served model.

        `model_aliases` are shell patterns that mean the default model. None: the gateway's.
        Raises InvalidRequest for names and patterns that can be none.
        """
        for text in (*(model_aliases or ()), *(() if default_model is None else (default_model,))):
            if not text.strip() or len(text) > _MODEL_CHARACTERS_MAX or "\x00" in text:
                raise InvalidRequest(
                    f"A model's name or pattern has 1 to {_MODEL_CHARACTERS_MAX} characters, "
                    f"not {text!r}.",
                    param="model",
                )
        table = tables.tenants
        await self._connection.execute(
            update(table)
            .where(table.c.id == tenant_id)
            .values(
                default_model=default_model,
                model_aliases=null() if model_aliases is None else list(model_aliases),
            )
        )

    async def find(self, name_or_id: str) -> Tenant | None:
        """A tenant by its name or id."""
        table = tables.tenants
        row = (
            await self._connection.execute(
                select(table).where((table.c.name == name_or_id) | (table.c.id == name_or_id))
            )
        ).first()
        return None if row is None else Tenant(**row._mapping)

    async def get(self, name_or_id: str) -> Tenant:
        """As `find`, but raises NotFound."""
        tenant = await self.find(name_or_id)
        if tenant is None:
            raise NotFound("tenant", name_or_id)
        return tenant

    async def list(self) -> list[Tenant]:
        """All tenants, oldest first."""
        rows = await self._connection.execute(
            select(tables.tenants).order_by(tables.tenants.c.created_at, tables.tenants.c.id)
        )
        return [Tenant(**row._mapping) for row in rows]
