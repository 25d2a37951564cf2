"""Locks on names, where there is no row to lock."""

from __future__ import annotations

import hashlib

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

_LOCK = text("SELECT pg_advisory_xact_lock(:number)")


async def lock_name(connection: AsyncConnection, name: str) -> None:
    """Has other transactions that lock this name wait until this one ends.

    On SQLite, which has one writer, nothing has to be done.
    """
    if connection.dialect.name == "sqlite":
        return
    digest = hashlib.sha256(name.encode()).digest()
    await connection.execute(_LOCK, {"number": int.from_bytes(digest[:8], signed=True)})
