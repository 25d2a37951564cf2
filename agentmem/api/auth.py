"""Who is calling: `Authorization: Bearer am_…`, checked before a byte of the body is read."""

from __future__ import annotations

import hmac
import time
from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from agentmem.administration.apikeys import key_prefix
from agentmem.administration.keys import works
from agentmem.administration.scopes import scopes_of
from agentmem.administration.uses import KeyUses
from agentmem.api.errors import error_response
from agentmem.api.slowing import Slowing
from agentmem.catalog import Catalog
from agentmem.catalog.ids import default_project, now_us
from agentmem.catalog.records import ApiKey
from agentmem.core import TenantId
from agentmem.errors import (
    AgentmemError,
    AuthenticationFailed,
    TenantSuspended,
    TooManyAttempts,
)
from agentmem.sessions.requests import Caller
from agentmem.sessions.secrets import Secrets
from agentmem.telemetry import bind_log_fields

# A revoked key works for less than a second longer.
_CACHE_SECONDS = 0.9
_CACHED_MAX = 10_000
_ONCE_GOOD_SECONDS = 3_600.0
_PROTECTED = "/v1/"
_OPERATORS = "/v1/admin/"
_NO_ADDRESS = "local"


@dataclass(frozen=True, slots=True)
class _Known:
    """A key that was good: until when that is not asked again, and until when it counts for a key
    that is looked up whatever else comes from its address."""

    caller: Caller
    fresh_until: float
    good_until: float


class Authenticator:
    """Finds the caller behind an API key; remembers good keys for a moment."""

    def __init__(
        self,
        catalog: Catalog,
        secrets: Secrets,
        uses: KeyUses,
        slowing: Slowing | None = None,
    ) -> None:
        self._catalog = catalog
        self._secrets = secrets
        self._uses = uses
        self._slowing = slowing or Slowing()
        self._known: dict[bytes, _Known] = {}

    async def caller(self, authorization: str | None, address: str = _NO_ADDRESS) -> Caller:
        """Raises AuthenticationFailed, in the same words whatever is wrong with the key;
        TooManyAttempts for an address that sent too many bad ones; TenantSuspended."""
        scheme, _, api_key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not api_key:
            raise AuthenticationFailed(
                "No API key was sent.", hint="Send the header: Authorization: Bearer am_..."
            )
        prefix = key_prefix(api_key)
        digest = self._secrets.key_hash(api_key)
        known = self._known.get(digest)
        now = time.monotonic()
        if known is not None and known.fresh_until > now:
            self._uses.note(known.caller.api_key_id)
            return known.caller
        if known is None or known.good_until <= now:
            wait = self._slowing.wait_seconds(address)
            if wait > 0:
                raise TooManyAttempts(retry_after_seconds=wait)
        found = None if prefix is None else await self._find(prefix, digest)
        if found is None:
            self._known.pop(digest, None)
            self._slowing.note_bad(address)
            raise AuthenticationFailed("The API key is not valid.")
        key, suspended_at = found
        if suspended_at is not None:
            self._known.pop(digest, None)
            raise TenantSuspended
        return self._remember(key, digest)

    async def _find(self, prefix: str, digest: bytes) -> tuple[ApiKey, int | None] | None:
        """The key that works and has this digest, and since when its tenant is suspended."""
        async with self._catalog.reading() as tx:
            found = await tx.keys.find_by_prefix(prefix)
        # An unknown prefix is compared too, so that time does not tell it from a wrong secret.
        expected = found[0].hash if found is not None else bytes(len(digest))
        matches = hmac.compare_digest(expected, digest)
        if found is None or not matches or not works(found[0]):
            return None
        return found

    def _remember(self, key: ApiKey, digest: bytes) -> Caller:
        if len(self._known) >= _CACHED_MAX:
            self._known.clear()
        project_id = key.project_id or default_project(key.tenant_id)
        caller = Caller(key.tenant_id, key.id, project_id, scopes_of(key.scopes))
        fresh = _CACHE_SECONDS
        if key.expires_at is not None:
            fresh = min(fresh, (key.expires_at - now_us()) / 1e6)
        now = time.monotonic()
        self._known[digest] = _Known(caller, now + fresh, now + _ONCE_GOOD_SECONDS)
        self._uses.note(key.id)
        return caller


class AuthenticationMiddleware:
    """Answers 401 for everything below /v1/ that has no good key; else notes the caller."""

    def __init__(self, app: ASGIApp, authenticator: Authenticator) -> None:
        self._app = app
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        path = scope["path"] if scope["type"] == "http" else ""
        # What is for operators takes no API key: see `operators`.
        if path.startswith(_PROTECTED) and not path.startswith(_OPERATORS):
            try:
                authorization = Headers(scope=scope).get("authorization")
                client = scope.get("client")
                address = client[0] if client else _NO_ADDRESS
                caller = await self._authenticator.caller(authorization, address)
            except AgentmemError as error:
                await error_response(error)(scope, receive, send)
                return
            scope.setdefault("state", {})["caller"] = caller
            bind_log_fields(tenant_id=caller.tenant_id)
        await self._app(scope, receive, send)


# FastAPI calls a dependency that is no coroutine in a thread: two switches for an attribute.
async def current_caller(request: Request) -> Caller:
    """Dependency: who is asking, as the middleware found out."""
    caller: Caller = request.state.caller
    return caller


async def current_tenant(request: Request) -> TenantId:
    """Dependency: the tenant that is asking."""
    return (await current_caller(request)).tenant_id
