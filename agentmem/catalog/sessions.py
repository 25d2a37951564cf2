"""Sessions: one row per conversation, pointing at the end of its chain of turns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import Row, delete, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from agentmem.catalog import tables
from agentmem.catalog.ids import default_project, now_us
from agentmem.catalog.records import Session, Turn, Worker
from agentmem.core import ProjectId, SessionId, TenantId, TurnId
from agentmem.errors import InvalidRequest, NotFound

# Made once: building a statement takes longer than running it.
_INSERT_SESSION = insert(tables.sessions)
_INSERT_LEASE = insert(tables.leases)


class Sessions:
    """Statements on `sessions`; see `database.Transaction`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def create(self, session: Session) -> None:
        """Writes a session's row and its (free) lease."""
        values = asdict(session)
        values["metadata"] = dict(session.metadata)
        await self._connection.execute(_INSERT_SESSION, values)
        await self._connection.execute(
            _INSERT_LEASE,
            {
                "session_id": session.id,
                "tenant_id": session.tenant_id,
                "owner": None,
                "generation": 0,
                "expires_at": 0,
            },
        )

    async def get(self, tenant_id: TenantId, session_id: str) -> Session:
        """Raises NotFound for unknown ids and those of other tenants alike."""
        table = tables.sessions
        row = (
            await self._connection.execute(
                select(table).where(table.c.id == session_id, table.c.tenant_id == tenant_id)
            )
        ).first()
        if row is None:
            raise NotFound("session", session_id)
        return _session(row)

    async def with_head(self, tenant_id: TenantId, turn_id: str) -> Session | None:
        """The session whose log ends with this turn, the newest if there are several."""
        table = tables.sessions
        row = (
            await self._connection.execute(
                select(table)
                .where(table.c.head_turn_id == turn_id, table.c.tenant_id == tenant_id)
                .order_by(table.c.created_at.desc())
                .limit(1)
            )
        ).first()
        return None if row is None else _session(row)

    async def of_turn(self, tenant_id: TenantId, turn_id: str) -> Session | None:
        """The session that made a turn, if it is still there."""
        table, turns = tables.sessions, tables.turns
        row = (
            await self._connection.execute(
                select(table)
                .join(turns, turns.c.session_id == table.c.id)
                .where(turns.c.id == turn_id, table.c.tenant_id == tenant_id)
            )
        ).first()
        return None if row is None else _session(row)

    async def list(
        self,
        tenant_id: TenantId,
        *,
        after: str | None,
        limit: int,
        descending: bool = True,
        origin: str | None = None,
        project_id: ProjectId | None = None,
    ) -> list[Session]:
        """Up to `limit` sessions by creation, from after the session `after` on.

        With `origin` only those that were made that way, with `project_id` those of that project.
        Raises InvalidRequest when `after` is no
        session of this tenant.
        """
        table = tables.sessions
        query = select(table).where(table.c.tenant_id == tenant_id)
        if origin is not None:
            query = query.where(table.c.origin == origin)
        if project_id is not None:
            of_project = table.c.project_id == project_id
            if project_id == default_project(tenant_id):
                of_project |= table.c.project_id.is_(None)
            query = query.where(of_project)
        order = tuple_(table.c.created_at, table.c.id)
        if after is not None:
            try:
                mark = await self.get(tenant_id, after)
            except NotFound as error:
                raise InvalidRequest(
                    f"No session with id {after!r} to go on after.", param="after"
                ) from error
            position = tuple_(mark.created_at, mark.id)
            query = query.where(order < position if descending else order > position)
        if descending:
            query = query.order_by(table.c.created_at.desc(), table.c.id.desc())
        else:
            query = query.order_by(table.c.created_at, table.c.id)
        return [_session(row) for row in await self._connection.execute(query.limit(limit))]

    async def advance(self, session: Session, turn: Turn, worker: Worker) -> int | None:
        """Makes `turn` the head, if the head is still the one that `session` has; else None.

        Returns the durable position (tokens) that the session then has: cut back to what the turn
        kept of the log, and to 0 when the turn ran under another fingerprint, since the pages
        below that position are then other pages.
        """
        table, now = tables.sessions, now_us()
        digest = worker.fingerprint.digest.hex()
        same_pages = (session.fingerprint, session.page_tokens) == (digest, worker.page_tokens)
        durable = min(session.durable_position, turn.keep) if same_pages else 0
        durable -= durable % worker.page_tokens
        result = await self._connection.execute(
            update(table)
            .where(
                table.c.id == session.id,
                table.c.tenant_id == session.tenant_id,
                table.c.head_turn_id.is_(None)
                if session.head_turn_id is None
                else table.c.head_turn_id == session.head_turn_id,
            )
            .values(
                model=session.model,
                head_turn_id=turn.id,
                turns=turn.number,
                tokens=turn.log_tokens,
                durable_position=durable,
                rebases=table.c.rebases + int(turn.rebased),
                state="active",
                worker_id=worker.id,
                worker_generation=worker.generation,
                fingerprint=digest,
                page_tokens=worker.page_tokens,
                retention=session.retention,
                asked_retention=session.asked_retention,
                # Promised are the pages that the new log's claim will be.
                promised_pages=None,
                promise_reason=None,
                kv_retention_seconds=session.kv_retention_seconds,
                log_retention_seconds=session.log_retention_seconds,
                expires_at=now + session.log_retention_seconds * 1_000_000,
                updated_at=now,
            )
        )
        return durable if result.rowcount == 1 else None

    async def retract(self, session: Session, end: Turn) -> None:
        """Moves the end of a log back to an earlier turn of it."""
        table = tables.sessions
        page = session.page_tokens or 1
        durable = min(session.durable_position, end.log_tokens)
        await self._connection.execute(
            update(table)
            .where(table.c.id == session.id, table.c.tenant_id == session.tenant_id)
            .values(
                head_turn_id=end.id,
                turns=end.number,
                tokens=end.log_tokens,
                durable_position=durable - durable % page,
                updated_at=now_us(),
            )
        )

    async def set_durable(
        self, tenant_id: TenantId, session_id: SessionId, head: TurnId, *, position: int
    ) -> bool:
        """Records the durable position (tokens) of the log that ends with the turn `head`."""
        table = tables.sessions
        result = await self._connection.execute(
            update(table)
            .where(
                table.c.id == session_id,
                table.c.tenant_id == tenant_id,
                table.c.head_turn_id == head,
            )
            .values(durable_position=position)
        )
        return result.rowcount == 1

    async def set_promise(
        self,
        tenant_id: TenantId,
        session_id: SessionId,
        head: TurnId,
        *,
        pages: int | None,
        reason: str | None,
    ) -> bool:
        """Records how many pages of the log that ends with the turn `head` are promised, and why no
        more; None: all of them. False: it is so already, or the log went on."""
        table = tables.sessions
        result = await self._connection.execute(
            update(table)
            .where(
                table.c.id == session_id,
                table.c.tenant_id == tenant_id,
                table.c.head_turn_id == head,
                table.c.promised_pages.is_distinct_from(pages)
                | table.c.promise_reason.is_distinct_from(reason),
            )
            .values(promised_pages=pages, promise_reason=reason)
        )
        return result.rowcount == 1

    async def set_state(
        self, tenant_id: TenantId, session_id: SessionId, state: str, *, worker: Worker | None
    ) -> None:
        """Changes the state ("active" or "hibernated") and, where given, the last worker."""
        table = tables.sessions
        values: dict[str, Any] = {"state": state, "updated_at": now_us()}
        if worker is not None:
            values |= {
                "worker_id": worker.id,
                "worker_generation": worker.generation,
                "fingerprint": worker.fingerprint.digest.hex(),
                "page_tokens": worker.page_tokens,
            }
        await self._connection.execute(
            update(table)
            .where(table.c.id == session_id, table.c.tenant_id == tenant_id)
            .values(**values)
        )

    async def change_metadata(self, session: Session, metadata: Mapping[str, str]) -> None:
        """Replaces a session's metadata."""
        await self._update(session, {"metadata": dict(metadata), "updated_at": now_us()})

    async def renew(self, session: Session) -> None:
        """Lets the session's term begin anew: something was added to what it stands for."""
        now = now_us()
        expires_at = now + session.log_retention_seconds * 1_000_000
        await self._update(session, {"expires_at": expires_at, "updated_at": now})

    async def _update(self, session: Session, values: dict[str, Any]) -> None:
        table = tables.sessions
        await self._connection.execute(
            update(table)
            .where(table.c.id == session.id, table.c.tenant_id == session.tenant_id)
            .values(**values)
        )

    async def delete(self, tenant_id: TenantId, session_id: str) -> None:
        """Deletes the row and its lease; the turns are `Turns.prune`'s. Raises NotFound."""
        table = tables.sessions
        result = await self._connection.execute(
            delete(table).where(table.c.id == session_id, table.c.tenant_id == tenant_id)
        )
        if result.rowcount == 0:
            raise NotFound("session", session_id)


def _session(row: Row[Any]) -> Session:
    return Session(**row._mapping)
