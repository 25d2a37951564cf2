"""Routes of Chat Completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from agentmem.api.auth import current_caller, current_tenant
from agentmem.api.chat.objects import (
    ChatCompletionObject,
    ChatDeletionObject,
    ChatMessageList,
    TokenText,
    completion_object,
)
from agentmem.api.chat.schemas import ChatBody
from agentmem.api.chat.stored import StoredCompletions
from agentmem.api.chat.stream import StreamPlan, completion_events
from agentmem.api.errors import UNSUPPORTED, documented
from agentmem.api.retries import retry_key
from agentmem.api.sse import STREAM_CONTENT, EventStream
from agentmem.api.usage import CACHE_HEADER, cache_header
from agentmem.api.waiting import failed_at_once, nobody_there, results_or_disconnect
from agentmem.catalog.ids import new_id
from agentmem.core import TenantId
from agentmem.errors import InvalidRequest
from agentmem.sessions.requests import Caller, ResponsePlan, RetryKey
from agentmem.sessions.runs import Listener
from agentmem.sessions.service import SessionsService

_PREFIX = "/v1/chat/completions"
_MESSAGES_MAX = 100
_ERROR_TEXTS = {
    400: "The request cannot be carried out as sent; `param` names the field.",
    401: "The API key is missing or not valid.",
    404: "No such model, context or stored completion of this tenant.",
    409: "The Idempotency-Key came with another body, or the conversation is being deleted.",
    413: "The body is too large.",
    503: "No worker is ready, or it failed; see Retry-After.",
}

CurrentCaller = Annotated[Caller, Depends(current_caller)]
Tenant = Annotated[TenantId, Depends(current_tenant)]
Retry = Annotated[RetryKey | None, Depends(retry_key)]


def chat_router(service: SessionsService) -> APIRouter:
    """All routes below /v1/chat/completions."""
    router = APIRouter(prefix=_PREFIX, tags=["chat completions"])
    _add_create(router, service)
    _add_stored(router, StoredCompletions(service))
    _add_refused(router)
    return router


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return documented(_ERROR_TEXTS, 400, 401, *statuses)


def _add_create(router: APIRouter, service: SessionsService) -> None:
    @router.post(
        "",
        summary="Create a completion",
        description="Takes the whole conversation; what is known of it already is not computed "
        "again. With `stream` the answer is a stream of chunks that ends with `data: [DONE]`.",
        response_model=ChatCompletionObject,
        responses={
            200: {"description": "The completion, or its chunks.", "content": STREAM_CONTENT},
            **_errors(404, 409, 413, 503),
        },
    )
    async def create_completion(
        request: Request, caller: CurrentCaller, retry: Retry, body: ChatBody
    ) -> Response:
        asked = _Asked(service, caller, retry, body)
        listeners = await asked.begin()
        completion_id = listeners[0].response_id or asked.completion_id
        if body.stream:
            await failed_at_once(listeners)
            return asked.stream(completion_id, listeners)
        turns = await results_or_disconnect(request, listeners)
        if turns is None:
            return nobody_there()
        shown = completion_object(
            completion_id,
            asked.model,
            turns,
            legacy=asked.tools.legacy,
            metadata=body.metadata,
            token_text=asked.token_text,
        )
        return JSONResponse(shown, headers={CACHE_HEADER: cache_header(turns[0])})


class _Asked:
    """One request for a completion, until its turns run."""

    def __init__(
        self, service: SessionsService, caller: Caller, retry: RetryKey | None, body: ChatBody
    ) -> None:
        self.completion_id = new_id("chatcmpl", "-")
        self.tools = body.toolbox()
        self.model = ""
        self.token_text: TokenText | None = None
        self._service = service
        self._caller = caller
        self._retry = retry
        self._body = body

    async def begin(self) -> list[Listener]:
        """One listener per choice; when one cannot begin, none does."""
        body, service = self._body, self._service
        self.model = await self._model()
        if body.logprobs:
            self.token_text = await service.token_text(self.model)
        target = body.target(self.model)
        echo = {**body.echo(self.tools), "model": self.model}
        listeners: list[Listener] = []
        try:
            for choice, request in enumerate(body.requests(self.tools)):
                plan = ResponsePlan(
                    id=choice_id(self.completion_id, choice),
                    surface="chat",
                    request=echo,
                    stored=body.stored,
                    project_id=self._caller.project_id,
                )
                retry = None if self._retry is None else replace(self._retry, choice=choice)
                listeners.append(
                    await service.begin(self._caller, target, request, retry=retry, plan=plan)
                )
        except BaseException:
            _close(listeners)
            raise
        return listeners

    def stream(self, completion_id: str, listeners: Sequence[Listener]) -> EventStream:
        """The completion as chunks."""
        plan = StreamPlan(
            completion_id,
            self.model,
            legacy=self.tools.legacy,
            include_usage=self._body.wants("include_usage"),
            obfuscate=self._body.wants("include_obfuscation"),
            token_text=self.token_text,
        )
        return EventStream(completion_events(plan, listeners), close=lambda: _close(listeners))

    async def _model(self) -> str:
        body, tenant_id = self._body, self._caller.tenant_id
        named = None
        if body.model is not None or body.context is None:
            named = await self._service.resolve_model(tenant_id, body.model)
        if body.context is None:
            assert named is not None, "without a context the model is resolved"
            return named
        view = await self._service.contexts.get(tenant_id, body.context)
        model = view.session.session.model
        if named not in (None, model):
            raise InvalidRequest(f"The context was made for model {model!r}.", param="model")
        return model


def choice_id(completion_id: str, choice: int) -> str:
    """The row of a choice; the first one has the completion's own id."""
    return completion_id if choice == 0 else f"{completion_id}_{choice}"


def _close(listeners: Sequence[Listener]) -> None:
    for listener in listeners:
        listener.close()


def _add_stored(router: APIRouter, stored: StoredCompletions) -> None:
    @router.get(
        "/{completion_id}",
        summary="Get a stored completion",
        response_model=ChatCompletionObject,
        responses=_errors(404),
    )
    async def get_completion(tenant: Tenant, completion_id: str) -> Response:
        return JSONResponse(await stored.get(tenant, completion_id))

    @router.delete(
        "/{completion_id}",
        summary="Delete a stored completion with its turn",
        response_model=ChatDeletionObject,
        responses=_errors(404, 409),
    )
    async def delete_completion(tenant: Tenant, completion_id: str) -> Response:
        await stored.delete(tenant, completion_id)
        return JSONResponse(
            {"id": completion_id, "object": "chat.completion.deleted", "deleted": True}
        )

    @router.get(
        "/{completion_id}/messages",
        summary="List the messages that a stored completion was made from",
        response_model=ChatMessageList,
        responses=_errors(404),
    )
    async def list_messages(
        tenant: Tenant,
        completion_id: str,
        limit: Annotated[int, Query(ge=1, le=_MESSAGES_MAX)] = 20,
        after: Annotated[str | None, Query(description="Id of the last one seen.")] = None,
        order: Annotated[Literal["asc", "desc"], Query()] = "asc",
    ) -> Response:
        return JSONResponse(
            await stored.messages(
                tenant, completion_id, after=after, limit=limit, descending=order == "desc"
            )
        )


def _add_refused(router: APIRouter) -> None:
    """What openai's SDK could call and is not done here is told in a sentence."""

    @router.get(
        "",
        summary="Refused: stored completions are not listed",
        response_model=None,
        responses=_errors(),
    )
    async def list_completions() -> Response:
        raise InvalidRequest(
            "Listing stored completions is not supported: keep their ids.", code=UNSUPPORTED
        )

    @router.post(
        "/{completion_id}",
        summary="Refused: a stored completion cannot be changed",
        response_model=None,
        responses=_errors(),
    )
    async def update_completion(completion_id: str) -> Response:
        raise InvalidRequest(
            "A stored completion cannot be changed.", param="metadata", code=UNSUPPORTED
        )
