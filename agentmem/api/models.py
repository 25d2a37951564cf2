"""Models: what is served, and by which other names."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.responses import Response

from agentmem.api.auth import current_tenant
from agentmem.api.errors import UNSUPPORTED
from agentmem.api.objects import ErrorObject
from agentmem.api.surfaces import Surface, implemented, refused
from agentmem.core import TenantId
from agentmem.errors import InvalidRequest, ModelNotFound
from agentmem.sessions.service import SessionsService

Tenant = Annotated[TenantId, Depends(current_tenant)]
_NAME_CHARACTERS_MAX = 200
_NO_DELETE = "Models are the operator's: they cannot be deleted here."
_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorObject, "description": "The name is none."},
    401: {"model": ErrorObject, "description": "The API key is missing or not valid."},
    404: {"model": ErrorObject, "description": "No such model."},
}

MODEL_SURFACES = (
    Surface("models.list", "GET /v1/models", ()),
    Surface(
        "models.retrieve",
        "GET /v1/models/{id}",
        (implemented("model", "a served model, or an alias of one"),),
    ),
    Surface("models.delete", "DELETE /v1/models/{id}", (refused("model", _NO_DELETE),)),
)


class ModelObject(BaseModel):
    """A model. `aliases` are patterns (`*` stands for anything) of other names for it."""

    id: str
    object: Literal["model"]
    created: int = Field(description="Seconds since the epoch: when it was first served.")
    owned_by: str
    aliases: list[str]


class ModelList(BaseModel):
    """All models that are served."""

    object: Literal["list"]
    data: list[ModelObject]


def models_router(service: SessionsService) -> APIRouter:
    """All routes below /v1/models."""
    router = APIRouter(prefix="/v1/models", tags=["models"])

    @router.get("", summary="List models", response_model=ModelList, responses=_only(401))
    async def list_models(tenant: Tenant) -> Response:
        return JSONResponse({"object": "list", "data": await _objects(service, tenant)})

    @router.get(
        "/{model:path}",
        summary="Get a model, by its name or an alias",
        response_model=ModelObject,
        responses=_only(400, 401, 404),
    )
    async def get_model(tenant: Tenant, model: str) -> Response:
        if "\x00" in model or not 0 < len(model) <= _NAME_CHARACTERS_MAX:
            raise InvalidRequest(
                f"A model's name has 1 to {_NAME_CHARACTERS_MAX} characters.", param="model"
            )
        name = await service.resolve_model(tenant, model)
        for found in await _objects(service, tenant):
            if found["id"] == name:
                return JSONResponse(found)
        raise ModelNotFound(model)

    @router.delete(
        "/{model:path}",
        summary="Refused: models are the operator's",
        responses=_only(400, 401, 404),
        response_model=None,
    )
    async def delete_model(model: str) -> Response:
        raise InvalidRequest(_NO_DELETE, param="model", code=UNSUPPORTED)

    return router


async def _objects(service: SessionsService, tenant_id: TenantId) -> list[dict[str, Any]]:
    return [
        {
            "id": served.id,
            "object": "model",
            "created": served.created,
            "owned_by": served.owned_by,
            "aliases": list(served.aliases),
        }
        for served in await service.models(tenant_id)
    ]


def _only(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: _ERRORS[status] for status in statuses}
