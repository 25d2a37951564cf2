"""A tenant's own administration: its keys and projects, with a key that has the scope `admin`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.responses import Response

from agentmem.administration.actors import key_actor
from agentmem.administration.keys import (
    KEYS_MAX,
    LIFETIME_SECONDS_MAX,
    OVERLAP_SECONDS_DEFAULT,
    OVERLAP_SECONDS_MAX,
    KeysService,
    NewKey,
    key_state,
)
from agentmem.administration.scopes import SCOPES
from agentmem.administration.tenants import TenantsService
from agentmem.api.auth import current_caller
from agentmem.api.errors import documented
from agentmem.api.fields import Body, Text
from agentmem.api.objects import list_object
from agentmem.catalog.ids import default_project
from agentmem.catalog.records import ApiKey, Project
from agentmem.sessions.requests import Caller

_US = 1_000_000
CurrentCaller = Annotated[Caller, Depends(current_caller)]
ScopeName = Literal["inference", "sessions:read", "billing:read", "admin"]
Name = Annotated[Text, Field(min_length=1, max_length=200)]
_Lifetime = Annotated[
    int | None,
    Field(ge=1, le=LIFETIME_SECONDS_MAX, description="It ends by itself; null: it does not."),
]


class KeyObject(BaseModel):
    """An API key, of which only the beginning is known."""

    id: str
    object: Literal["key"]
    name: str
    prefix: str = Field(description="What the key begins with.")
    project: str
    scopes: list[str]
    state: Literal["active", "expired", "revoked"]
    created_at: int = Field(description="Seconds since the epoch, as all times.")
    expires_at: int | None
    revoked_at: int | None
    last_used_at: int | None = Field(description="Up to a minute and a half behind.")
    rotated_from: str | None = Field(description="The key that it took over from.")


class NewKeyObject(KeyObject):
    """A key that was just made: the only time that `key` is shown."""

    key: str


class KeyList(BaseModel):
    """A part of the tenant's keys, oldest first."""

    object: Literal["list"]
    data: list[KeyObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ProjectObject(BaseModel):
    """A project."""

    id: str
    object: Literal["project"]
    name: str
    created_at: int


class ProjectList(BaseModel):
    """All of the tenant's projects, oldest first."""

    object: Literal["list"]
    data: list[ProjectObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class KeyCreateBody(Body):
    """A key to make."""

    name: Annotated[Text, Field(max_length=200)] = ""
    project: Name | None = Field(None, description="Its id or name; null: the default one.")
    scopes: Annotated[list[ScopeName], Field(min_length=1, max_length=len(SCOPES))] | None = Field(
        None, description="Null: inference and sessions:read."
    )
    expires_seconds: _Lifetime = None


class KeyRotateBody(Body):
    """How a key is replaced."""

    overlap_seconds: Annotated[int, Field(ge=0, le=OVERLAP_SECONDS_MAX)] = Field(
        OVERLAP_SECONDS_DEFAULT, description="How much longer the old key works."
    )
    expires_seconds: _Lifetime = None


class ProjectCreateBody(Body):
    """A project to make."""

    name: Name


def key_object(key: ApiKey) -> dict[str, Any]:
    """See `KeyObject`."""
    return {
        "id": key.id,
        "object": "key",
        "name": key.name,
        "prefix": key.prefix,
        "project": key.project_id or default_project(key.tenant_id),
        "scopes": key.scopes.split(),
        "state": key_state(key),
        "created_at": key.created_at // _US,
        "expires_at": _seconds(key.expires_at),
        "revoked_at": _seconds(key.revoked_at),
        "last_used_at": _seconds(key.last_used_at),
        "rotated_from": key.rotated_from,
    }


def new_key_object(made: NewKey) -> dict[str, Any]:
    """See `NewKeyObject`."""
    return {**key_object(made.key), "key": made.secret}


def project_object(project: Project) -> dict[str, Any]:
    """See `ProjectObject`."""
    return {
        "id": project.id,
        "object": "project",
        "name": project.name,
        "created_at": project.created_at // _US,
    }


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Documents these answers, besides 400, 401 and 403."""
    texts = {
        400: "The request cannot be carried out as sent; `param` names the field.",
        401: "The credentials are missing or not valid.",
        403: "The key lacks the scope, or the operator the role, that this needs.",
        404: "There is no such object.",
        413: "The body is too large.",
        429: "Too many wrong credentials; see Retry-After.",
        503: "The catalog does not answer; see Retry-After.",
    }
    return documented(texts, 400, 401, 403, *statuses)


def tenancy_router(keys: KeysService, tenants: TenantsService) -> APIRouter:
    """/v1/keys and /v1/projects."""
    router = APIRouter(prefix="/v1", tags=["administration of a tenant"])
    _add_keys(router, keys)
    _add_projects(router, tenants)
    return router


def _add_keys(router: APIRouter, keys: KeysService) -> None:
    @router.get("/keys", summary="List keys", response_model=KeyList, responses=errors(404))
    async def list_keys(
        caller: CurrentCaller,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        after: Annotated[str | None, Query(max_length=100)] = None,
    ) -> Response:
        found = await keys.list(caller.tenant_id, after=after, limit=limit + 1)
        shown = [key_object(key) for key in found[:limit]]
        return JSONResponse(list_object(shown, has_more=len(found) > limit))

    @router.post(
        "/keys",
        status_code=201,
        summary="Create a key",
        description=f"The key is shown this once. A tenant has at most {KEYS_MAX} that work.",
        response_model=NewKeyObject,
        responses=errors(404, 413),
    )
    async def create_key(caller: CurrentCaller, body: KeyCreateBody | None = None) -> Response:
        body = body or KeyCreateBody()
        made = await keys.create(
            key_actor(caller.api_key_id),
            caller.tenant_id,
            name=body.name,
            project=body.project,
            scopes=body.scopes,
            expires_seconds=body.expires_seconds,
        )
        return JSONResponse(new_key_object(made), 201)

    @router.post(
        "/keys/{key_id}/rotate",
        status_code=201,
        summary="Replace a key by a new one, with an overlap",
        response_model=NewKeyObject,
        responses=errors(404, 413),
    )
    async def rotate_key(
        caller: CurrentCaller, key_id: str, body: KeyRotateBody | None = None
    ) -> Response:
        body = body or KeyRotateBody()
        made = await keys.rotate(
            key_actor(caller.api_key_id),
            caller.tenant_id,
            key_id,
            overlap_seconds=body.overlap_seconds,
            expires_seconds=body.expires_seconds,
        )
        return JSONResponse(new_key_object(made), 201)

    @router.delete(
        "/keys/{key_id}",
        summary="Revoke a key",
        description="It works nowhere any more within a second.",
        response_model=KeyObject,
        responses=errors(404),
    )
    async def revoke_key(caller: CurrentCaller, key_id: str) -> Response:
        key = await keys.revoke(key_actor(caller.api_key_id), caller.tenant_id, key_id)
        return JSONResponse(key_object(key))


def _add_projects(router: APIRouter, tenants: TenantsService) -> None:
    @router.get("/projects", summary="List projects", response_model=ProjectList,
                responses=errors())  # fmt: skip
    async def list_projects(caller: CurrentCaller) -> Response:
        found = await tenants.projects(caller.tenant_id)
        return JSONResponse(list_object([project_object(one) for one in found], has_more=False))

    @router.post(
        "/projects",
        status_code=201,
        summary="Create a project",
        response_model=ProjectObject,
        responses=errors(413),
    )
    async def create_project(caller: CurrentCaller, body: ProjectCreateBody) -> Response:
        actor = key_actor(caller.api_key_id)
        made = await tenants.create_project(actor, caller.tenant_id, body.name)
        return JSONResponse(project_object(made), 201)


def _seconds(at_us: int | None) -> int | None:
    return None if at_us is None else at_us // _US
