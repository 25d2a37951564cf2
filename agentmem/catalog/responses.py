"""Response objects: rows beside the turns that made them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from agentmem.catalog import tables
from agentmem.catalog.records import Response
from agentmem.core import TenantId, TurnId
from agentmem.errors import NotFound


class Responses:
    """Statements on `responses`; see `database.Transaction`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def insert(self, response: Response) -> None:
        """Writes one response's row."""
        await self._connection.execute(
            insert(tables.responses).values(
                id=response.id,
                tenant_id=response.tenant_id,
                surface=response.surface,
                status=response.status,
                stored=int(response.stored),
                session_id=response.session_id,
                turn_id=response.turn_id,
                previous_response_id=response.previous_response_id,
                conversation_id=response.conversation_id,
                request=dict(response.request),
                error=None if response.error is None else dict(response.error),
                deltas=response.deltas,
                created_at=response.created_at,
                completed_at=response.completed_at,
                expires_at=response.expires_at,
            )
        )

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


def _response(row: Row[Any]) -> Response:
    fields = dict(row._mapping)
    fields["stored"] = bool(fields["stored"])
    return Response(**fields)
