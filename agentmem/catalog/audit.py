"""The audit log: append-only, each entry hashed together with the one before. Each is an
operators' function.

The hash is SHA-256 over `agentmem audit 1` and, each behind its length (8 bytes, big-endian):
sequence, time, actor, action, target, tenant ("" where there is none), details, previous hash.
Numbers are decimal. Before the first entry stand 32 zero bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from agentmem.catalog import admin_tables as tables
from agentmem.catalog.ids import now_us
from agentmem.catalog.records import AuditEntry
from agentmem.core import TenantId
from agentmem.errors import InvalidRequest

FIRST_HASH = bytes(32)
_HEAD = 1
_DOMAIN = b"agentmem audit 1"
_DETAILS_CHARACTERS_MAX = 8_000
_BATCH = 1_000


def entry_hash(entry: AuditEntry) -> bytes:
    """What the entry's hash must be: 32 bytes."""
    digest = hashlib.sha256(_DOMAIN)
    fields = (
        str(entry.sequence).encode(),
        str(entry.at).encode(),
        entry.actor.encode(),
        entry.action.encode(),
        entry.target.encode(),
        (entry.tenant_id or "").encode(),
        entry.details.encode(),
        entry.previous_hash,
    )
    for field in fields:
        digest.update(len(field).to_bytes(8, "big") + field)
    return digest.digest()


class Audit:
    """Statements on `audit_log` and `audit_head`; see `database.Transaction`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def append(
        self,
        *,
        actor: str,
        action: str,
        target: str,
        tenant_id: TenantId | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> int:
        """Adds an entry in the transaction of the act that it tells of; returns its sequence.

        Call it last: the end of the chain stays locked until the transaction ends, so that
        gateways append one after the other. Raises InvalidRequest for details that are too long.
        """
        told = json.dumps(
            dict(details or {}), sort_keys=True, separators=(",", ":"), allow_nan=False
        )
        if len(told) > _DETAILS_CHARACTERS_MAX:
            raise InvalidRequest(
                f"The act's details have {len(told)} characters; the audit log takes "
                f"{_DETAILS_CHARACTERS_MAX}."
            )
        head = tables.audit_head
        row = (
            await self._connection.execute(
                update(head)
                .where(head.c.id == _HEAD)
                .values(sequence=head.c.sequence + 1)
                .returning(head.c.sequence, head.c.hash)
            )
        ).one()
        entry = AuditEntry(
            row.sequence, now_us(), actor, action, target, tenant_id, told, row.hash, b""
        )
        digest = entry_hash(entry)
        await self._connection.execute(
            insert(tables.audit_log).values(
                sequence=entry.sequence,
                at=entry.at,
                actor=actor,
                action=action,
                target=target,
                tenant_id=tenant_id,
                details=told,
                previous_hash=entry.previous_hash,
                hash=digest,
            )
        )
        await self._connection.execute(update(head).where(head.c.id == _HEAD).values(hash=digest))
        return entry.sequence

    async def head(self) -> tuple[int, bytes]:
        """Sequence and hash of the last entry, as the chain's end has them; 0 before the first."""
        head = tables.audit_head
        row = (
            await self._connection.execute(
                select(head.c.sequence, head.c.hash).where(head.c.id == _HEAD)
            )
        ).one()
        return row.sequence, row.hash

    async def list(
        self,
        *,
        before: int | None,
        limit: int,
        tenant_id: TenantId | None = None,
        action: str | None = None,
        target: str | None = None,
    ) -> list[AuditEntry]:
        """Up to `limit` entries, newest first, from before the sequence `before` on."""
        table = tables.audit_log
        query = select(table)
        wanted = {"tenant_id": tenant_id, "action": action, "target": target}
        for name, value in wanted.items():
            if value is not None:
                query = query.where(table.c[name] == value)
        if before is not None:
            query = query.where(table.c.sequence < before)
        rows = await self._connection.execute(query.order_by(table.c.sequence.desc()).limit(limit))
        return [AuditEntry(**row._mapping) for row in rows]

    async def walk(self) -> AsyncIterator[AuditEntry]:
        """All entries in order, a thousand in memory at a time."""
        table, last = tables.audit_log, -1
        while True:
            rows = (
                await self._connection.execute(
                    select(table)
                    .where(table.c.sequence > last)
                    .order_by(table.c.sequence)
                    .limit(_BATCH)
                )
            ).all()
            for row in rows:
                yield AuditEntry(**row._mapping)
            if len(rows) < _BATCH:
                return
            last = rows[-1].sequence
