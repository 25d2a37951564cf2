"""Routes of sessions and their turns."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from agentmem.api import objects
from agentmem.api.auth import current_caller, current_tenant
from agentmem.api.errors import documented
from agentmem.api.retries import retry_key
from agentmem.api.schemas import HibernateBody, SessionCreateBody, SessionForkBody, TurnCreateBody
from agentmem.api.sse import STREAM_CONTENT
from agentmem.api.turns import stream_turn
from agentmem.api.usage import CACHE_HEADER, cache_header
from agentmem.api.waiting import nobody_there, results_or_disconnect
from agentmem.catalog.ids import is_id
from agentmem.core import TenantId, Tier
from agentmem.errors import InvalidRequest
from agentmem.sessions.requests import Caller, InSession, RetryKey
from agentmem.sessions.service import SessionsService
from agentmem.telemetry import bind_log_fields

LIST_MAX = 100


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    texts = {
        400: "The request cannot be carried out as sent; `param` names the field.",
        401: "The API key is missing or not valid.",
        404: "No such session, model or context of this tenant.",
        409: "The session is running another turn (see Retry-After), or `expected_turn` conflicts.",
        413: "The body is too large.",
        503: "No worker is ready, or it failed; see Retry-After.",
    }
    return documented(texts, 400, 401, *statuses)


CurrentCaller = Annotated[Caller, Depends(current_caller)]
Retry = Annotated[RetryKey | None, Depends(retry_key)]
Tenant = Annotated[TenantId, Depends(current_tenant)]
Limit = Annotated[int, Query(ge=1, le=LIST_MAX)]
After = Annotated[str | None, Query(description="Id of the last item already seen.")]
ProjectFilter = Annotated[
    str | None,
    Query(min_length=1, max_length=200, description="Of one project only: its id or name."),
]
Order = Annotated[Literal["asc", "desc"], Query(description="By creation.")]


def sessions_router(service: SessionsService) -> APIRouter:
    """All routes below /v1/sessions."""
    router = APIRouter(prefix="/v1/sessions", tags=["sessions"])
    _add_session_routes(router, service)
    _add_one_session_routes(router, service)
    _add_turn_routes(router, service)
    _add_memory_routes(router, service)
    return router


def _add_session_routes(router: APIRouter, service: SessionsService) -> None:
    @router.post(
        "",
        status_code=201,
        summary="Create a session",
        response_model=objects.SessionObject,
        responses=_errors(404, 413, 503),
    )
    async def create_session(
        caller: CurrentCaller, body: SessionCreateBody | None = None
    ) -> Response:
        body = body or SessionCreateBody()
        body.check()
        view = await service.create(
            caller.tenant_id,
            model=body.model,
            metadata=body.metadata,
            kv_retention_seconds=body.kv_retention_seconds,
            log_retention_seconds=body.log_retention_seconds,
            retention=body.retention,
            context_id=body.context,
            project_id=caller.project_id,
        )
        return JSONResponse(objects.session_object(view), 201)

    @router.get(
        "",
        summary="List sessions",
        response_model=objects.SessionList,
        responses=_errors(404),
    )
    async def list_sessions(
        tenant: Tenant,
        limit: Limit = 20,
        after: After = None,
        order: Order = "desc",
        project: ProjectFilter = None,
    ) -> Response:
        page = await service.list_sessions(
            tenant,
            after=cursor(after, "ses"),
            limit=limit,
            descending=order == "desc",
            project_id=project,
        )
        items = [objects.session_object(view) for view in page.items]
        return JSONResponse(objects.list_object(items, has_more=page.has_more))


def _add_one_session_routes(router: APIRouter, service: SessionsService) -> None:
    @router.get(
        "/{session_id}",
        summary="Get a session",
        response_model=objects.SessionObject,
        responses=_errors(404),
    )
    async def get_session(tenant: Tenant, session_id: str) -> Response:
        return JSONResponse(objects.session_object(await service.get(tenant, session_id)))

    @router.delete(
        "/{session_id}",
        summary="Delete a session, its turns and its pages",
        response_model=objects.DeletionObject,
        responses=_errors(404, 409),
    )
    async def delete_session(tenant: Tenant, session_id: str) -> Response:
        freed = await service.delete(tenant, session_id)
        return JSONResponse(objects.deletion_object(session_id, freed))

    @router.post(
        "/{session_id}/fork",
        status_code=201,
        summary="Fork a session at a turn",
        response_model=objects.SessionObject,
        responses=_errors(404, 413),
    )
    async def fork_session(
        caller: CurrentCaller, session_id: str, body: SessionForkBody | None = None
    ) -> Response:
        body = body or SessionForkBody()
        view = await service.fork(
            caller.tenant_id,
            session_id,
            turn=body.turn,
            metadata=body.metadata,
            project_id=caller.project_id,
        )
        return JSONResponse(objects.session_object(view), 201)


def _add_turn_routes(router: APIRouter, service: SessionsService) -> None:
    @router.post(
        "/{session_id}/turns",
        status_code=201,
        summary="Run a turn",
        description="Appends messages and a sampled reply to the session's log, or nothing at "
        "all. With `stream` the answer is a stream of events: `turn.created`, `turn.delta`, then "
        "`turn.completed` or `error`.",
        response_model=objects.TurnObject,
        responses={
            200: {"description": "The turn as it runs.", "content": STREAM_CONTENT},
            **_errors(404, 409, 413, 503),
        },
    )
    async def create_turn(
        request: Request,
        caller: CurrentCaller,
        retry: Retry,
        session_id: str,
        body: TurnCreateBody,
    ) -> Response:
        bind_log_fields(session_id=session_id)
        asked = body.request()
        listener = await service.begin(caller, InSession(session_id), asked, retry=retry)
        if body.stream:
            return stream_turn(listener, session_id, asked)
        turns = await results_or_disconnect(request, [listener])
        if turns is None:
            return nobody_there()
        headers = {CACHE_HEADER: cache_header(turns[0])}
        return JSONResponse(objects.turn_object(turns[0], session_id), 201, headers)

    @router.get(
        "/{session_id}/turns",
        summary="List a session's turns",
        response_model=objects.TurnList,
        responses=_errors(404),
    )
    async def list_turns(
        tenant: Tenant,
        session_id: str,
        limit: Limit = 20,
        after: After = None,
        order: Order = "asc",
    ) -> Response:
        turns, has_more = await service.list_turns(
            tenant,
            session_id,
            after=cursor(after, "turn"),
            limit=limit,
            descending=order == "desc",
        )
        items = [objects.turn_object(turn, session_id) for turn in turns]
        return JSONResponse(objects.list_object(items, has_more=has_more))


def _add_memory_routes(router: APIRouter, service: SessionsService) -> None:
    @router.post(
        "/{session_id}/hibernate",
        summary="Make all pages durable and let go of the GPU",
        response_model=objects.HibernationObject,
        responses=_errors(404, 409, 503),
    )
    async def hibernate_session(
        tenant: Tenant, session_id: str, body: HibernateBody | None = None
    ) -> Response:
        tier = Tier((body or HibernateBody()).tier)
        done = await service.hibernate(tenant, session_id, tier)
        return JSONResponse(objects.hibernation_object(session_id, done))

    @router.post(
        "/{session_id}/resume",
        summary="Warm the GPU ahead of the next turn",
        response_model=objects.ResumptionObject,
        responses=_errors(404, 409, 503),
    )
    async def resume_session(tenant: Tenant, session_id: str) -> Response:
        done = await service.resume(tenant, session_id)
        return JSONResponse(objects.resumption_object(session_id, done))

    @router.get(
        "/{session_id}/residency",
        summary="Where the session's pages lie",
        response_model=objects.ResidencyObject,
        responses=_errors(404, 503),
    )
    async def get_residency(tenant: Tenant, session_id: str) -> Response:
        found = await service.residency(tenant, session_id)
        return JSONResponse(objects.residency_object(session_id, found))


def cursor(after: str | None, prefix: str) -> str | None:
    """An `after` that could be an id of this kind. Raises InvalidRequest."""
    if after is not None and not is_id(after, prefix):
        raise InvalidRequest("It is not an id to go on after.", param="after")
    return after
