"""When API keys were last used: gathered in memory, written now and then, never by a request."""

from __future__ import annotations

import asyncio
import contextlib

from agentmem.catalog import Catalog
from agentmem.catalog.ids import now_us
from agentmem.errors import AgentmemError
from agentmem.telemetry import get_logger

_log = get_logger("agentmem.administration.uses")
WRITE_SECONDS = 15.0
_KEYS_MAX = 100_000


class KeyUses:
    """`note` is a dictionary's entry; `run` writes what is new, at most once a minute per key."""

    def __init__(self, catalog: Catalog, *, write_seconds: float = WRITE_SECONDS) -> None:
        self._catalog = catalog
        self._write_seconds = write_seconds
        self._used: dict[str, int] = {}
        self._stopping = asyncio.Event()

    def note(self, key_id: str) -> None:
        """The key was used now."""
        if len(self._used) < _KEYS_MAX or key_id in self._used:
            self._used[key_id] = now_us()

    async def run(self) -> None:
        """Writes until `stop`, and a last time then."""
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._write_seconds):
                    await self._stopping.wait()
            await self.write()

    def stop(self) -> None:
        """Has `run` end; a transaction is not cut off for it."""
        self._stopping.set()

    async def write(self) -> None:
        """Writes what was noted since the last time. What fails is noted again."""
        used, self._used = self._used, {}
        if not used:
            return
        try:
            async with self._catalog.transaction(durable=False) as tx:
                await tx.keys.note_uses(used)
        except AgentmemError as error:
            self._used = used | self._used
            _log.warning("last use of keys not written", error=error.message)
