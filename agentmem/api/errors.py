"""From errors to HTTP: one shape everywhere, `{"error": {message, type, param, code}}`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from agentmem.api.objects import ErrorObject
from agentmem.errors import (
    AgentmemError,
    AuthenticationFailed,
    CatalogUnavailable,
    ContextOverflow,
    EngineFailed,
    IdempotencyConflict,
    InvalidRequest,
    LeaseLost,
    ModelNotFound,
    NodeUnavailable,
    NotDurable,
    NotFound,
    PermissionDenied,
    ProviderUnavailable,
    RoleMissing,
    ScopeMissing,
    SessionBusy,
    TenantSuspended,
    TooManyAttempts,
    TurnConflict,
    WorkerUnavailable,
)
from agentmem.telemetry import get_logger

_log = get_logger("agentmem.api")
# The type of a validation error, and the code of the answer: understood, and not done here.
UNSUPPORTED = "unsupported_parameter"
_PARAM_CHARACTERS_MAX = 200
_TAG_ERRORS = ("union_tag_invalid", "union_tag_not_found")
INTERNAL_MESSAGE = "Something went wrong on our side; the request id finds it in the logs."


@dataclass(frozen=True, slots=True)
class _Kind:
    """How one class of errors is shown. `retry_after` in seconds; `retry` is what SDKs obey:
    whether the same request may do better."""

    status: int
    type: str
    code: str
    retry_after: float | None = None
    retry: bool = False


_INVALID, _CONFLICT, _UNAVAILABLE, _PERMISSION = (
    "invalid_request_error",
    "conflict_error",
    "service_unavailable_error",
    "permission_error",
)
# The first class that fits, so subclasses come before their bases.
_KINDS: tuple[tuple[type[AgentmemError], _Kind], ...] = (
    (ContextOverflow, _Kind(400, _INVALID, "context_length_exceeded")),
    (ModelNotFound, _Kind(404, _INVALID, "model_not_found")),
    (InvalidRequest, _Kind(400, _INVALID, "invalid_value")),
    (AuthenticationFailed, _Kind(401, "authentication_error", "invalid_api_key")),
    (ScopeMissing, _Kind(403, _PERMISSION, "scope_missing")),
    (RoleMissing, _Kind(403, _PERMISSION, "role_missing")),
    (TenantSuspended, _Kind(403, _PERMISSION, "tenant_suspended")),
    (PermissionDenied, _Kind(403, _PERMISSION, "permission_denied")),
    (TooManyAttempts, _Kind(429, "rate_limit_error", "too_many_attempts", 1.0)),
    (NotFound, _Kind(404, "not_found_error", "not_found")),
    (SessionBusy, _Kind(409, _CONFLICT, "session_busy", 1.0, True)),
    (LeaseLost, _Kind(409, _CONFLICT, "lease_lost", 1.0, True)),
    (TurnConflict, _Kind(409, _CONFLICT, "turn_conflict")),
    (IdempotencyConflict, _Kind(409, _CONFLICT, "idempotency_conflict")),
    (NotDurable, _Kind(503, _UNAVAILABLE, "not_durable", 1.0, True)),
    (EngineFailed, _Kind(503, _UNAVAILABLE, "engine_failed", 5.0, True)),
    (WorkerUnavailable, _Kind(503, _UNAVAILABLE, "no_worker_ready", 5.0, True)),
    (NodeUnavailable, _Kind(503, _UNAVAILABLE, "node_unavailable", 2.0, True)),
    (ProviderUnavailable, _Kind(503, _UNAVAILABLE, "provider_unavailable", 5.0, True)),
    (CatalogUnavailable, _Kind(503, _UNAVAILABLE, "catalog_unavailable", 2.0, True)),
)
_INTERNAL = _Kind(500, "server_error", "internal_error", None, True)
# A response named in the body of a request, as OpenAI's API answers to it.
_PREVIOUS_RESPONSE = _Kind(400, _INVALID, "previous_response_not_found")
_PREVIOUS_RESPONSE_KIND = "previous_response"
_HTTP_CODES = {404: "unknown_route", 405: "method_not_allowed", 408: "request_timeout"}


def _kind(error: AgentmemError) -> _Kind:
    if isinstance(error, NotFound) and error.kind == _PREVIOUS_RESPONSE_KIND:
        return _PREVIOUS_RESPONSE
    return next((kind for cls, kind in _KINDS if isinstance(error, cls)), _INTERNAL)


def error_body(
    message: str, kind: str, *, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The one shape. Characters that JSON cannot carry (lone surrogates) are replaced."""
    safe = message.encode("utf-8", "replace").decode()
    named = None if param is None else param.encode("utf-8", "replace").decode()
    return {"error": {"message": safe, "type": kind, "param": named, "code": code}}


def describe_error(error: AgentmemError) -> dict[str, Any]:
    """The body for an error, also used for events of a stream."""
    kind = _kind(error)
    if kind is _INTERNAL:
        return error_body(INTERNAL_MESSAGE, kind.type, code=kind.code)
    message = f"{error.message} {error.hint}" if error.hint else error.message
    param = getattr(error, "param", None)
    code = kind.code
    if isinstance(error, NotFound):
        code = f"{error.kind.replace(' ', '_')}_not_found"
        if error.kind == _PREVIOUS_RESPONSE_KIND:
            message = f"No response with id {error.object_id!r} to go on after."
            param = "previous_response_id"
    elif isinstance(error, InvalidRequest) and error.code is not None:
        code = error.code
    return error_body(message, kind.type, param=param, code=code)


def error_response(error: AgentmemError) -> JSONResponse:
    """The reply for an error. `x-should-retry` says whether the same request may do better."""
    kind = _kind(error)
    if kind is _INTERNAL:
        _log.error("internal error", error=f"{type(error).__name__}: {error.message}")
    headers = {"X-Should-Retry": str(kind.retry).lower()}
    retry_after = getattr(error, "retry_after_seconds", kind.retry_after)
    if retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
        headers["Retry-After-Ms"] = str(max(1, round(retry_after * 1_000)))
    if kind.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(describe_error(error), kind.status, headers)


def internal_response() -> JSONResponse:
    """The reply to what nobody foresaw; the log has the traceback."""
    body = error_body(INTERNAL_MESSAGE, _INTERNAL.type, code=_INTERNAL.code)
    return JSONResponse(body, _INTERNAL.status, {"X-Should-Retry": "true"})


def too_large_response(limit: int) -> JSONResponse:
    """413: the body is over `limit` bytes."""
    message = f"The request body is larger than {limit} bytes."
    body = error_body(message, "invalid_request_error", code="request_too_large")
    return JSONResponse(body, 413, {"Connection": "close", "X-Should-Retry": "false"})


def slow_body_response(seconds: float) -> JSONResponse:
    """408: the body did not arrive in time."""
    message = f"The request body did not arrive within {seconds:g} seconds."
    body = error_body(message, "invalid_request_error", code=_HTTP_CODES[408])
    return JSONResponse(body, 408, {"Connection": "close", "X-Should-Retry": "true"})


def install_error_handlers(app: FastAPI, routers: Sequence[APIRouter]) -> None:
    """Makes every error of the app come out in the one shape. `routers` are all it consists of."""
    methods: dict[str, set[str]] = {}
    for route in (one for router in routers for one in router.routes):
        if isinstance(route, APIRoute):
            methods.setdefault(route.path_format, set()).update(route.methods or ())
    app.state.methods = methods
    app.add_exception_handler(AgentmemError, _on_agentmem_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)


async def _on_agentmem_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AgentmemError), "registered for this class"
    return error_response(error)


async def _on_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException), "registered for this class"
    status = error.status_code
    if status == 400:  # FastAPI could not parse the body (bad UTF-8, nested too deep, ...)
        message, code = "The request body is not valid JSON in UTF-8.", "invalid_json"
    else:
        message = {
            404: "There is no such route.",
            405: "This route does not take that method.",
        }.get(status, str(error.detail))
        code = _HTTP_CODES.get(status, "http_error")
    if status == 405 and request.headers.get("upgrade", "").lower() == "websocket":
        message = "WebSocket mode is not supported: send a POST with stream instead."
        code = UNSUPPORTED
    kind = "not_found_error" if status == 404 else "invalid_request_error"
    headers = {**(error.headers or {}), "X-Should-Retry": "false"}
    if status == 405 and (allowed := _allowed(request)):
        headers["Allow"] = ", ".join(allowed)
    return JSONResponse(error_body(message, kind, code=code), status, headers)


def _allowed(request: Request) -> list[str]:
    """All methods of the path: each is a route of its own, and the error knows only the first."""
    methods: dict[str, set[str]] = request.app.state.methods
    return sorted(methods.get(getattr(request.scope.get("route"), "path_format", ""), ()))


async def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError), "registered for this class"
    found = [(one, _location(one, error.body)) for one in error.errors()]
    # Where a field takes several shapes, the one that was meant is the one that fits furthest.
    first, location = max(found, key=lambda one: (one[0]["type"] == UNSUPPORTED, len(one[1])))
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        message = f"The request body is not valid JSON: {reason} at character {first['loc'][-1]}."
        return _invalid(message, None, "invalid_json")
    return _invalid(*_explained(first, _path(location), request.headers.get("content-type", "")))


def _explained(
    error: Mapping[str, Any], param: str, content_type: str
) -> tuple[str, str | None, str]:
    """Message, param and code of the first error of a body or a query."""
    if error["type"] == UNSUPPORTED:
        named: str = error.get("ctx", {}).get("param", param)
        return str(error["msg"]), named[:_PARAM_CHARACTERS_MAX], UNSUPPORTED
    if not param:
        if "json" not in content_type:
            return "Send the body as application/json.", None, "invalid_content_type"
        return "The request body must be a JSON object.", None, "invalid_type"
    kind, expected = error["type"], error.get("ctx", {}).get("expected_tags")
    if kind == "extra_forbidden":
        return f"Unknown field {param!r}.", param, "unknown_parameter"
    if kind == "missing" or (kind in _TAG_ERRORS and expected is None):
        return f"Missing field {param!r}.", param, "missing_required_parameter"
    reason = str(error["msg"]).removeprefix("Value error, ")
    if kind in _TAG_ERRORS:
        reason = f"it takes one of {expected}"
    return f"Invalid {param!r}: {reason}.", param, "invalid_value"


def _invalid(message: str, param: str | None, code: str) -> JSONResponse:
    body = error_body(message, "invalid_request_error", param=param, code=code)
    return JSONResponse(body, 400, {"X-Should-Retry": "false"})


def _location(error: Mapping[str, Any], body: Any) -> list[int | str]:
    """Where in the body (or query) an error is, without the names of shapes that were tried."""
    path: list[int | str] = []
    rest = list(error["loc"][1:])
    if error["loc"][0] != "body":
        return rest
    value = body
    for part in rest:
        try:
            value = value[part]
        except (LookupError, TypeError):
            continue
        path.append(part)
    if error["type"] == "missing":
        path.extend(rest[-1:])
    elif error["type"] in _TAG_ERRORS:
        discriminator = error.get("ctx", {}).get("discriminator", "")
        path.append(discriminator.strip("'") or "type")
    return path


def _path(location: Sequence[int | str]) -> str:
    """`messages[0].content` from ("messages", 0, "content"); cut where a caller's key is long."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path[:_PARAM_CHARACTERS_MAX]


def documented(texts: Mapping[int, str], *statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the document: which errors an operation answers with, in a surface's words."""
    return {s: {"model": ErrorObject, "description": texts[s]} for s in statuses}
