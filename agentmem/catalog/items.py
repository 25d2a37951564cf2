"""Items of responses and conversations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from agentmem.catalog import tables
from agentmem.catalog.records import Item
from agentmem.core import TenantId
from agentmem.errors import NotFound

# SQLite takes 32,766 parameters per statement; smaller chunks keep statements cheap to parse.
_IDS_PER_STATEMENT = 500

# Made once: building a statement takes longer than running it.
_INSERT = insert(tables.items)


class Items:
    """Statements on `items`; see `database.Transaction`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def append(self, items: Sequence[Item]) -> None:
        """Writes items after all others, in order; their `position` is the database's."""
        if not items:
            return
        await self._connection.execute(
            _INSERT,
            [
                {
                    "id": item.id,
                    "tenant_id": item.tenant_id,
                    "response_id": item.response_id,
                    "conversation_id": item.conversation_id,
                    "kind": item.kind,
                    "data": dict(item.data),
                    "created_at": item.created_at,
                }
                for item in items
            ],
        )

    async def find(self, tenant_id: TenantId, item_id: str) -> Item | None:
        """The newest item with this id, wherever it is."""
        table = tables.items
        row = (
            await self._connection.execute(
                select(table)
                .where(table.c.tenant_id == tenant_id, table.c.id == item_id)
                .order_by(table.c.position.desc())
                .limit(1)
            )
        ).first()
        return None if row is None else _item(row)

    async def of_responses(
        self, tenant_id: TenantId, response_ids: Sequence[str]
    ) -> dict[str, list[Item]]:
        """Items by response, in order."""
        table = tables.items
        found: dict[str, list[Item]] = {response_id: [] for response_id in response_ids}
        for start in range(0, len(response_ids), _IDS_PER_STATEMENT):
            ids = response_ids[start : start + _IDS_PER_STATEMENT]
            rows = await self._connection.execute(
                select(table)
                .where(table.c.response_id.in_(ids), table.c.tenant_id == tenant_id)
                .order_by(table.c.position)
            )
            for row in rows:
                found[row.response_id].append(_item(row))
        return found

    async def of_conversation(
        self, tenant_id: TenantId, conversation_id: str, *, before: int | None = None
    ) -> list[Item]:
        """All items of a conversation in order, those at `before` and later left out."""
        table = tables.items
        query = select(table).where(
            table.c.conversation_id == conversation_id, table.c.tenant_id == tenant_id
        )
        if before is not None:
            query = query.where(table.c.position < before)
        rows = await self._connection.execute(query.order_by(table.c.position))
        return [_item(row) for row in rows]

    async def in_conversation(
        self, tenant_id: TenantId, conversation_id: str, item_id: str
    ) -> Item:
        """One item of a conversation. Raises NotFound."""
        table = tables.items
        row = (
            await self._connection.execute(
                select(table).where(
                    table.c.conversation_id == conversation_id,
                    table.c.tenant_id == tenant_id,
                    table.c.id == item_id,
                )
            )
        ).first()
        if row is None:
            raise NotFound("item", item_id)
        return _item(row)

    async def ids_in_conversation(
        self, tenant_id: TenantId, conversation_id: str, item_ids: Sequence[str]
    ) -> set[str]:
        """Those of the ids (few) that items of the conversation have."""
        table = tables.items
        rows = await self._connection.execute(
            select(table.c.id).where(
                table.c.conversation_id == conversation_id,
                table.c.tenant_id == tenant_id,
                table.c.id.in_(item_ids),
            )
        )
        return {row.id for row in rows}

    async def page_of_conversation(
        self,
        tenant_id: TenantId,
        conversation_id: str,
        *,
        after: int | None,
        limit: int,
        descending: bool,
    ) -> list[Item]:
        """Up to `limit` items, from after the position `after` on."""
        table = tables.items
        query = select(table).where(
            table.c.conversation_id == conversation_id, table.c.tenant_id == tenant_id
        )
        if after is not None:
            query = query.where(
                table.c.position < after if descending else table.c.position > after
            )
        order = table.c.position.desc() if descending else table.c.position
        rows = await self._connection.execute(query.order_by(order).limit(limit))
        return [_item(row) for row in rows]

    async def leave_conversation(self, item: Item) -> None:
        """Takes an item out of its conversation; one of a response stays that response's."""
        table = tables.items
        mine = (table.c.position == item.position) & (table.c.tenant_id == item.tenant_id)
        if item.response_id is None:
            await self._connection.execute(delete(table).where(mine))
        else:
            await self._connection.execute(update(table).where(mine).values(conversation_id=None))

    async def leave_response(self, tenant_id: TenantId, response_id: str) -> None:
        """Leaves a response's items to the conversation that they are in, if they are in one."""
        table = tables.items
        await self._connection.execute(
            update(table)
            .where(
                table.c.response_id == response_id,
                table.c.tenant_id == tenant_id,
                table.c.conversation_id.is_not(None),
            )
            .values(response_id=None)
        )

    async def delete_conversation(self, tenant_id: TenantId, conversation_id: str) -> None:
        """Deletes all items of a conversation."""
        table = tables.items
        await self._connection.execute(
            delete(table).where(
                table.c.conversation_id == conversation_id, table.c.tenant_id == tenant_id
            )
        )


def _item(row: Row[Any]) -> Item:
    return Item(**row._mapping)
