"""Routes of conversations and their items."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.responses import Response

from agentmem.api.fields import Body, Metadata
from agentmem.api.responses.items import InputItem, stored_items
from agentmem.api.responses.objects import ItemList
from agentmem.api.responses.routes import (
    After,
    CurrentCaller,
    Includes,
    Limit,
    Order,
    PlainIncludes,
    Tenant,
    errors,
    item_list,
    no_include,
)
from agentmem.plans.classes import RetentionName
from agentmem.sessions.conversations import (
    ITEMS_PER_REQUEST,
    ConversationsService,
    ConversationView,
)

_US = 1_000_000


def _none_as_empty(value: Any) -> Any:
    return {} if value is None else value


Items = Annotated[list[InputItem], Field(max_length=ITEMS_PER_REQUEST)]
NullableMetadata = Annotated[
    Metadata, BeforeValidator(_none_as_empty, json_schema_input_type=Metadata | None)
]


class ConversationCreateBody(Body):
    """A new conversation."""

    items: Items | None = None
    metadata: NullableMetadata = Field(default_factory=dict)
    retention: RetentionName | None = Field(None, description="agentmem's own.")

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"items": [{"role": "user", "content": "Good morning."}]}]}
    )


class ConversationUpdateBody(Body):
    """New metadata, in the place of the old."""

    metadata: NullableMetadata


class ItemsCreateBody(Body):
    """Items to add at the end."""

    items: Annotated[list[InputItem], Field(min_length=1, max_length=ITEMS_PER_REQUEST)]


class ConversationObject(BaseModel):
    """A conversation. Its log is that of the session `session_id`."""

    id: str
    object: Literal["conversation"]
    created_at: int = Field(description="Seconds since the epoch.")
    expires_at: int = Field(description="Until when it is kept, if it is not used again.")
    metadata: dict[str, str]
    model: str
    session_id: str


class ConversationList(BaseModel):
    """A part of the tenant's conversations."""

    object: Literal["list"]
    data: list[ConversationObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ConversationDeletionObject(BaseModel):
    """A conversation is gone, with its items, responses, log and KV."""

    id: str
    object: Literal["conversation.deleted"]
    deleted: Literal[True]


def conversations_router(conversations: ConversationsService) -> APIRouter:
    """All routes below /v1/conversations."""
    router = APIRouter(prefix="/v1/conversations", tags=["conversations"])
    _add_conversations(router, conversations)
    _add_conversation(router, conversations)
    _add_items(router, conversations)
    _add_item(router, conversations)
    return router


def _add_conversations(router: APIRouter, conversations: ConversationsService) -> None:
    @router.post(
        "",
        summary="Create a conversation",
        response_model=ConversationObject,
        responses=errors(413, 503),
    )
    async def create_conversation(
        caller: CurrentCaller, body: ConversationCreateBody | None = None
    ) -> Response:
        body = body or ConversationCreateBody()
        view = await conversations.create(
            caller.tenant_id,
            stored_items(body.items or ()),
            metadata=body.metadata,
            retention=body.retention,
            project_id=caller.project_id,
        )
        return JSONResponse(conversation_object(view))

    @router.get(
        "", summary="List conversations", response_model=ConversationList, responses=errors()
    )
    async def list_conversations(
        tenant: Tenant, limit: Limit = 20, after: After = None, order: Order = "desc"
    ) -> Response:
        views, has_more = await conversations.list_conversations(
            tenant, after=after, limit=limit, descending=order == "desc"
        )
        shown = [conversation_object(view) for view in views]
        return JSONResponse(
            {
                "object": "list",
                "data": shown,
                "first_id": shown[0]["id"] if shown else None,
                "last_id": shown[-1]["id"] if shown else None,
                "has_more": has_more,
            }
        )


def _add_conversation(router: APIRouter, conversations: ConversationsService) -> None:
    @router.get(
        "/{conversation_id}",
        summary="Get a conversation",
        response_model=ConversationObject,
        responses=errors(404),
    )
    async def get_conversation(tenant: Tenant, conversation_id: str) -> Response:
        return JSONResponse(conversation_object(await conversations.get(tenant, conversation_id)))

    @router.post(
        "/{conversation_id}",
        summary="Replace a conversation's metadata",
        response_model=ConversationObject,
        responses=errors(404, 413),
    )
    async def update_conversation(
        tenant: Tenant, conversation_id: str, body: ConversationUpdateBody
    ) -> Response:
        view = await conversations.change(tenant, conversation_id, body.metadata)
        return JSONResponse(conversation_object(view))

    @router.delete(
        "/{conversation_id}",
        summary="Delete a conversation with its items, responses, log and KV",
        response_model=ConversationDeletionObject,
        responses=errors(404, 409),
    )
    async def delete_conversation(tenant: Tenant, conversation_id: str) -> Response:
        await conversations.delete(tenant, conversation_id)
        return JSONResponse(
            {"id": conversation_id, "object": "conversation.deleted", "deleted": True}
        )


def _add_items(router: APIRouter, conversations: ConversationsService) -> None:
    @router.post(
        "/{conversation_id}/items",
        summary="Add items to a conversation",
        response_model=ItemList,
        responses=errors(404, 409, 413),
    )
    async def create_items(
        tenant: Tenant,
        conversation_id: str,
        body: ItemsCreateBody,
        *,
        include: Includes = None,
        plain_include: PlainIncludes = None,
    ) -> Response:
        no_include(include, plain_include)
        items = await conversations.add_items(tenant, conversation_id, stored_items(body.items))
        return JSONResponse(item_list(items, has_more=False))

    @router.get(
        "/{conversation_id}/items",
        summary="List a conversation's items",
        response_model=ItemList,
        responses=errors(404),
    )
    async def list_items(
        tenant: Tenant,
        conversation_id: str,
        limit: Limit = 20,
        after: After = None,
        order: Order = "desc",
        *,
        include: Includes = None,
        plain_include: PlainIncludes = None,
    ) -> Response:
        no_include(include, plain_include)
        items, has_more = await conversations.list_items(
            tenant, conversation_id, after=after, limit=limit, descending=order == "desc"
        )
        return JSONResponse(item_list(items, has_more=has_more))


def _add_item(router: APIRouter, conversations: ConversationsService) -> None:
    @router.get(
        "/{conversation_id}/items/{item_id}",
        summary="Get an item of a conversation",
        response_model=dict[str, Any],
        responses=errors(404),
    )
    async def get_item(
        tenant: Tenant,
        conversation_id: str,
        item_id: str,
        *,
        include: Includes = None,
        plain_include: PlainIncludes = None,
    ) -> Response:
        no_include(include, plain_include)
        return JSONResponse(await conversations.item(tenant, conversation_id, item_id))

    @router.delete(
        "/{conversation_id}/items/{item_id}",
        summary="Take an item out of a conversation",
        response_model=ConversationObject,
        responses=errors(404, 409),
    )
    async def delete_item(tenant: Tenant, conversation_id: str, item_id: str) -> Response:
        view = await conversations.remove_item(tenant, conversation_id, item_id)
        return JSONResponse(conversation_object(view))


def conversation_object(view: ConversationView) -> dict[str, Any]:
    """See `ConversationObject`."""
    session = view.session
    return {
        "id": view.id,
        "object": "conversation",
        "created_at": session.created_at // _US,
        "expires_at": session.expires_at // _US,
        "metadata": dict(session.metadata),
        "model": session.model,
        "session_id": session.id,
    }
