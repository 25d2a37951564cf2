"""Liveness, readiness and metrics. No key needed, and nothing of any tenant in them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from agentmem.errors import AgentmemError
from agentmem.sessions.nodestate import NodeState
from agentmem.telemetry import Metrics

Check = Callable[[], Awaitable[None]]


def health_router(metrics: Metrics, checks: Mapping[str, Check], node: NodeState) -> APIRouter:
    """`checks` by the name of the part: each returns when it is ready, raises why it is not. Turns
    need all of them; without the node agent they are only slower."""
    router = APIRouter(tags=["operations"])

    @router.get("/healthz", summary="Whether the gateway runs")
    async def healthz() -> Response:
        return JSONResponse({"status": "ok"})

    @router.get(
        "/readyz",
        summary="Whether turns can run, if not, which part is not ready, and what is degraded",
        responses={503: {"description": "A part is not ready; the body says which, and why."}},
    )
    async def readyz() -> Response:
        parts = {}
        for name, check in checks.items():
            try:
                await check()
                parts[name] = "ready"
            except AgentmemError as error:
                parts[name] = error.message
        ready = all(state == "ready" for state in parts.values())
        await node.refresh()
        parts["node"] = node.silence or "ready"
        degraded = dict(node.degraded)
        status = "not ready" if not ready else "degraded" if degraded else "ready"
        body = {"status": status, "parts": parts, "degraded": degraded}
        return JSONResponse(body, 200 if ready else 503, {} if ready else {"Retry-After": "1"})

    @router.get(
        "/metrics",
        summary="Prometheus metrics",
        response_class=Response,
        responses={200: {"content": {CONTENT_TYPE_LATEST: {"schema": {"type": "string"}}}}},
    )
    async def get_metrics() -> Response:
        await node.refresh()
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router
