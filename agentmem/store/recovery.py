"""What the disk tier does once at start: bring packs and index together again.

A crash can leave records behind the committed end of a pack (kept when they are whole, cut off when
torn), packs that the index does not know (the index was lost: everything is read again) and index
entries whose bytes are gone (dropped).
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import NamedTuple

import lmdb

from agentmem.errors import PageCorrupt
from agentmem.pages.record import record_bytes
from agentmem.store.index import Extent, PackState, PageIndex
from agentmem.store.pack import (
    PACK_HEADER_BYTES,
    Found,
    check_pack,
    pack_number,
    punch,
    scan_records,
)

logger = logging.getLogger(__name__)


class Recovery(NamedTuple):
    """Counts of what was found at start."""

    added_pages: int
    lost_pages: int
    cut_bytes: int
    index_rebuilt: bool


def open_index(path: Path) -> tuple[PageIndex, bool]:
    """Opens the index; one that cannot be read is set aside and made anew. (index, was made)."""
    fresh = not (path / "data.mdb").exists()
    try:
        index = PageIndex(path)
        index.packs()
    except lmdb.Error as error:
        aside = path.with_name(f"{path.name}.bad-{time.time_ns()}")
        logger.error("the index is unreadable (%s): kept as %s, rebuilt from packs", error, aside)
        path.rename(aside)
        return PageIndex(path), True
    return index, fresh


def recover(directory: Path, index: PageIndex, *, rebuilt: bool) -> Recovery:
    """Makes the index say what the packs hold. Raises OSError when the directory is unreadable."""
    files = {n: p for p in directory.iterdir() if (n := pack_number(p)) is not None}
    lost = _forget_lost(index, files)
    states = index.packs()
    newest = max(files, default=-1)
    added = cut = 0
    for number in sorted(files):
        extents, state, cut_bytes = _read_tail(files[number], number, states.get(number))
        sealed = state.sealed or number != newest
        refused = index.commit(extents, {number: PackState(state.committed_end, sealed)})
        added += len(extents) - len(refused)
        cut += cut_bytes
    return Recovery(added, lost, cut, rebuilt and bool(files))


def _forget_lost(index: PageIndex, files: dict[int, Path]) -> int:
    """Drops index entries whose bytes are not in the packs any more."""
    sizes = {number: path.stat().st_size for number, path in files.items()}
    lost = [
        extent
        for extent in index.extents()
        if extent.offset + record_bytes(extent.payload_bytes) > sizes.get(extent.pack, 0)
    ]
    gone = [number for number in index.packs() if number not in files]
    if lost or gone:
        logger.error("%d pages and packs %s are missing on disk: forgotten", len(lost), gone)
        index.forget(lost, gone)
    return len(lost)


def _read_tail(
    path: Path, number: int, state: PackState | None
) -> tuple[list[Extent], PackState, int]:
    """Reads what lies behind a pack's committed end, and cuts off what is torn."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        sealed = state.sealed if state else False
        try:
            check_pack(fd, number)
        except PageCorrupt as error:
            # Records say everything about themselves: read on, but append nothing more.
            logger.warning("%s", error)
            sealed = True
        start = state.committed_end if state else PACK_HEADER_BYTES
        size = os.fstat(fd).st_size
        found = scan_records(fd, start)
        end = _destroy_gaps(fd, found, start)
        if size != end:
            os.ftruncate(fd, end)
        os.fsync(fd)
    finally:
        os.close(fd)
    extents = [
        Extent(f.header.key, number, f.offset, f.header.payload_bytes, f.header.sequence)
        for f in found
    ]
    return extents, PackState(end, sealed), max(0, size - end)


def _destroy_gaps(fd: int, found: list[Found], start: int) -> int:
    """Punches the torn bytes between whole records. Returns the end of the last record."""
    end = start
    for record in found:
        if record.offset > end:
            punch(fd, end, record.offset - end)
        end = record.offset + record_bytes(record.header.payload_bytes)
    return end
