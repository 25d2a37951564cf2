"""Pages of the object tier as they are read and written: copies, ranges, groups."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from agentmem.errors import PageCorrupt
from agentmem.pages.record import record_bytes, verify_record
from agentmem.store.base import PageCopy
from agentmem.store.index import Extent
from agentmem.store.objectpack import Row
from agentmem.store.packwriter import Record

logger = logging.getLogger(__name__)

_RANGE_BYTES_MAX = 16 << 20


@dataclass(slots=True, eq=False, kw_only=True)
class ObjectCopy(PageCopy):
    """A page in an object pack, where it was when it was looked up."""

    pack: int
    offset: int
    sequence: int
    key_id: bytes


class Range(NamedTuple):
    """Adjacent records of one object."""

    copies: list[ObjectCopy]
    start: int
    end: int


def extent_of(number: int, row: Row) -> Extent:
    """Where a row of a footer says that a page lies; `number` is that of the object."""
    return Extent(
        row.key, number, row.offset, row.payload_bytes, row.sequence, row.position, row.key_id
    )


def groups(records: Sequence[Record], pack_bytes: int) -> Iterator[list[Record]]:
    """What goes into one object each: up to `pack_bytes`, but at least one record."""
    group: list[Record] = []
    size_bytes = 0
    for record in records:
        if group and size_bytes + record.view.nbytes > pack_bytes:
            yield group
            group, size_bytes = [], 0
        group.append(record)
        size_bytes += record.view.nbytes
    if group:
        yield group


def ranges_of(copies: Sequence[ObjectCopy]) -> list[Range]:
    """Runs of records that lie one behind the other."""
    ranges: list[Range] = []
    for copy in copies:
        end = copy.offset + record_bytes(copy.payload_bytes)
        last = ranges[-1] if ranges else None
        if (
            last is not None
            and last.copies[0].pack == copy.pack
            and last.end == copy.offset
            and end - last.start <= _RANGE_BYTES_MAX
        ):
            last.copies.append(copy)
            ranges[-1] = last._replace(end=end)
        else:
            ranges.append(Range([copy], copy.offset, end))
    return ranges


def copy_of(extent: Extent) -> ObjectCopy:
    """A page as readers see it."""
    return ObjectCopy(
        extent.key,
        extent.payload_bytes,
        pack=extent.pack,
        offset=extent.offset,
        sequence=extent.sequence,
        key_id=extent.key_id,
    )


def checked(extents: Sequence[Extent], views: Sequence[memoryview]) -> list[Record]:
    """Records whose bytes check."""
    records = []
    for extent, view in zip(extents, views, strict=True):
        try:
            verify_record(view, extent.key)
        except PageCorrupt as error:
            logger.error("object page is quarantined: %s", error)
            continue
        size, sequence, position, key_id = extent[3:]
        records.append(Record(extent.key, view, size, sequence, position, key_id))
    return records
