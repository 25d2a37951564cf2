"""Where a response begins: what its input is, and what it goes on from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentmem.catalog import Transaction
from agentmem.catalog.ids import is_id
from agentmem.catalog.records import Item, Response, Session
from agentmem.core import TenantId, TurnId
from agentmem.errors import InvalidRequest, NotFound, SessionBusy
from agentmem.sessions.items import is_item_id, messages_of, numbered_items
from agentmem.sessions.messages import Message
from agentmem.sessions.requests import AfterTurn, FromContext, InSession, LongestPrefix, Target
from agentmem.sessions.sealing import Purpose, Sealer
from agentmem.sessions.service import SessionsService
from agentmem.sessions.views import busy

BUSY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request names. `items` are in the stored form, without ids where they came without,
    references among them. `model` is the name that was sent."""

    items: Sequence[Mapping[str, Any]]
    model: str | None = None
    conversation_id: str | None = None
    previous_response_id: str | None = None
    context_id: str | None = None


@dataclass(frozen=True, slots=True)
class Opening:
    """What comes of it: where the turn goes on from, with which messages and served model.

    `items` are the input's own, with ids. `previous` is the row of the previous response.
    """

    target: Target
    model: str
    messages: tuple[Message, ...]
    items: list[dict[str, Any]]
    previous: Response | None = None


class Openings:
    """Finds openings. Changes nothing."""

    def __init__(self, service: SessionsService, sealer: Sealer) -> None:
        self._service = service
        self._sealer = sealer

    async def open(self, tenant_id: TenantId, asked: Asked, *, wait: bool = False) -> Opening:
        """The opening of a response.

        Raises NotFound, InvalidRequest, ModelNotFound; SessionBusy while another response of the
        conversation runs, unless `wait` leaves that to the turn (which may repeat that response).
        """
        named = None
        if asked.model is not None:
            named = await self._service.resolve_model(tenant_id, asked.model)
        if asked.conversation_id is not None:
            opening = await self._in_conversation(tenant_id, asked, named, wait=wait)
        elif asked.previous_response_id is not None:
            opening = await self._after_response(tenant_id, asked, named)
        else:
            opening = await self._anew(tenant_id, asked, named)
        if not opening.messages:
            raise InvalidRequest("There is no input to answer to.", param="input")
        return opening

    async def items(self, tenant_id: TenantId, given: Sequence[Mapping[str, Any]]) -> list[Any]:
        """The items with what references name in their places. Raises InvalidRequest."""
        resolved = []
        for index, item in enumerate(given):
            if item["type"] != "item_reference":
                resolved.append(dict(item))
                continue
            found = None
            if is_item_id(item["id"]):
                async with self._service.catalog.reading() as tx:
                    found = await tx.items.find(tenant_id, item["id"])
            if found is None:
                raise InvalidRequest(
                    f"No item with id {item['id']!r}; items of responses with store false are not "
                    "kept.",
                    param=f"input[{index}].id",
                    code="item_not_found",
                )
            resolved.append(dict(found.data))
        return resolved

    def messages(
        self, tenant_id: TenantId, items: Sequence[Mapping[str, Any]], *, before: int = 0
    ) -> tuple[Message, ...]:
        """The conversation that the items make; `before` of them are not the caller's input."""

        def unseal(item: Mapping[str, Any], index: int) -> str:
            purpose: Purpose = "compaction" if item["type"] == "compaction" else "reasoning"
            param = f"input[{index}].encrypted_content"
            return self._sealer.open(tenant_id, purpose, item["encrypted_content"], param=param)

        return messages_of(items, unseal, first=-before)

    async def _anew(self, tenant_id: TenantId, asked: Asked, named: str | None) -> Opening:
        items = numbered_items(await self.items(tenant_id, asked.items))
        messages = self.messages(tenant_id, items)
        if asked.context_id is None:
            model = named or await self._service.resolve_model(tenant_id, None)
            return Opening(LongestPrefix(model), model, messages, items)
        if not is_id(asked.context_id, "ctx"):
            raise NotFound("context", asked.context_id)
        view = await self._service.contexts.get(tenant_id, asked.context_id)
        model = view.session.session.model
        if named not in (None, model):
            raise InvalidRequest(f"The context was made for model {model!r}.", param="model")
        return Opening(FromContext(asked.context_id), model, messages, items)

    async def _after_response(
        self, tenant_id: TenantId, asked: Asked, named: str | None
    ) -> Opening:
        previous = await self.previous(tenant_id, asked.previous_response_id or "")
        assert previous.turn_id is not None, "checked"
        items = numbered_items(await self.items(tenant_id, asked.items))
        model = named or previous.request["model"]
        target = AfterTurn(TurnId(previous.turn_id), named)
        return Opening(target, model, self.messages(tenant_id, items), items, previous)

    async def previous(self, tenant_id: TenantId, response_id: str) -> Response:
        """A response to go on after. Raises NotFound as such, SessionBusy while it runs,
        InvalidRequest where it failed."""
        kind = "previous_response"
        if not is_id(response_id, "resp"):
            raise NotFound(kind, response_id)
        try:
            async with self._service.catalog.reading() as tx:
                previous = await tx.responses.get(tenant_id, response_id)
        except NotFound as error:
            running = self._service.find_running(tenant_id, response_id)
            if running is not None:
                running.close()
                raise SessionBusy(
                    response_id, retry_after_seconds=BUSY_SECONDS, kind="response"
                ) from error
            raise NotFound(kind, response_id) from error
        if previous.turn_id is None:
            raise InvalidRequest(
                f"The response {response_id!r} is {previous.status}: it has no reply to go on "
                "after.",
                param="previous_response_id",
            )
        return previous

    async def _in_conversation(
        self, tenant_id: TenantId, asked: Asked, named: str | None, *, wait: bool
    ) -> Opening:
        conversation_id = asked.conversation_id or ""
        given = await self.items(tenant_id, asked.items)
        async with self._service.catalog.reading() as tx:
            session = await conversation_session(tx, tenant_id, conversation_id)
            if not wait:
                await check_free(tx, session)
            known = await tx.items.of_conversation(tenant_id, conversation_id)
        items = numbered_items(given, {item.id for item in known})
        told = [*(item.data for item in known), *items]
        messages = self.messages(tenant_id, told, before=len(known))
        target = InSession(session.id, whole=True, model=named)
        return Opening(target, named or session.model, messages, items)


@contextlib.contextmanager
def called_input() -> Iterator[None]:
    """Errors that name `messages` name `input` instead: that is what they were made from."""
    try:
        yield
    except InvalidRequest as error:
        if error.param == "messages":
            error.param = "input"
        raise


async def conversation_session(
    tx: Transaction, tenant_id: TenantId, conversation_id: str
) -> Session:
    """The session that holds a conversation's log. Raises NotFound."""
    if not is_id(conversation_id, "conv"):
        raise NotFound("conversation", conversation_id)
    try:
        session = await tx.sessions.get(tenant_id, session_of(conversation_id))
    except NotFound as error:
        raise NotFound("conversation", conversation_id) from error
    if session.origin != "conversation":
        raise NotFound("conversation", conversation_id)
    return session


async def check_free(tx: Transaction, session: Session, *, lock: bool = False) -> None:
    """Raises SessionBusy while a response of the conversation runs.

    With `lock`, in a writing transaction, none begins before that ends.
    """
    if await tx.leases.find(session.tenant_id, session.id, lock=lock) is not None:
        raise busy(session, retry_after_seconds=BUSY_SECONDS)


def session_of(conversation_id: str) -> str:
    """The id of the session that holds a conversation's log."""
    return f"ses_{conversation_id.partition('_')[2]}"


def shown(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Stored items as they are shown."""
    return [dict(item.data) for item in items]
