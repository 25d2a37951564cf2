"""Who of the provider asks: a browser's cookie, or a bearer token; and what their role takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from agentmem.administration.signin import OperatorCaller, SignedIn, SignInService
from agentmem.api.errors import error_response
from agentmem.api.roles import PUBLIC_ROUTES, ROUTE_ROLES
from agentmem.api.slowing import Slowing
from agentmem.catalog.ids import now_us
from agentmem.errors import (
    AgentmemError,
    AuthenticationFailed,
    PermissionDenied,
    RoleMissing,
    TooManyAttempts,
)
from agentmem.telemetry import bind_log_fields

ADMIN_PREFIX = "/v1/admin/"
CSRF_HEADER = "x-csrf-token"
OIDC_COOKIE = "agentmem_oidc"
_OIDC_PATH = "/v1/admin/oidc"
_COOKIE = "agentmem_operator"
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_NO_ADDRESS = "local"


@dataclass(frozen=True, slots=True)
class Cookies:
    """Cookies of the address that operators' browsers reach the gateway by.

    Over https the name begins with `__Host-`: no page of another host or path can set it.
    """

    url: str

    @property
    def secure(self) -> bool:
        """Whether browsers may send them over TLS only."""
        return urlsplit(self.url).scheme == "https"

    @property
    def name(self) -> str:
        """The name of the cookie of a browser that is signed in."""
        return f"__Host-{_COOKIE}" if self.secure else _COOKIE

    def set_signed_in(self, response: Response, signed_in: SignedIn) -> None:
        """Signs the browser in."""
        response.set_cookie(
            self.name,
            signed_in.token,
            max_age=max(0, (signed_in.expires_at - now_us()) // 1_000_000),
            path="/",
            secure=self.secure,
            httponly=True,
            samesite="lax",
        )

    def clear(self, response: Response) -> None:
        """Signs the browser out."""
        response.delete_cookie(
            self.name, path="/", secure=self.secure, httponly=True, samesite="lax"
        )

    def set_state(self, response: Response, state: str, seconds: int) -> None:
        """Ties a sign-in that was begun to this browser; an empty one unties it."""
        response.set_cookie(
            OIDC_COOKIE,
            state,
            max_age=seconds,
            path=_OIDC_PATH,
            secure=self.secure,
            httponly=True,
            samesite="lax",
        )


class OperatorMiddleware:
    """Answers 401 for everything below /v1/admin/ that no operator asks for, but for signing in;
    and 403 for what another site's page had a browser send."""

    def __init__(self, app: ASGIApp, sign_ins: SignInService, cookies: Cookies) -> None:
        self._app = app
        self._sign_ins = sign_ins
        self._cookies = cookies
        self._slowing = Slowing()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and scope["path"].startswith(ADMIN_PREFIX):
            try:
                await self._check(scope)
            except AgentmemError as error:
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        unsafe = scope["method"] not in _SAFE_METHODS
        if unsafe and not self._of_this_site(headers):
            raise PermissionDenied("This was sent by a page of another site.")
        if (scope["method"], scope["path"]) in PUBLIC_ROUTES:
            return
        caller = await self._caller(scope, headers)
        if unsafe and not self._sign_ins.shows_csrf(caller, headers.get(CSRF_HEADER)):
            raise PermissionDenied(
                f"The header {CSRF_HEADER} is missing or wrong.",
                hint="Send the csrf_token that signing in and /v1/admin/me answer with.",
            )
        scope.setdefault("state", {})["operator"] = caller
        bind_log_fields(operator_id=caller.id)

    async def _caller(self, scope: Scope, headers: Headers) -> OperatorCaller:
        client = scope.get("client")
        address = client[0] if client else _NO_ADDRESS
        scheme, _, token = headers.get("authorization", "").partition(" ")
        cookie = cookie_parser(headers.get("cookie", "")).get(self._cookies.name, "")
        wait = self._slowing.wait_seconds(address)
        if wait > 0:
            raise TooManyAttempts(retry_after_seconds=wait)
        try:
            if scheme.lower() == "bearer":
                return await self._sign_ins.by_bearer(token)
            return await self._sign_ins.by_cookie(cookie)
        except AuthenticationFailed:
            # A browser whose time is over comes with its old cookie: that guesses nothing.
            if scheme.lower() == "bearer":
                self._slowing.note_bad(address)
            raise

    def _of_this_site(self, headers: Headers) -> bool:
        """Browsers say which site's page sends; what is no browser says nothing."""
        origin = headers.get("origin")
        if origin is None:
            return headers.get("sec-fetch-site", "none") in ("none", "same-origin")
        told = urlsplit(origin)
        own = urlsplit(self._cookies.url)
        if (told.scheme, told.netloc) == (own.scheme, own.netloc):
            return True
        return not self._cookies.secure and told.netloc == headers.get("host")


async def current_operator(request: Request) -> OperatorCaller:
    """Dependency: the operator who is asking, as the middleware found out."""
    caller: OperatorCaller = request.state.operator
    return caller


async def check_role(request: Request) -> None:
    """Dependency of every route of the admin API that is not public. A route that is not in the
    table is nobody's. Raises RoleMissing."""
    caller = await current_operator(request)
    roles = ROUTE_ROLES.get((request.method, request.scope["route"].path_format), frozenset())
    if caller.role not in roles:
        raise RoleMissing(caller.role, tuple(sorted(roles)) or ("a role that there is not",))


CurrentOperator = Annotated[OperatorCaller, Depends(current_operator)]
