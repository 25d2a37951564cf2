"""Response objects: rows beside the turns that made them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, delete, insert, literal, select
from sqlalchemy.ext.asyncio import AsyncConnection

from agentmem.catalog import tables
from agentmem.catalog.records import Response
from agentmem.catalog.upserts import upsert
from agentmem.core import TenantId, TurnId
from agentmem.errors import NotFound

# Made once: building a statement takes longer than running it.
_INSERT = insert(tables.responses)


class Responses:
    """Statements on `responses`; see `database.Transaction`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def insert(self, response: Response) -> None:
        """Writes one response's row."""
        await self._connection.execute(_INSERT, _values(response))

    async def insert_first(self, response: Response) -> bool:
        """As `insert`; False where another was quicker to write a row with this id."""
        table = tables.responses
        statement = (
            upsert(self._connection, table)
            .on_conflict_do_nothing(index_elements=["id"])
            .returning(table.c.id)
        )
        return (await self._connection.execute(statement, _values(response))).first() is not None

    async def get(self, tenant_id: TenantId, response_id: str) -> Response:
        """A stored response. Raises NotFound for unknown ids and those of other tenants alike."""
        table = tables.responses
        row = (
            await self._connection.execute(
                select(table).where(
                    table.c.id == response_id,
                    table.c.tenant_id == tenant_id,
                    table.c.stored == 1,
                )
            )
        ).first()
        if row is None:
            raise NotFound("response", response_id)
        return _response(row)

    async def of_turn(self, tenant_id: TenantId, turn_id: TurnId) -> Response | None:
        """The response that a turn made, stored or not."""
        table = tables.responses
        row = (
            await self._connection.execute(
                select(table).where(table.c.turn_id == turn_id, table.c.tenant_id == tenant_id)
            )
        ).first()
        return None if row is None else _response(row)

    async def lineage(self, tenant_id: TenantId, response_id: str) -> list[Response]:
        """A stored response with those that it goes back to, oldest first; as far as they are
        there. Raises NotFound for the response itself."""
        table = tables.responses
        mine = (table.c.tenant_id == tenant_id) & (table.c.stored == 1)
        walk = (
            select(table.c.id, table.c.previous_response_id, literal(0).label("depth"))
            .where(mine, table.c.id == response_id)
            .cte("lineage", recursive=True)
        )
        walk = walk.union_all(
            select(table.c.id, table.c.previous_response_id, walk.c.depth + 1).where(
                mine, table.c.id == walk.c.previous_response_id
            )
        )
        rows = await self._connection.execute(
            select(table).join(walk, walk.c.id == table.c.id).order_by(walk.c.depth.desc())
        )
        found = [_response(row) for row in rows]
        if not found:
            raise NotFound("response", response_id)
        return found

    async def delete_in_conversation(self, tenant_id: TenantId, conversation_id: str) -> None:
        """Deletes the rows of all responses of a conversation, with their items."""
        table = tables.responses
        await self._connection.execute(
            delete(table).where(
                table.c.conversation_id == conversation_id, table.c.tenant_id == tenant_id
            )
        )

    async def delete(self, tenant_id: TenantId, response_id: str) -> None:
        """Deletes a stored response's row with its items. Raises NotFound."""
        table = tables.responses
        result = await self._connection.execute(
            delete(table).where(
                table.c.id == response_id, table.c.tenant_id == tenant_id, table.c.stored == 1
            )
        )
        if result.rowcount == 0:
            raise NotFound("response", response_id)


def _values(response: Response) -> dict[str, Any]:
    return {
        "id": response.id,
        "tenant_id": response.tenant_id,
        "surface": response.surface,
        "status": response.status,
        "stored": int(response.stored),
        "session_id": response.session_id,
        "turn_id": response.turn_id,
        "previous_response_id": response.previous_response_id,
        "conversation_id": response.conversation_id,
        "request": dict(response.request),
        "error": None if response.error is None else dict(response.error),
        "deltas": response.deltas,
        "created_at": response.created_at,
        "completed_at": response.completed_at,
        "expires_at": response.expires_at,
        "project_id": response.project_id,
    }


def _response(row: Row[Any]) -> Response:
    fields = dict(row._mapping)
    fields["stored"] = bool(fields["stored"])
    return Response(**fields)
