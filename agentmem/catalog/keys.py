"""API keys, by the prefix that they show; the secret part is stored as an HMAC only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from sqlalchemy import bindparam, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from agentmem.catalog import tables
from agentmem.catalog.ids import default_project, new_id, now_us
from agentmem.catalog.records import ApiKey
from agentmem.core import ProjectId, TenantId
from agentmem.errors import NotFound

# How far behind `last_used_at` may be: it is written at most this often, over all gateways.
USE_WRITTEN_EVERY_US = 60_000_000
DEFAULT_SCOPES = "inference sessions:read"


class Keys:
    """Statements on `api_keys`; see `database.Transaction`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def create(
        self,
        tenant_id: TenantId,
        *,
        name: str,
        prefix: str,
        key_hash: bytes,
        project_id: ProjectId | None = None,
        scopes: str = DEFAULT_SCOPES,
        expires_at: int | None = None,
        rotated_from: str | None = None,
    ) -> ApiKey:
        """Stores a key's HMAC (32 bytes) under its prefix. Without a project: the default one."""
        key = ApiKey(
            new_id("key"),
            tenant_id,
            name,
            prefix,
            key_hash,
            now_us(),
            project_id=project_id or default_project(tenant_id),
            scopes=scopes,
            expires_at=expires_at,
            rotated_from=rotated_from,
        )
        await self._connection.execute(insert(tables.api_keys).values(asdict(key)))
        return key

    async def find_by_prefix(self, prefix: str) -> tuple[ApiKey, int | None] | None:
        """The key that shows this prefix, whatever became of it, and since when its tenant is
        suspended. Operators' function: it is how a caller's tenant is found out in the first
        place."""
        table, owners = tables.api_keys, tables.tenants
        row = (
            await self._connection.execute(
                select(table, owners.c.suspended_at)
                .join(owners, owners.c.id == table.c.tenant_id)
                .where(table.c.prefix == prefix)
            )
        ).first()
        if row is None:
            return None
        fields = dict(row._mapping)
        suspended_at = fields.pop("suspended_at")
        return ApiKey(**fields), suspended_at

    async def get(self, tenant_id: TenantId, key_id: str) -> ApiKey:
        """A key by its id or prefix. Raises NotFound, for those of other tenants alike."""
        table = tables.api_keys
        row = (
            await self._connection.execute(
                select(table).where(
                    table.c.tenant_id == tenant_id,
                    or_(table.c.id == key_id, table.c.prefix == key_id),
                )
            )
        ).first()
        if row is None:
            raise NotFound("key", key_id)
        return ApiKey(**row._mapping)

    async def list(
        self, tenant_id: TenantId, *, after: ApiKey | None = None, limit: int = 1_000
    ) -> list[ApiKey]:
        """A tenant's keys, oldest first, from after a key on."""
        table = tables.api_keys
        query = select(table).where(table.c.tenant_id == tenant_id)
        if after is not None:
            query = query.where(
                or_(
                    table.c.created_at > after.created_at,
                    (table.c.created_at == after.created_at) & (table.c.id > after.id),
                )
            )
        rows = await self._connection.execute(
            query.order_by(table.c.created_at, table.c.id).limit(limit)
        )
        return [ApiKey(**row._mapping) for row in rows]

    async def count_live(self, tenant_id: TenantId) -> int:
        """How many keys of a tenant work now."""
        table = tables.api_keys
        query = (
            select(func.count())
            .select_from(table)
            .where(
                table.c.tenant_id == tenant_id,
                table.c.revoked_at.is_(None),
                or_(table.c.expires_at.is_(None), table.c.expires_at > now_us()),
            )
        )
        return int((await self._connection.execute(query)).scalar_one())

    async def revoke(self, tenant_id: TenantId, key_id: str) -> bool:
        """Whether such a key was there and not yet revoked."""
        table = tables.api_keys
        result = await self._connection.execute(
            update(table)
            .where(
                table.c.id == key_id,
                table.c.tenant_id == tenant_id,
                table.c.revoked_at.is_(None),
            )
            .values(revoked_at=now_us())
        )
        return result.rowcount == 1

    async def expire(self, tenant_id: TenantId, key_id: str, *, at_us: int) -> bool:
        """Lets a key end at a time, unless it ends before anyway; whether there was such a key."""
        table = tables.api_keys
        result = await self._connection.execute(
            update(table)
            .where(
                table.c.id == key_id,
                table.c.tenant_id == tenant_id,
                table.c.revoked_at.is_(None),
                or_(table.c.expires_at.is_(None), table.c.expires_at > at_us),
            )
            .values(expires_at=at_us)
        )
        return result.rowcount == 1

    async def note_uses(self, used_at: Mapping[str, int]) -> None:
        """Writes when keys (by id) were last used, those only whose time on record is older than a
        minute. Operators' function: a gateway tells of all tenants' keys at once."""
        if not used_at:
            return
        table = tables.api_keys
        statement = (
            update(table)
            .where(
                table.c.id == bindparam("key"),
                or_(
                    table.c.last_used_at.is_(None),
                    table.c.last_used_at <= bindparam("used") - USE_WRITTEN_EVERY_US,
                ),
            )
            .values(last_used_at=bindparam("used"))
        )
        # In one order everywhere, so that two gateways do not wait for each other in a circle.
        rows = [{"key": key, "used": used} for key, used in sorted(used_at.items())]
        await self._connection.execute(statement, rows)
