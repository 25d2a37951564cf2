"""Routes of contexts: beginnings that are computed once, for any number of sessions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.responses import Response

from agentmem.api import objects
from agentmem.api.auth import current_caller
from agentmem.api.chat.messages import conversation
from agentmem.api.chat.tools import toolbox
from agentmem.api.errors import documented
from agentmem.api.schemas import ContextCreateBody
from agentmem.api.sessions import After, Limit, Order, Tenant, cursor
from agentmem.plans.classes import RetentionName
from agentmem.sessions.contexts import ContextView, Document
from agentmem.sessions.messages import Framing
from agentmem.sessions.requests import Caller
from agentmem.sessions.service import SessionsService

CurrentCaller = Annotated[Caller, Depends(current_caller)]
_ERROR_TEXTS = {
    400: "The request cannot be carried out as sent; `param` names the field.",
    401: "The API key is missing or not valid.",
    404: "No such context or model.",
    409: "Something is just being done with it; see Retry-After.",
    413: "The body is too large.",
    503: "No worker is ready, or it failed; see Retry-After.",
}


class ContextObject(BaseModel):
    """A context. `tokens` is its length, `pages` its full pages, `durable_position` how many of
    its tokens are durable. Sessions that began with it keep what they share when it is gone."""

    id: str
    object: Literal["context"]
    name: str
    created_at: int
    expires_at: int = Field(description="Seconds since the epoch.")
    kv_expires_at: int
    model: str
    tokens: int
    pages: int
    durable_position: int
    retention: RetentionName | None
    metadata: dict[str, str]


class ContextList(BaseModel):
    """A part of the tenant's contexts."""

    object: Literal["list"]
    data: list[ContextObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ContextDeletionObject(BaseModel):
    """The context is gone; pages that sessions share stay with them."""

    id: str
    object: Literal["context.deleted"]
    deleted: Literal[True]
    pages_deleted: int
    bytes_deleted: int


def contexts_router(service: SessionsService) -> APIRouter:
    """All routes below /v1/contexts."""
    router = APIRouter(prefix="/v1/contexts", tags=["contexts"])
    _add_create(router, service)
    _add_others(router, service)
    return router


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return documented(_ERROR_TEXTS, 400, 401, *statuses)


def _add_create(router: APIRouter, service: SessionsService) -> None:
    @router.post(
        "",
        status_code=201,
        summary="Create a context",
        description="Computes messages, tools and documents once; answers when that is done. "
        "Sessions and requests that name it begin with it, and share its pages.",
        response_model=ContextObject,
        responses=_errors(404, 413, 503),
    )
    async def create_context(caller: CurrentCaller, body: ContextCreateBody) -> Response:
        body.check()
        view = await service.contexts.create(
            caller,
            model=body.model,
            name=body.name,
            framing=Framing(body.instructions, toolbox(body.tools, None).tools),
            messages=conversation(body.messages or ()),
            documents=[Document(one.text, one.title) for one in body.documents],
            retention=body.retention,
            metadata=body.metadata,
        )
        return JSONResponse(context_object(view), 201)


def _add_others(router: APIRouter, service: SessionsService) -> None:
    @router.get(
        "",
        summary="List contexts",
        response_model=ContextList,
        responses=_errors(),
    )
    async def list_contexts(
        tenant: Tenant, limit: Limit = 20, after: After = None, order: Order = "desc"
    ) -> Response:
        views, has_more = await service.contexts.list(
            tenant, after=cursor(after, "ctx"), limit=limit, descending=order == "desc"
        )
        items = [context_object(view) for view in views]
        return JSONResponse(objects.list_object(items, has_more=has_more))

    @router.get(
        "/{context_id}",
        summary="Get a context",
        response_model=ContextObject,
        responses=_errors(404),
    )
    async def get_context(tenant: Tenant, context_id: str) -> Response:
        return JSONResponse(context_object(await service.contexts.get(tenant, context_id)))

    @router.delete(
        "/{context_id}",
        summary="Delete a context; sessions that began with it keep what they share",
        response_model=ContextDeletionObject,
        responses=_errors(404, 409),
    )
    async def delete_context(tenant: Tenant, context_id: str) -> Response:
        freed = await service.contexts.delete(tenant, context_id)
        return JSONResponse(objects.deletion_object(context_id, freed, "context"))


def context_object(view: ContextView) -> dict[str, Any]:
    """See `ContextObject`."""
    session = view.session.session
    return {
        "id": view.record.id,
        "object": "context",
        "name": view.record.name,
        "created_at": view.record.created_at // 1_000_000,
        "expires_at": session.expires_at // 1_000_000,
        "kv_expires_at": objects.kv_expires_at(session),
        "model": session.model,
        "tokens": session.tokens,
        "pages": view.session.pages,
        "durable_position": session.durable_position,
        "retention": session.retention,
        "metadata": dict(view.record.metadata),
    }
