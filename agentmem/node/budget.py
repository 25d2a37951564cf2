"""How much the agent buffers for frames that it has not read to their end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

# Frames up to this size are bounded by the number of connections alone.
SMALL_BYTES = 64 << 10
BUFFERED_BYTES_MAX = 128 << 20


class FrameBudget:
    """Large frames of all connections share `limit_bytes`; those beyond it wait for room."""

    def __init__(self, limit_bytes: int = BUFFERED_BYTES_MAX) -> None:
        self._free_bytes = limit_bytes
        self._freed = asyncio.Condition()

    @asynccontextmanager
    async def room(self, size: int) -> AsyncIterator[None]:
        """Holds `size` bytes of the budget; waits until they are free."""
        if size <= SMALL_BYTES:
            yield
            return
        async with self._freed:
            await self._freed.wait_for(lambda: self._free_bytes >= size)
            self._free_bytes -= size
        try:
            yield
        finally:
            self._free_bytes += size
            async with self._freed:
                self._freed.notify_all()
