"""Reads records out of object packs: in large ranges, some at once, with bounded memory."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence

from agentmem.errors import StoreRefused
from agentmem.pages.record import record_bytes
from agentmem.store.objectcopies import ObjectCopy, Range, ranges_of
from agentmem.store.objectindex import ObjectIndex
from agentmem.store.objectstore import ObjectStore
from agentmem.store.table import PageTable

logger = logging.getLogger(__name__)

_RANGES_AT_ONCE = 8


class ObjectReader:
    """Reads what the tier's table says is there."""

    def __init__(self, store: ObjectStore, index: ObjectIndex, table: PageTable) -> None:
        self._store = store
        self._index = index
        self._table = table

    async def fetch(
        self, copies: Sequence[ObjectCopy], timeout_seconds: float
    ) -> AsyncIterator[tuple[ObjectCopy, memoryview]]:
        """The records of these pages, in this order, unchecked.

        Adjacent records come in one read, and some reads are under way at once: no more than that
        are in memory while the caller uses what came. It ends early, without an error, at the
        deadline, when the store fails, and at a page that is gone.
        """
        deadline = time.monotonic() + timeout_seconds
        ranges = iter(ranges_of(copies))
        reads: deque[tuple[Range, asyncio.Task[list[memoryview]]]] = deque()
        try:
            while True:
                while len(reads) < _RANGES_AT_ONCE and (ahead := next(ranges, None)):
                    reads.append((ahead, asyncio.create_task(self._read(ahead))))
                if not reads:
                    return
                found, read = reads[0]
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    views = await read
                reads.popleft()
                for copy, view in zip(found.copies, views, strict=False):
                    yield copy, view
                if len(views) < len(found.copies):
                    logger.warning("object pages do not come: they are gone")
                    return
        except (TimeoutError, StoreRefused) as error:
            logger.warning("object pages do not come: %s", str(error) or "not in time")
        finally:
            for _, read in reads:
                read.cancel()
            await asyncio.gather(*(read for _, read in reads), return_exceptions=True)

    async def _read(self, found: Range) -> list[memoryview]:
        """The records of a range: fewer, counted from the first, when some are gone."""
        data = await self._range(found.copies[0].pack, found.start, found.end)
        views: list[memoryview] = []
        for copy in found.copies:
            if data is not None:
                at = copy.offset - found.start
                views.append(data[at : at + record_bytes(copy.payload_bytes)])
                continue
            # Its object was rewritten since it was looked up: it lies elsewhere, if anywhere.
            now = self._table.get(copy.key)
            if now is None or (now.pack, now.offset) == (copy.pack, copy.offset):
                break
            end = now.offset + record_bytes(now.payload_bytes)
            view = await self._range(now.pack, now.offset, end)
            if view is None:
                break
            views.append(view)
        return views

    async def _range(self, pack: int, start: int, end: int) -> memoryview | None:
        """Bytes of an object; None when it, or a part of them, is gone. Raises StoreRefused."""
        name = self._index.name(pack)
        data = None if name is None else await self._store.get_range(name, start, end)
        return data if data is not None and data.nbytes == end - start else None
