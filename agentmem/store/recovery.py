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
from agentmem.store.lmdbfile import problems_of, set_aside
from agentmem.store.pack import (
    PACK_HEADER_BYTES,
    Found,
    check_pack,
    pack_number,
    punch,
    scan_records,
)
from agentmem.store.space import PackSpace
from agentmem.store.table import PageTable

logger = logging.getLogger(__name__)


class Recovery(NamedTuple):
    """Counts of what was found at start."""

    added_pages: int
    lost_pages: int
    cut_bytes: int
    index_rebuilt: bool


def open_index(path: Path) -> tuple[PageIndex, bool]:
    """Opens the index; one that is damaged is set aside and made anew. (index, was made).

    LMDB trusts its file: a damaged one can end the process at any later call. So its structure is
    looked through before it is opened, which takes some three seconds for a million pages.
    """
    fresh = not (path / "data.mdb").exists()
    if not fresh and (problems := problems_of(path)):
        logger.error("the index is damaged: %s", "; ".join(problems[:3]))
        set_aside(path)
        return PageIndex(path), True
    try:
        index = PageIndex(path)
        index.packs()
    except lmdb.Error as error:
        logger.error("the index is unreadable: %s", error)
        set_aside(path)
        return PageIndex(path), True
    return index, fresh


def recover(
    directory: Path, table: PageTable, space: PackSpace, index: PageIndex, rebuilt: bool
) -> Recovery:
    """Makes the index say what the packs hold, and fills table and space from it.

    Raises OSError when the directory is unreadable, lmdb.Error when the index is: it may be called
    again then, with another.
    """
    table.clear()
    space.clear()
    files = {n: p for p in directory.iterdir() if (n := pack_number(p)) is not None}
    lost = _load(index, table, space, {n: path.stat().st_size for n, path in files.items()})
    states = index.packs()
    gone = [number for number in states if number not in files]
    if lost or gone:
        logger.error("%d pages and packs %s are missing on disk: forgotten", len(lost), gone)
        index.forget(lost, gone)
        index.losses.add([extent.key for extent in lost], "lost", time.time_ns() // 1000)
    newest = max(files, default=-1)
    added = cut = 0
    for number in sorted(files):
        before = states.get(number)
        extents, state, cut_bytes = _read_tail(files[number], number, before)
        state = PackState(state.committed_end, state.sealed or number != newest)
        cut += cut_bytes
        if extents or state != before:
            refused = set(index.commit(extents, {number: state}))
            added += len(extents) - len(refused)
            now = int(time.time())
            for extent in extents:
                if extent not in refused:
                    table.add(extent, now)
                    space.put(extent.pack, record_bytes(extent.payload_bytes))
    return Recovery(added, len(lost), cut, rebuilt and bool(files))


def _load(
    index: PageIndex, table: PageTable, space: PackSpace, sizes: dict[int, int]
) -> list[Extent]:
    """Reads the index's pages. Returns those whose bytes are not in the packs any more."""
    lost = []
    now = int(time.time())
    table.reserve(index.pages())
    for extent in index.extents():
        size_bytes = record_bytes(extent.payload_bytes)
        if extent.offset + size_bytes > sizes.get(extent.pack, 0):
            lost.append(extent)
        else:
            table.put(extent, now)
            space.put(extent.pack, size_bytes)
    return lost


def _read_tail(
    path: Path, number: int, state: PackState | None
) -> tuple[list[Extent], PackState, int]:
    """Reads what lies behind a pack's committed end, and cuts off what is torn."""
    if state is not None and state.sealed and path.stat().st_size <= state.committed_end:
        return [], state, 0
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
        if not size == end == start:
            os.fsync(fd)
    finally:
        os.close(fd)
    extents = [
        Extent(
            f.header.key,
            number,
            f.offset,
            f.header.payload_bytes,
            f.header.sequence,
            key_id=f.header.seal.key_id if f.header.seal else b"",
        )
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
