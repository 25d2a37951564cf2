"""Compaction: which pack is mostly empty, and the records in it that are still pages.

Where the file system punches holes, deleted records give their space back by themselves, and a pack
is rewritten only when little is left in it. Elsewhere rewriting is what gives space back. Records
are copied as they lie there, sealed ones too: their checksum needs no key.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

from agentmem.pages.record import record_bytes
from agentmem.store.index import Extent
from agentmem.store.pack import PACK_HEADER_BYTES, Found, pack_name, scan_records
from agentmem.store.packwriter import Record
from agentmem.store.space import PackSpace
from agentmem.store.table import PageTable

logger = logging.getLogger(__name__)

LIVE_SHARE = 0.25
LIVE_SHARE_WITHOUT_HOLES = 0.5


class Compactor:
    """Chooses packs and reads them. The disk tier writes what it read, and moves the pages."""

    def __init__(self, directory: Path, space: PackSpace, table: PageTable) -> None:
        self._directory = directory
        self._space = space
        self._table = table
        # Packs with pages whose records cannot be read: those stay there until they are removed.
        self._stuck: set[int] = set()

    async def read(self, in_use: frozenset[int], *, has_holes: bool) -> list[tuple[Extent, Record]]:
        """The pages of the pack that most wants rewriting, with their records in offset order.

        Empty when none does. Raises OSError.
        """
        share = LIVE_SHARE if has_holes else LIVE_SHARE_WITHOUT_HOLES
        number = self._space.sparsest(share, in_use | self._stuck)
        if number is None:
            return []
        path = self._directory / pack_name(number)
        found = await asyncio.to_thread(_scan, path)
        live = []
        for record in found:
            extent = self._table.get(record.header.key)
            if extent is not None and (extent.pack, extent.offset) == (number, record.offset):
                live.append(extent)
        size_bytes = sum(record_bytes(extent.payload_bytes) for extent in live)
        if size_bytes < self._space.live_bytes(number):
            logger.error("pack %d: some of its pages cannot be read, it stays", number)
            self._stuck.add(number)
        return await asyncio.to_thread(_read, path, live, size_bytes)


def _scan(path: Path) -> list[Found]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return scan_records(fd, PACK_HEADER_BYTES)
    finally:
        os.close(fd)


def _read(path: Path, live: Sequence[Extent], size_bytes: int) -> list[tuple[Extent, Record]]:
    """The records of these extents, in memory that is aligned for direct writes."""
    if not live:
        return []
    memory = memoryview(mmap.mmap(-1, size_bytes))
    records = []
    at = 0
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for extent in live:
            view = memory[at : at + record_bytes(extent.payload_bytes)]
            at += len(view)
            # What cannot be read whole is not moved: deleted meanwhile, or a failing medium.
            if os.preadv(fd, [view], extent.offset) == len(view):
                records.append((extent, _record(extent, view)))
    finally:
        os.close(fd)
    return records


def _record(extent: Extent, view: memoryview) -> Record:
    return Record(
        extent.key, view, extent.payload_bytes, extent.sequence, extent.position, extent.key_id
    )
