"""Signing in, and the provider's people: below /v1/admin."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, RedirectResponse
from pydantic import BaseModel, Field
from starlette.responses import Response

from agentmem.administration.oidc import FLOW_SECONDS, OidcService
from agentmem.administration.operators import (
    TOKEN_SECONDS_DEFAULT,
    TOKEN_SECONDS_MAX,
    OperatorsService,
)
from agentmem.administration.roles import RoleName
from agentmem.administration.signin import OperatorCaller, SignInService
from agentmem.api.fields import Body, Text
from agentmem.api.objects import list_object
from agentmem.api.operators import OIDC_COOKIE, Cookies, CurrentOperator, check_role
from agentmem.api.slowing import network_of
from agentmem.api.tenancy import errors
from agentmem.catalog.operators import Operator, OperatorToken
from agentmem.errors import AuthenticationFailed, NotFound

_US = 1_000_000
_Email = Annotated[Text, Field(min_length=3, max_length=200)]
_Password = Annotated[Text, Field(min_length=1, max_length=200)]
_HOME = "/v1/admin/me"


class OperatorObject(BaseModel):
    """A person of the provider."""

    id: str
    object: Literal["operator"]
    email: str
    role: RoleName
    state: Literal["active", "disabled"]
    password: bool = Field(description="Whether a password is set.")
    oidc: bool = Field(description="Whether an identity of the provider is tied to it.")
    created_at: int = Field(description="Seconds since the epoch, as all times.")


class OperatorList(BaseModel):
    """All operators, oldest first."""

    object: Literal["list"]
    data: list[OperatorObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class MeObject(BaseModel):
    """Who is signed in. A browser shows `csrf_token` in the header X-CSRF-Token with whatever
    changes something; null: a bearer token, which needs none."""

    id: str
    object: Literal["operator.me"]
    email: str
    role: RoleName
    csrf_token: str | None


class TokenObject(BaseModel):
    """An operator's bearer token, of which only the beginning is known."""

    id: str
    object: Literal["operator.token"]
    name: str
    prefix: str
    created_at: int
    expires_at: int
    revoked_at: int | None
    last_used_at: int | None


class NewTokenObject(TokenObject):
    """A token that was just made: the only time that `token` is shown."""

    token: str


class TokenList(BaseModel):
    """All of the operator's tokens, oldest first."""

    object: Literal["list"]
    data: list[TokenObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class SignInBody(Body):
    """An address and its password."""

    email: _Email
    password: _Password


class TokenCreateBody(Body):
    """A token to make."""

    name: Annotated[Text, Field(max_length=200)] = ""
    expires_seconds: Annotated[int, Field(ge=1, le=TOKEN_SECONDS_MAX)] = TOKEN_SECONDS_DEFAULT


class OperatorCreateBody(Body):
    """An operator to make; without a password one who signs in by OIDC."""

    email: _Email
    role: RoleName
    password: _Password | None = None


class OperatorChangeBody(Body):
    """What to change; null: leave it."""

    role: RoleName | None = None
    disabled: bool | None = None


def operator_object(operator: Operator) -> dict[str, Any]:
    """See `OperatorObject`."""
    return {
        "id": operator.id,
        "object": "operator",
        "email": operator.email,
        "role": operator.role,
        "state": "active" if operator.disabled_at is None else "disabled",
        "password": operator.password_hash is not None,
        "oidc": operator.subject is not None,
        "created_at": operator.created_at // _US,
    }


def token_object(token: OperatorToken) -> dict[str, Any]:
    """See `TokenObject`."""
    return {
        "id": token.id,
        "object": "operator.token",
        "name": token.name,
        "prefix": token.prefix,
        "created_at": token.created_at // _US,
        "expires_at": token.expires_at // _US,
        "revoked_at": None if token.revoked_at is None else token.revoked_at // _US,
        "last_used_at": None if token.last_used_at is None else token.last_used_at // _US,
    }


def _me(caller: OperatorCaller) -> dict[str, Any]:
    return {
        "id": caller.id,
        "object": "operator.me",
        "email": caller.email,
        "role": caller.role,
        "csrf_token": caller.csrf_token,
    }


def people_routers(
    operators: OperatorsService,
    sign_ins: SignInService,
    oidc: OidcService | None,
    cookies: Cookies,
) -> tuple[APIRouter, APIRouter]:
    """Signing in; and for those who are: signing out, tokens, operators."""
    router = APIRouter(prefix="/v1/admin", tags=["operators"])
    signed_in = APIRouter(
        prefix="/v1/admin", tags=["operators"], dependencies=[Depends(check_role)]
    )
    _add_sign_in(router, sign_ins, cookies)
    _add_oidc(router, oidc, cookies)
    _add_sign_out(signed_in, sign_ins, cookies)
    _add_tokens(signed_in, operators)
    _add_operators(signed_in, operators)
    return router, signed_in


def _add_sign_in(router: APIRouter, sign_ins: SignInService, cookies: Cookies) -> None:
    @router.post(
        "/sign-in",
        summary="Sign a browser in by password",
        response_model=MeObject,
        responses=errors(413, 429, 503),
    )
    async def sign_in(request: Request, body: SignInBody) -> Response:
        address = request.client.host if request.client else ""
        done = await sign_ins.by_password(body.email, body.password, network=network_of(address))
        response = JSONResponse(_me(done.operator))
        cookies.set_signed_in(response, done)
        return response


def _add_oidc(router: APIRouter, oidc: OidcService | None, cookies: Cookies) -> None:
    def provider() -> OidcService:
        if oidc is None:
            raise NotFound("provider", "oidc")
        return oidc

    @router.get(
        "/oidc/start",
        status_code=303,
        summary="Sign a browser in by OpenID Connect: off to the provider",
        response_class=RedirectResponse,
        responses=errors(404, 429, 503),
    )
    async def start() -> Response:
        begun = await provider().begin()
        response = RedirectResponse(begun.url, 303, {"cache-control": "no-store"})
        cookies.set_state(response, begun.state, int(FLOW_SECONDS))
        return response

    @router.get(
        "/oidc/callback",
        status_code=303,
        summary="Where the provider sends the browser back to",
        response_class=RedirectResponse,
        responses=errors(404, 503),
    )
    async def callback(
        request: Request,
        state: Annotated[str, Query(max_length=4_096)] = "",
        code: Annotated[str, Query(max_length=4_096)] = "",
    ) -> Response:
        service = provider()
        browser_state = request.cookies.get(OIDC_COOKIE, "")
        if not state or not code or not browser_state:
            raise AuthenticationFailed("This sign-in was refused.", hint="Begin it anew.")
        done = await service.finish(state=state, code=code, browser_state=browser_state)
        response = RedirectResponse(_HOME, 303, {"cache-control": "no-store"})
        cookies.set_signed_in(response, done)
        cookies.set_state(response, "", 0)
        return response


def _add_sign_out(router: APIRouter, sign_ins: SignInService, cookies: Cookies) -> None:
    @router.post("/sign-out", status_code=204, summary="Sign this browser out", responses=errors())
    async def sign_out(request: Request, _caller: CurrentOperator) -> Response:
        await sign_ins.sign_out(request.cookies.get(cookies.name, ""))
        response = Response(status_code=204)
        cookies.clear(response)
        return response

    @router.get("/me", summary="Who is signed in", response_model=MeObject, responses=errors())
    async def me(caller: CurrentOperator) -> Response:
        return JSONResponse(_me(caller), headers={"cache-control": "no-store"})


def _add_tokens(router: APIRouter, operators: OperatorsService) -> None:
    @router.get(
        "/tokens", summary="List one's own tokens", response_model=TokenList, responses=errors()
    )
    async def list_tokens(caller: CurrentOperator) -> Response:
        found = [token_object(token) for token in await operators.tokens(caller.id)]
        return JSONResponse(list_object(found, has_more=False))

    @router.post(
        "/tokens",
        status_code=201,
        summary="Create a bearer token for scripts",
        description="It may do what its operator may, and is shown this once.",
        response_model=NewTokenObject,
        responses=errors(413),
    )
    async def create_token(
        caller: CurrentOperator, body: TokenCreateBody | None = None
    ) -> Response:
        body = body or TokenCreateBody()
        made = await operators.create_token(
            caller.actor, caller.id, name=body.name, expires_seconds=body.expires_seconds
        )
        return JSONResponse({**token_object(made.token), "token": made.secret}, 201)

    @router.delete(
        "/tokens/{token_id}",
        status_code=204,
        summary="Revoke one of one's own tokens",
        responses=errors(404),
    )
    async def revoke_token(caller: CurrentOperator, token_id: str) -> Response:
        await operators.revoke_token(caller.actor, caller.id, token_id)
        return Response(status_code=204)


def _add_operators(router: APIRouter, operators: OperatorsService) -> None:
    @router.get(
        "/operators", summary="List operators", response_model=OperatorList, responses=errors()
    )
    async def list_operators(_caller: CurrentOperator) -> Response:
        found = [operator_object(one) for one in await operators.list()]
        return JSONResponse(list_object(found, has_more=False))

    @router.post(
        "/operators",
        status_code=201,
        summary="Create an operator",
        response_model=OperatorObject,
        responses=errors(413),
    )
    async def create_operator(caller: CurrentOperator, body: OperatorCreateBody) -> Response:
        made = await operators.create(caller.actor, body.email, body.role, password=body.password)
        return JSONResponse(operator_object(made), 201)

    @router.patch(
        "/operators/{operator_id}",
        summary="Change an operator's role, or let it in no more",
        response_model=OperatorObject,
        responses=errors(404, 413),
    )
    async def change_operator(
        caller: CurrentOperator, operator_id: str, body: OperatorChangeBody
    ) -> Response:
        changed = await operators.get(operator_id)
        if body.role is not None:
            changed = await operators.set_role(caller.actor, operator_id, body.role)
        if body.disabled is not None:
            changed = await operators.disable(caller.actor, operator_id, disabled=body.disabled)
        return JSONResponse(operator_object(changed))
