"""Items of responses and conversations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from agentmem.catalog import tables
from agentmem.catalog.records import Item


class Items:
    """Statements on `items`; see `database.Transaction`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def append(self, items: Sequence[Item]) -> None:
        """Writes items after all others, in order; their `position` is the database's."""
        if not items:
            return
        await self._connection.execute(
            insert(tables.items),
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


def _item(row: Row[Any]) -> Item:
    return Item(**row._mapping)
