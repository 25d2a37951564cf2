"""Who is calling: `Authorization: Bearer am_…`, checked before a byte of the body is read."""

from __future__ import annotations

import hmac
import time

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from agentmem.api.errors import error_response
from agentmem.api.keys import key_prefix
from agentmem.catalog import Catalog
from agentmem.core import TenantId
from agentmem.errors import AgentmemError, AuthenticationFailed
from agentmem.sessions.requests import Caller
from agentmem.sessions.secrets import Secrets
from agentmem.telemetry import bind_log_fields

# A revoked key works for less than a second longer.
_CACHE_SECONDS = 0.9
_CACHED_MAX = 10_000
_PROTECTED = "/v1/"


class Authenticator:
    """Finds the caller behind an API key; remembers good keys for a moment."""

    def __init__(self, catalog: Catalog, secrets: Secrets) -> None:
        self._catalog = catalog
        self._secrets = secrets
        self._known: dict[bytes, tuple[Caller, float]] = {}

    async def caller(self, authorization: str | None) -> Caller:
        """Raises AuthenticationFailed, in the same words whatever is wrong with the key."""
        scheme, _, api_key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not api_key:
            raise AuthenticationFailed(
                "No API key was sent.", hint="Send the header: Authorization: Bearer am_..."
            )
        prefix = key_prefix(api_key)
        if prefix is None:
            raise AuthenticationFailed("The API key is not valid.")
        digest = self._secrets.key_hash(api_key)
        known = self._known.get(digest)
        if known is not None and known[1] > time.monotonic():
            return known[0]
        async with self._catalog.reading() as tx:
            found = await tx.keys.find_by_prefix(prefix)
        # An unknown prefix is compared too, so that time does not tell it from a wrong secret.
        expected = found.hash if found is not None else bytes(len(digest))
        matches = hmac.compare_digest(expected, digest)
        if found is None or not matches or found.revoked_at is not None:
            self._known.pop(digest, None)
            raise AuthenticationFailed("The API key is not valid.")
        if len(self._known) >= _CACHED_MAX:
            self._known.clear()
        caller = Caller(found.tenant_id, found.id)
        self._known[digest] = (caller, time.monotonic() + _CACHE_SECONDS)
        return caller


class AuthenticationMiddleware:
    """Answers 401 for everything below /v1/ that has no good key; else notes the caller."""

    def __init__(self, app: ASGIApp, authenticator: Authenticator) -> None:
        self._app = app
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and scope["path"].startswith(_PROTECTED):
            try:
                authorization = Headers(scope=scope).get("authorization")
                caller = await self._authenticator.caller(authorization)
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
