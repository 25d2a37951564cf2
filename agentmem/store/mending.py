"""What is done about bytes in packs that neither a page nor a deletion refers to.

An index that was damaged, or a truncation that failed, leaves such bytes behind. Whole records in
them that something claims become pages again; the rest is destroyed. A record that nothing claims
stays gone: it may be what was left of a deletion.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from agentmem.pages.record import record_bytes
from agentmem.store.audit import Difference
from agentmem.store.index import Extent, PageIndex
from agentmem.store.pack import Found, pack_name, punch, scan_records


class Mended(NamedTuple):
    """A run of bytes that nothing referred to: the pages found in it, and what was done."""

    difference: Difference
    taken_in: list[Extent]
    detail: str


class Mender:
    """Mends the packs below one directory. To be used in the index thread."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def mend(
        self, differences: Sequence[Difference], index: PageIndex, now_us: int
    ) -> list[Mended]:
        """Mends every `orphan` among these. Raises OSError, lmdb.Error."""
        orphans = [difference for difference in differences if difference.kind == "orphan"]
        return [self._mend(orphan, index, now_us) for orphan in orphans]

    def _mend(self, orphan: Difference, index: PageIndex, now_us: int) -> Mended:
        end = orphan.offset + orphan.size_bytes
        fd = os.open(self._directory / pack_name(orphan.pack), os.O_RDWR | os.O_CLOEXEC)
        try:
            found = [_extent(each, orphan.pack) for each in scan_records(fd, orphan.offset, end)]
            claimed = index.claims.claimed([extent.key for extent in found], now_us)
            wanted = [extent for extent in found if extent.key in claimed]
            refused = {extent.offset for extent in index.commit(wanted, {})}
            taken_in = [extent for extent in wanted if extent.offset not in refused]
            destroyed = _destroy_between(fd, taken_in, orphan.offset, end)
        finally:
            os.close(fd)
        # `commit` listed these for destruction, which they are.
        index.finish([(orphan.pack, offset) for offset in refused], [])
        detail = f"{len(taken_in)} claimed pages taken in, {destroyed} bytes destroyed"
        return Mended(orphan, taken_in, detail)


def _extent(found: Found, pack: int) -> Extent:
    header = found.header
    key_id = header.seal.key_id if header.seal else b""
    return Extent(
        header.key, pack, found.offset, header.payload_bytes, header.sequence, key_id=key_id
    )


def _destroy_between(fd: int, kept: Sequence[Extent], start: int, end: int) -> int:
    """Punches what lies between the kept records. Returns how many bytes that were."""
    destroyed = 0
    for extent in kept:
        if extent.offset > start:
            punch(fd, start, extent.offset - start)
            destroyed += extent.offset - start
        start = extent.offset + record_bytes(extent.payload_bytes)
    if end > start:
        punch(fd, start, end - start)
        destroyed += end - start
    os.fsync(fd)
    return destroyed
