"""Stored completions (`store: true`): read, deleted, and the messages they were made from."""

from __future__ import annotations

import contextlib
from typing import Any

from agentmem.api.chat.objects import completion_object
from agentmem.api.objects import list_object
from agentmem.catalog import Transaction
from agentmem.catalog.ids import is_id
from agentmem.catalog.records import Response, Turn
from agentmem.core import TenantId, TurnId
from agentmem.errors import InvalidRequest, NotFound
from agentmem.sessions.bases import whole_conversation
from agentmem.sessions.service import SessionsService

_KIND = "chat completion"


class StoredCompletions:
    """Every method raises NotFound for ids that are unknown, deleted or another tenant's."""

    def __init__(self, service: SessionsService) -> None:
        self._service = service

    async def get(self, tenant_id: TenantId, completion_id: str) -> dict[str, Any]:
        """The completion as it was answered."""
        async with self._service.catalog.reading() as tx:
            rows = await _rows(tx, tenant_id, completion_id)
            turns = [await _turn(tx, row) for row in rows]
        echo = rows[0].request
        token_text = None
        if turns[0].logprobs is not None:
            token_text = await self._service.token_text(echo["model"])
        return completion_object(
            completion_id,
            echo["model"],
            turns,
            legacy=echo["legacy"],
            metadata=echo["metadata"],
            token_text=token_text,
        )

    async def delete(self, tenant_id: TenantId, completion_id: str) -> None:
        """Deletes it; its turns go, too, where nothing else builds on them.

        Raises SessionBusy while something goes on from one of them; deleting it again then
        finishes what is left: the turns go first, and the first choice, which has its id, last.
        """
        async with self._service.catalog.reading() as tx:
            rows = await _rows(tx, tenant_id, completion_id)
        for row in reversed(rows):
            if row.turn_id is not None:
                await self._service.retract(tenant_id, row.turn_id)
            async with self._service.catalog.transaction() as tx:
                # With the turn, its row went already.
                with contextlib.suppress(NotFound):
                    await tx.responses.delete(tenant_id, row.id)

    async def messages(
        self,
        tenant_id: TenantId,
        completion_id: str,
        *,
        after: str | None,
        limit: int,
        descending: bool,
    ) -> dict[str, Any]:
        """A part of the conversation up to the reply. Raises InvalidRequest for an unknown
        `after`."""
        async with self._service.catalog.reading() as tx:
            row = (await _rows(tx, tenant_id, completion_id))[0]
            turn = await _turn(tx, row)
            chain = await tx.turns.chain(tenant_id, turn.id)
        told = whole_conversation(chain)[:-1]
        items = [_message(completion_id, index, dict(one)) for index, one in enumerate(told)]
        if descending:
            items.reverse()
        if after is not None:
            seen = [index for index, item in enumerate(items) if item["id"] == after]
            if not seen:
                raise InvalidRequest(f"No message with id {after!r} to go on after.", param="after")
            items = items[seen[0] + 1 :]
        return list_object(items[:limit], has_more=len(items) > limit)


async def _rows(tx: Transaction, tenant_id: TenantId, completion_id: str) -> list[Response]:
    """The rows of all choices."""
    if not is_id(completion_id, "chatcmpl", "-"):
        raise NotFound(_KIND, completion_id)
    try:
        first = await tx.responses.get(tenant_id, completion_id)
    except NotFound as error:
        raise NotFound(_KIND, completion_id) from error
    rows = [first]
    for choice in range(1, first.request["choices"]):
        # One may be gone: it was just being deleted.
        with contextlib.suppress(NotFound):
            rows.append(await tx.responses.get(tenant_id, f"{completion_id}_{choice}"))
    return rows


async def _turn(tx: Transaction, row: Response) -> Turn:
    if row.turn_id is None:
        raise NotFound(_KIND, row.id)
    return await tx.turns.get(row.tenant_id, TurnId(row.turn_id))


def _message(completion_id: str, index: int, message: dict[str, Any]) -> dict[str, Any]:
    return {"id": f"{completion_id}-{index}", "content_parts": None, "refusal": None, **message}
