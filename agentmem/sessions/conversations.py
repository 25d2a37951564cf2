"""Conversations: items that their owner adds, and those of the responses within them.

A conversation is a session of origin "conversation" with the same suffix in its id; its log is
made by the responses in it. While one of them runs, items are neither added nor taken away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentmem.catalog import Transaction
from agentmem.catalog.ids import new_id, now_us
from agentmem.catalog.records import Item, Session
from agentmem.core import ProjectId, TenantId
from agentmem.errors import InvalidRequest, NotFound
from agentmem.plans.classes import RetentionName
from agentmem.sessions.items import is_item_id, numbered_items
from agentmem.sessions.openings import (
    Openings,
    check_free,
    conversation_session,
    session_of,
    shown,
)
from agentmem.sessions.service import SessionsService
from agentmem.sessions.views import conversation_of

ITEMS_PER_REQUEST = 20


@dataclass(frozen=True, slots=True)
class ConversationView:
    """A conversation and its session."""

    id: str
    session: Session


class ConversationsService:
    """Every method raises NotFound for ids that are unknown, deleted or another tenant's."""

    def __init__(self, service: SessionsService, openings: Openings) -> None:
        self._service = service
        self._openings = openings

    async def create(
        self,
        tenant_id: TenantId,
        items: Sequence[Mapping[str, Any]],
        *,
        metadata: Mapping[str, str],
        retention: RetentionName | None = None,
        project_id: ProjectId | None = None,
    ) -> ConversationView:
        """A new conversation with these items (in the stored form). Raises InvalidRequest."""
        numbered = await self._checked(tenant_id, items)
        conversation_id = new_id("conv")
        view = await self._service.create(
            tenant_id,
            model=None,
            metadata=metadata,
            retention=retention,
            origin="conversation",
            session_id=session_of(conversation_id),
            project_id=project_id,
        )
        if numbered:
            async with self._service.catalog.transaction() as tx:
                await tx.items.append(_added(tenant_id, conversation_id, numbered))
        return ConversationView(conversation_id, view.session)

    async def get(self, tenant_id: TenantId, conversation_id: str) -> ConversationView:
        """One conversation."""
        async with self._service.catalog.reading() as tx:
            session = await conversation_session(tx, tenant_id, conversation_id)
        return ConversationView(conversation_id, session)

    async def list_conversations(
        self, tenant_id: TenantId, *, after: str | None, limit: int, descending: bool
    ) -> tuple[list[ConversationView], bool]:
        """Conversations by creation, and whether there are more. Raises InvalidRequest for an
        unknown `after`."""
        async with self._service.catalog.reading() as tx:
            if after is not None:
                try:
                    after = (await conversation_session(tx, tenant_id, after)).id
                except NotFound as error:
                    raise InvalidRequest(
                        f"No conversation with id {error.object_id!r} to go on after.",
                        param="after",
                    ) from error
            found = await tx.sessions.list(
                tenant_id,
                after=after,
                limit=limit + 1,
                descending=descending,
                origin="conversation",
            )
        views = [ConversationView(conversation_of(one.id), one) for one in found[:limit]]
        return views, len(found) > limit

    async def change(
        self, tenant_id: TenantId, conversation_id: str, metadata: Mapping[str, str]
    ) -> ConversationView:
        """Replaces the metadata."""
        async with self._service.catalog.transaction() as tx:
            session = await conversation_session(tx, tenant_id, conversation_id)
            await tx.sessions.change_metadata(session, metadata)
        return await self.get(tenant_id, conversation_id)

    async def delete(self, tenant_id: TenantId, conversation_id: str) -> None:
        """Deletes its items, its responses, its log and its KV. Raises SessionBusy."""
        view = await self.get(tenant_id, conversation_id)
        await self._service.delete(tenant_id, view.session.id)

    async def add_items(
        self, tenant_id: TenantId, conversation_id: str, items: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """Appends items (in the stored form), and returns them with their ids. Raises SessionBusy
        while a response runs, InvalidRequest."""
        given = await self._openings.items(tenant_id, items)
        self._openings.messages(tenant_id, given)
        async with self._service.catalog.transaction() as tx:
            session = await self._free(tx, tenant_id, conversation_id)
            known = await tx.items.ids_in_conversation(
                tenant_id, conversation_id, [item["id"] for item in given if item.get("id")]
            )
            numbered = numbered_items(given, known)
            await tx.items.append(_added(tenant_id, conversation_id, numbered))
            await tx.sessions.renew(session)
        return numbered

    async def list_items(
        self,
        tenant_id: TenantId,
        conversation_id: str,
        *,
        after: str | None,
        limit: int,
        descending: bool,
    ) -> tuple[list[dict[str, Any]], bool]:
        """A part of the items, and whether there are more. Raises InvalidRequest for an unknown
        `after`."""
        async with self._service.catalog.reading() as tx:
            await conversation_session(tx, tenant_id, conversation_id)
            position = None
            if after is not None:
                try:
                    mark = await _item(tx, tenant_id, conversation_id, after)
                except NotFound as error:
                    raise InvalidRequest(
                        f"No item with id {after!r} to go on after.", param="after"
                    ) from error
                position = mark.position
            found = await tx.items.page_of_conversation(
                tenant_id,
                conversation_id,
                after=position,
                limit=limit + 1,
                descending=descending,
            )
        return shown(found[:limit]), len(found) > limit

    async def item(self, tenant_id: TenantId, conversation_id: str, item_id: str) -> dict[str, Any]:
        """One item."""
        async with self._service.catalog.reading() as tx:
            await conversation_session(tx, tenant_id, conversation_id)
            found = await _item(tx, tenant_id, conversation_id, item_id)
        return dict(found.data)

    async def remove_item(
        self, tenant_id: TenantId, conversation_id: str, item_id: str
    ) -> ConversationView:
        """Takes an item away; the next response does not know of it. Raises SessionBusy."""
        async with self._service.catalog.transaction() as tx:
            session = await self._free(tx, tenant_id, conversation_id)
            item = await _item(tx, tenant_id, conversation_id, item_id)
            await tx.items.leave_conversation(item)
        return ConversationView(conversation_id, session)

    async def _free(self, tx: Transaction, tenant_id: TenantId, conversation_id: str) -> Session:
        session = await conversation_session(tx, tenant_id, conversation_id)
        await check_free(tx, session, lock=True)
        return session

    async def _checked(
        self, tenant_id: TenantId, items: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        given = await self._openings.items(tenant_id, items)
        self._openings.messages(tenant_id, given)
        return numbered_items(given)


async def _item(tx: Transaction, tenant_id: TenantId, conversation_id: str, item_id: str) -> Item:
    if not is_item_id(item_id):
        raise NotFound("item", item_id)
    return await tx.items.in_conversation(tenant_id, conversation_id, item_id)


def _added(
    tenant_id: TenantId, conversation_id: str, items: Sequence[Mapping[str, Any]]
) -> list[Item]:
    now = now_us()
    return [
        Item(item["id"], tenant_id, None, conversation_id, "added", item, now) for item in items
    ]
