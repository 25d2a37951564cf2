"""Routes of the Responses API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from agentmem.api.auth import current_caller, current_tenant
from agentmem.api.errors import UNSUPPORTED, documented
from agentmem.api.responses import objects
from agentmem.api.responses.following import (
    Follower,
    error_object,
    events_without_turn,
    extras_of,
    head_of,
    without_turn,
)
from agentmem.api.responses.items import stored_items
from agentmem.api.responses.parameters import NO_INCLUDE
from agentmem.api.responses.schemas import (
    ENCRYPTED,
    LOGPROBS,
    CompactBody,
    InputTokensBody,
    PromptBody,
    ResponseBody,
)
from agentmem.api.retries import retry_key
from agentmem.api.sse import STREAM_CONTENT, EventStream
from agentmem.api.usage import CACHE_HEADER, cache_header
from agentmem.api.waiting import nobody_there, results_or_disconnect
from agentmem.catalog.ids import new_id
from agentmem.core import TenantId
from agentmem.errors import InvalidRequest
from agentmem.sessions.compaction import Compaction
from agentmem.sessions.openings import Asked, called_input
from agentmem.sessions.requests import Caller, RetryKey
from agentmem.sessions.responses import Begun, Found, ResponsesService
from agentmem.sessions.service import SessionsService

LIST_MAX = 100
_INT64_MAX = 2**63 - 1
_ERROR_TEXTS = {
    400: "The request cannot be carried out as sent; `param` names the field.",
    401: "The API key is missing or not valid.",
    404: "No such model, context, conversation or response of this tenant.",
    409: "Another response of the conversation runs (see Retry-After), or the Idempotency-Key came "
    "with another body.",
    413: "The body is too large.",
    503: "No worker is ready, or it failed; see Retry-After.",
}

CurrentCaller = Annotated[Caller, Depends(current_caller)]
Tenant = Annotated[TenantId, Depends(current_tenant)]
Retry = Annotated[RetryKey | None, Depends(retry_key)]
Limit = Annotated[int, Query(ge=1, le=LIST_MAX)]
After = Annotated[str | None, Query(description="Id of the last item already seen.")]
Order = Annotated[Literal["asc", "desc"], Query(description="By position.")]
# openai's client writes lists with brackets.
Includes = Annotated[list[str] | None, Query(alias="include[]", max_length=20)]
PlainIncludes = Annotated[list[str] | None, Query(alias="include", max_length=20)]


def responses_router(service: SessionsService, responses: ResponsesService) -> APIRouter:
    """All routes below /v1/responses."""
    router = APIRouter(prefix="/v1/responses", tags=["responses"])
    _add_create(router, service, responses)
    _add_prompts(router, service, responses)
    _add_stored(router, service, responses)
    _add_ends(router, responses)
    return router


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the document: which errors an operation answers with."""
    return documented(_ERROR_TEXTS, 400, 401, *statuses)


def _add_create(router: APIRouter, service: SessionsService, responses: ResponsesService) -> None:
    @router.post(
        "",
        summary="Create a response",
        description="Goes on from `conversation`, `previous_response_id`, or the longest beginning "
        "of the input that is known. With `stream` the answer is a stream of events that ends with "
        "`data: [DONE]`.",
        response_model=objects.ResponseObject,
        responses={
            200: {"description": "The response, or its events.", "content": STREAM_CONTENT},
            **errors(404, 409, 413, 503),
        },
    )
    async def create_response(
        request: Request, caller: CurrentCaller, retry: Retry, body: ResponseBody
    ) -> Response:
        body.check()
        begun = await responses.begin(
            caller,
            _asked(body, context_id=body.context),
            body.turn_request,
            body.echo,
            retry=retry,
        )
        follower = await _follower(
            service, responses, begun, body.include or (), obfuscate=body.obfuscated
        )
        if body.stream:
            await follower.first_sign()
            return EventStream(follower.events(), close=follower.leave)
        done = await follower.whole(request)
        if done is None:
            return nobody_there()
        shown, turn = done
        return JSONResponse(shown, headers={CACHE_HEADER: cache_header(turn)})


def _add_prompts(router: APIRouter, service: SessionsService, responses: ResponsesService) -> None:
    compaction = Compaction(service, responses)

    @router.post(
        "/input_tokens",
        summary="Count the tokens of a prompt",
        response_model=objects.InputTokensObject,
        responses=errors(404, 413, 503),
    )
    async def count_input_tokens(caller: CurrentCaller, body: InputTokensBody) -> Response:
        body.check()
        opening = await responses.openings.open(caller.tenant_id, _asked(body), wait=True)
        turn_request = body.turn_request(opening.messages)
        with called_input():
            tokens = await service.count_tokens(caller, opening.target, turn_request)
        return JSONResponse({"object": "response.input_tokens", "input_tokens": tokens})

    @router.post(
        "/compact",
        summary="Make a conversation short",
        description="The model writes a summary, which comes back sealed beside what users said. "
        "Send the items as the beginning of the next input. What was compacted stays as it is.",
        response_model=objects.CompactionObject,
        responses=errors(404, 413, 503),
    )
    async def compact_response(
        request: Request, caller: CurrentCaller, retry: Retry, body: CompactBody
    ) -> Response:
        asked = Asked(
            stored_items(body.input or ()),
            model=body.model,
            previous_response_id=body.previous_response_id,
        )
        compacting = await compaction.begin(
            caller, asked, instructions=body.instructions, retry=retry
        )
        turns = await results_or_disconnect(request, [compacting.listener])
        if turns is None:
            return nobody_there()
        output = compaction.output(compacting, turns[0])
        shown = objects.compaction_object(new_id("cmpresp"), turns[0], output)
        return JSONResponse(shown, headers={CACHE_HEADER: cache_header(turns[0])})


def _add_stored(router: APIRouter, service: SessionsService, responses: ResponsesService) -> None:
    @router.get(
        "/{response_id}",
        summary="Get a response, or take its stream up again",
        description="With `stream` the events come once more, those after `starting_after`: the "
        "same events with the same numbers, whether the response runs or is over.",
        response_model=objects.ResponseObject,
        responses={
            200: {"description": "The response, or its events.", "content": STREAM_CONTENT},
            **errors(404, 503),
        },
    )
    async def get_response(
        tenant: Tenant,
        response_id: str,
        include: Includes = None,
        plain_include: PlainIncludes = None,
        *,
        stream: bool = False,
        starting_after: Annotated[int | None, Query(ge=0, le=_INT64_MAX)] = None,
        include_obfuscation: bool = False,
    ) -> Response:
        wanted = _wanted([*(include or ()), *(plain_include or ())])
        if not stream and (starting_after is not None or include_obfuscation):
            param = "include_obfuscation" if starting_after is None else "starting_after"
            raise InvalidRequest(f"{param} needs stream to be true.", param=param)
        after = -1 if starting_after is None else starting_after
        found = await responses.find(tenant, response_id)
        if found.listener is None:
            assert found.row is not None, "without a turn it is over"
            if stream:
                ending = events_without_turn(found.plan, found.row, after=after)
                return EventStream(ending, close=_nothing)
            return JSONResponse(without_turn(found.plan, found.row))
        if found.row is None and not stream:
            return JSONResponse(_in_progress(found))
        begun = Begun(tenant, found.plan, found.listener)
        follower = await _follower(service, responses, begun, wanted, obfuscate=include_obfuscation)
        if stream:
            return EventStream(follower.events(after=after), close=follower.leave)
        return JSONResponse(await follower.told())

    @router.get(
        "/{response_id}/input_items",
        summary="List what the model was given",
        response_model=objects.ItemList,
        responses=errors(404),
    )
    async def list_input_items(
        tenant: Tenant,
        response_id: str,
        limit: Limit = 20,
        after: After = None,
        order: Order = "desc",
        *,
        include: Includes = None,
        plain_include: PlainIncludes = None,
    ) -> Response:
        no_include(include, plain_include)
        items = await responses.input_items(tenant, response_id)
        if order == "desc":
            items.reverse()
        if after is not None:
            seen = [index for index, item in enumerate(items) if item["id"] == after]
            if not seen:
                raise InvalidRequest(f"No item with id {after!r} to go on after.", param="after")
            items = items[seen[0] + 1 :]
        return JSONResponse(item_list(items[:limit], has_more=len(items) > limit))


def _add_ends(router: APIRouter, responses: ResponsesService) -> None:
    @router.delete(
        "/{response_id}",
        summary="Delete a response with its turn",
        response_model=objects.ResponseDeletionObject,
        responses=errors(404, 409),
    )
    async def delete_response(tenant: Tenant, response_id: str) -> Response:
        await responses.delete(tenant, response_id)
        return JSONResponse({"id": response_id, "object": "response", "deleted": True})

    @router.post(
        "/{response_id}/cancel",
        summary="End a running response",
        response_model=objects.ResponseObject,
        responses=errors(404),
    )
    async def cancel_response(tenant: Tenant, response_id: str) -> Response:
        found = await responses.cancel(tenant, response_id)
        assert found.row is not None, "it was ended"
        return JSONResponse(without_turn(found.plan, found.row))


def item_list(items: list[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """A part of a list of items. Clients' types want texts as ids, also of nothing."""
    return {
        "object": "list",
        "data": items,
        "first_id": items[0]["id"] if items else "",
        "last_id": items[-1]["id"] if items else "",
        "has_more": has_more,
    }


def no_include(*includes: list[str] | None) -> None:
    """Raises InvalidRequest where something is to be included in stored items."""
    if any(includes):
        raise InvalidRequest(NO_INCLUDE, param="include", code=UNSUPPORTED)


def _asked(body: PromptBody, *, context_id: str | None = None) -> Asked:
    return Asked(
        stored_items(body.given),
        model=body.model,
        conversation_id=body.conversation_id,
        previous_response_id=body.previous_response_id,
        context_id=context_id,
    )


async def _follower(
    service: SessionsService,
    responses: ResponsesService,
    begun: Begun,
    include: Any,
    *,
    obfuscate: bool,
) -> Follower:
    try:
        extras = await extras_of(service, responses, begun, include, obfuscate=obfuscate)
    except BaseException:
        responses.leave(begun, error_object)
        raise
    return Follower(responses, begun, extras)


def _wanted(include: list[str]) -> list[str]:
    for name in include:
        if name not in (ENCRYPTED, LOGPROBS):
            raise InvalidRequest(
                f"Including {name!r} is not supported.", param="include", code=UNSUPPORTED
            )
    return include


def _in_progress(found: Found) -> dict[str, Any]:
    assert found.listener is not None, "it runs"
    created_at = found.listener.created.created_at
    found.listener.close()
    return objects.response_object(head_of(found.plan, created_at=created_at), None)


def _nothing() -> None:
    """There is nothing to close."""
