"""API keys: made, rotated with an overlap, revoked; each act in the audit log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from agentmem.administration.actors import Actor
from agentmem.administration.apikeys import new_api_key
from agentmem.administration.scopes import scopes_text
from agentmem.catalog import Catalog, Transaction
from agentmem.catalog.ids import default_project, now_us
from agentmem.catalog.records import ApiKey
from agentmem.core import ProjectId, TenantId
from agentmem.errors import InvalidRequest
from agentmem.sessions.secrets import Secrets

KEYS_MAX = 1_000
NAME_CHARACTERS_MAX = 200
LIFETIME_SECONDS_MAX = 10 * 365 * 86_400
OVERLAP_SECONDS_DEFAULT = 86_400
OVERLAP_SECONDS_MAX = 90 * 86_400


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key's row with the key itself, which nobody can show again."""

    key: ApiKey
    secret: str = field(repr=False)


class KeysService:
    """Every method raises NotFound for tenants, projects and keys that are not there."""

    def __init__(self, catalog: Catalog, secrets: Secrets) -> None:
        self._catalog = catalog
        self._secrets = secrets

    async def create(
        self,
        actor: Actor,
        tenant: str,
        *,
        name: str = "",
        project: str | None = None,
        scopes: Sequence[str] | None = None,
        expires_seconds: int | None = None,
    ) -> NewKey:
        """A key of a tenant and one of its projects (each by name or id; the default one).

        `expires_seconds` None: it works until it is revoked. Raises InvalidRequest for what it
        cannot have, and when the tenant has 1,000 keys that work.
        """
        stored, expires_at = scopes_text(scopes), _end_of(expires_seconds)
        _check_name(name)
        async with self._catalog.transaction() as tx:
            owner = await tx.tenants.get(tenant)
            await _check_count(tx, owner.id)
            project_id = default_project(owner.id)
            if project is not None:
                project_id = (await tx.projects.get(owner.id, project)).id
            made = await self._insert(
                tx,
                owner.id,
                name=name,
                project_id=project_id,
                scopes=stored,
                expires_at=expires_at,
            )
            await tx.audit.append(
                actor=actor.id,
                action="key.create",
                target=made.key.id,
                tenant_id=owner.id,
                details={
                    "scopes": stored,
                    "project": project_id,
                    "expires_at": expires_at,
                },
            )
        return made

    async def list(
        self, tenant: str, *, after: str | None = None, limit: int = 1_000
    ) -> list[ApiKey]:
        """A tenant's keys, oldest first, those that ended too, from after the key `after` on."""
        async with self._catalog.reading() as tx:
            owner = await tx.tenants.get(tenant)
            mark = None if after is None else await tx.keys.get(owner.id, after)
            return await tx.keys.list(owner.id, after=mark, limit=limit)

    async def rotate(
        self,
        actor: Actor,
        tenant: str,
        key_id: str,
        *,
        overlap_seconds: int = OVERLAP_SECONDS_DEFAULT,
        expires_seconds: int | None = None,
    ) -> NewKey:
        """A key that may do what an old one may, which ends by itself after the overlap.

        Raises InvalidRequest for an overlap over 90 days, and for a key that works no more.
        """
        if not 0 <= overlap_seconds <= OVERLAP_SECONDS_MAX:
            raise InvalidRequest(
                f"An overlap is 0 to {OVERLAP_SECONDS_MAX} seconds.", param="overlap_seconds"
            )
        expires_at = _end_of(expires_seconds)
        async with self._catalog.transaction() as tx:
            owner = await tx.tenants.get(tenant)
            old = await tx.keys.get(owner.id, key_id)
            if not works(old):
                raise InvalidRequest("This key works no more; make a new one.", param="key")
            ends_at = now_us() + overlap_seconds * 1_000_000
            if old.expires_at is not None:
                ends_at = min(ends_at, old.expires_at)
            await tx.keys.expire(owner.id, old.id, at_us=ends_at)
            await _check_count(tx, owner.id)
            made = await self._insert(
                tx,
                owner.id,
                name=old.name,
                project_id=old.project_id or default_project(owner.id),
                scopes=old.scopes,
                expires_at=expires_at,
                rotated_from=old.id,
            )
            await tx.audit.append(
                actor=actor.id,
                action="key.rotate",
                target=made.key.id,
                tenant_id=owner.id,
                details={"rotated_from": old.id, "old_ends_at": ends_at, "expires_at": expires_at},
            )
        return made

    async def revoke(self, actor: Actor, tenant: str, key_id: str) -> ApiKey:
        """Ends a key now: within a second on every gateway. Again: nothing changes."""
        async with self._catalog.transaction() as tx:
            owner = await tx.tenants.get(tenant)
            key = await tx.keys.get(owner.id, key_id)
            if await tx.keys.revoke(owner.id, key.id):
                await tx.audit.append(
                    actor=actor.id, action="key.revoke", target=key.id, tenant_id=owner.id
                )
            return await tx.keys.get(owner.id, key.id)

    async def _insert(
        self,
        tx: Transaction,
        tenant_id: TenantId,
        *,
        name: str,
        project_id: ProjectId,
        scopes: str,
        expires_at: int | None,
        rotated_from: str | None = None,
    ) -> NewKey:
        secret, prefix = new_api_key()
        key = await tx.keys.create(
            tenant_id,
            name=name,
            prefix=prefix,
            key_hash=self._secrets.key_hash(secret),
            project_id=project_id,
            scopes=scopes,
            expires_at=expires_at,
            rotated_from=rotated_from,
        )
        return NewKey(key, secret)


def works(key: ApiKey) -> bool:
    """Whether a key is neither revoked nor past its end."""
    return key.revoked_at is None and (key.expires_at is None or key.expires_at > now_us())


def key_state(key: ApiKey) -> str:
    """ "active", "expired" or "revoked"."""
    if key.revoked_at is not None:
        return "revoked"
    return "active" if works(key) else "expired"


async def _check_count(tx: Transaction, tenant_id: TenantId) -> None:
    if await tx.keys.count_live(tenant_id) >= KEYS_MAX:
        raise InvalidRequest(
            f"The tenant has {KEYS_MAX} keys that work; revoke one first.", param="tenant"
        )


def _check_name(name: str) -> None:
    if len(name) > NAME_CHARACTERS_MAX or "\x00" in name:
        raise InvalidRequest(
            f"A key's name has at most {NAME_CHARACTERS_MAX} characters.", param="name"
        )


def _end_of(expires_seconds: int | None) -> int | None:
    if expires_seconds is None:
        return None
    if not 1 <= expires_seconds <= LIFETIME_SECONDS_MAX:
        raise InvalidRequest(
            f"A key lives 1 to {LIFETIME_SECONDS_MAX} seconds.", param="expires_seconds"
        )
    return now_us() + expires_seconds * 1_000_000
