"""The FastAPI application: routes and middleware around a sessions service."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer

from agentmem import __version__
from agentmem.administration.services import Administration
from agentmem.api.admin_people import people_routers
from agentmem.api.auth import AuthenticationMiddleware, Authenticator
from agentmem.api.chat.routes import chat_router
from agentmem.api.contexts import contexts_router
from agentmem.api.conversations import conversations_router
from agentmem.api.errors import install_error_handlers
from agentmem.api.health import Check, health_router
from agentmem.api.middleware import BodyMiddleware, EdgeMiddleware
from agentmem.api.models import models_router
from agentmem.api.objects import ErrorObject
from agentmem.api.operators import Cookies, OperatorMiddleware
from agentmem.api.responses.routes import responses_router
from agentmem.api.scopes import check_scope
from agentmem.api.sessions import sessions_router
from agentmem.api.tenancy import tenancy_router
from agentmem.sessions.conversations import ConversationsService
from agentmem.sessions.nodestate import NodeState
from agentmem.sessions.responses import ResponsesService
from agentmem.sessions.service import SessionsService
from agentmem.telemetry import Metrics

_SLOWED = "Too much was asked in too short a time; see Retry-After."
_DESCRIPTION = """
Sessions whose KV cache survives: an agent's conversation hibernates, and comes back bit-exact.

Send `Authorization: Bearer am_...` with every request below `/v1`; what is below `/v1/admin` is for
the provider's operators, who sign in or send `Bearer amo_...`. Every error has the shape
`{"error": {"message", "type", "param", "code"}}`, every reply an `x-request-id`.
"""


Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_application(
    service: SessionsService,
    authenticator: Authenticator,
    metrics: Metrics,
    checks: Mapping[str, Check],
    node: NodeState,
    *,
    administration: Administration,
    request_bytes_max: int,
    request_seconds_max: float,
    lifespan: Lifespan,
) -> FastAPI:
    """Builds the application; nothing runs before its lifespan begins."""
    app = FastAPI(
        title="agentmem",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        responses={429: {"model": ErrorObject, "description": _SLOWED}},
    )
    # The first is for the document only: the middleware has checked the key already.
    documented = [
        Depends(HTTPBearer(auto_error=False, description="An API key: am_...")),
        Depends(check_scope),
    ]
    responses = ResponsesService(service)
    conversations = ConversationsService(service, responses.openings)
    routers = [
        chat_router(service),
        models_router(service),
        sessions_router(service),
        contexts_router(service),
        responses_router(service, responses),
        conversations_router(conversations),
        tenancy_router(administration.keys, administration.tenants),
    ]
    for router in routers:
        app.include_router(router, dependencies=documented)
    cookies = Cookies(administration.settings.url)
    admin_routers = people_routers(
        administration.operators, administration.sign_ins, administration.oidc, cookies
    )
    bearer = HTTPBearer(auto_error=False, scheme_name="Operator", description="amo_...")
    for router in admin_routers:
        app.include_router(router, dependencies=[Depends(bearer)])
    operations = health_router(metrics, checks, node)
    app.include_router(operations)
    install_error_handlers(app, [*routers, *admin_routers, operations])
    # The last one added is the outermost: ids for all replies, then keys, then bodies.
    app.add_middleware(BodyMiddleware, bytes_max=request_bytes_max, seconds_max=request_seconds_max)
    app.add_middleware(OperatorMiddleware, sign_ins=administration.sign_ins, cookies=cookies)
    app.add_middleware(AuthenticationMiddleware, authenticator=authenticator)
    app.add_middleware(EdgeMiddleware, metrics=metrics)
    return app
