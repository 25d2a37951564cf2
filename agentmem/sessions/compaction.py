"""Compaction: a conversation in short.

What users said stays as it is; everything else becomes a summary that the model writes, sealed in
an item that only its tenant can send back. Nothing old is touched: its responses go on to work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentmem.catalog.ids import new_id
from agentmem.catalog.records import Response, Turn
from agentmem.core import TenantId, TurnId
from agentmem.engine.output import ToolChoice
from agentmem.errors import EngineFailed, InvalidRequest
from agentmem.sessions.items import is_user_message, numbered_items
from agentmem.sessions.messages import Framing, Message
from agentmem.sessions.openings import Asked, called_input
from agentmem.sessions.requests import (
    AfterTurn,
    Caller,
    LongestPrefix,
    RetryKey,
    Target,
    TurnRequest,
)
from agentmem.sessions.responses import ResponsesService
from agentmem.sessions.runs import Listener
from agentmem.sessions.service import SessionsService

_ASK: Message = {
    "role": "user",
    "content": "Summarise the conversation so far for somebody who has to continue it without "
    "having read it: facts, decisions, names, numbers, results of tools, and what is still to be "
    "done. Write the summary only.",
}


@dataclass(frozen=True, slots=True)
class Compacting:
    """A compaction under way: the turn that summarises, and the items that it is made of."""

    tenant_id: TenantId
    listener: Listener
    items: Sequence[Mapping[str, Any]]


class Compaction:
    """Makes compactions."""

    def __init__(self, service: SessionsService, responses: ResponsesService) -> None:
        self._service = service
        self._responses = responses

    async def begin(
        self, caller: Caller, asked: Asked, *, instructions: str | None, retry: RetryKey | None
    ) -> Compacting:
        """Has the model summarise. Its turn is counted, but nothing of it is kept.

        Raises InvalidRequest without anything to compact, NotFound, ModelNotFound.
        """
        tenant_id, openings = caller.tenant_id, self._responses.openings
        own = numbered_items(await openings.items(tenant_id, asked.items))
        told = openings.messages(tenant_id, own)
        named = None
        if asked.model is not None:
            named = await self._service.resolve_model(tenant_id, asked.model)
        before: list[dict[str, Any]] = []
        target: Target
        framing = Framing(instructions)
        if asked.previous_response_id is not None:
            previous = await openings.previous(tenant_id, asked.previous_response_id)
            assert previous.turn_id is not None, "checked"
            before = await self._responses.conversation(tenant_id, previous.id)
            target = AfterTurn(TurnId(previous.turn_id), named)
            framing = _framing_of(previous, instructions)
        else:
            model = named or await self._service.resolve_model(tenant_id, None)
            target = LongestPrefix(model)
        if not before and not own:
            raise InvalidRequest("There is nothing to compact.", param="input")
        request = TurnRequest(
            messages=(*told, _ASK),
            framing=framing,
            temperature=0.0,
            tool_choice=ToolChoice("none"),
            truncation="auto",
            store=False,
        )
        with called_input():
            listener = await self._service.begin(caller, target, request, retry=retry)
        return Compacting(tenant_id, listener, [*before, *own])

    def output(self, compacting: Compacting, turn: Turn) -> list[dict[str, Any]]:
        """The compacted items. Raises EngineFailed where the model wrote nothing."""
        summary = ((turn.reply or {}).get("content") or "").strip()
        if not summary:
            raise EngineFailed("The model wrote no summary.")
        kept = [item for item in compacting.items if is_user_message(item)]
        sealed = self._responses.sealer.seal(compacting.tenant_id, "compaction", summary)
        item = {"id": new_id("cmp"), "type": "compaction", "encrypted_content": sealed}
        return [*numbered_items(kept), item]


def _framing_of(previous: Response, instructions: str | None) -> Framing:
    """As the previous response had it, so that its prompt is not computed again."""
    echo = previous.request
    tools = []
    for tool in echo["tools"]:
        named = {name: value for name, value in tool.items() if value is not None}
        named.pop("type")
        tools.append({"type": "function", "function": named})
    if instructions is None:
        instructions = echo["instructions"]
    return Framing(instructions, tuple(tools), echo["reasoning"]["effort"])
