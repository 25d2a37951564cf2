"""Holds index, packs and accounting against each other. Changes nothing."""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from agentmem.errors import PageCorrupt
from agentmem.pages.record import HEADER_BYTES, check_header, decode_header, record_bytes
from agentmem.store.index import PageIndex
from agentmem.store.pack import PACK_HEADER_BYTES, pack_number
from agentmem.store.table import PageTable

_READ_BYTES = 1 << 20


class Difference(NamedTuple):
    """Something that is not as it should be.

    `kind`: `table` (memory and index disagree), `no_bytes` (an entry whose bytes are not there),
    `overlap` (of two entries), `wrong_record` (an entry at whose place another record lies),
    `orphan` (bytes that nothing refers to), `missing_pack`, `accounting` (sums differ).
    """

    kind: str
    pack: int
    offset: int
    size_bytes: int
    detail: str


class Audit(NamedTuple):
    """What was compared. `medium_bytes` is what the packs' records take on the medium.

    `stale_bytes` of it are zeros that the file system could not give back yet, `index_bytes` is
    what the index file takes beside it.
    """

    pages: int
    record_bytes: int
    medium_bytes: int
    stale_bytes: int
    index_bytes: int
    differences: list[Difference]


class _Span(NamedTuple):
    offset: int
    end: int
    is_page: bool


def audit_packs(
    directory: Path, index: PageIndex, table: PageTable, reserved_bytes: int, *, headers: bool
) -> Audit:
    """Compares everything, in the index thread, while nothing is written or destroyed.

    `headers`: whether to read each record's header, too. Raises OSError, lmdb.Error.
    """
    differences: list[Difference] = []
    spans = _spans(index, table, differences)
    medium_bytes = stale_bytes = total_bytes = 0
    files = {n: path for path in directory.iterdir() if (n := pack_number(path)) is not None}
    for number, path in sorted(files.items()):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            known = _in_order(spans.pop(number, array("Q")), number, differences)
            data = list(_data(fd, PACK_HEADER_BYTES))
            medium_bytes += sum(end - start for start, end in data)
            total_bytes += sum(span.end - span.offset for span in known)
            _check_present(number, known, data, differences)
            stale_bytes += _check_orphans(fd, number, known, data, differences)
            if headers:
                _check_headers(fd, number, known, table, differences)
        finally:
            os.close(fd)
    for number, flat in spans.items():
        differences.append(Difference("missing_pack", number, 0, sum(flat[1::3]), "no such file"))
    for what, found in (("entries", total_bytes), ("the medium", medium_bytes)):
        if found + (stale_bytes if what == "entries" else 0) != reserved_bytes:
            detail = f"{reserved_bytes} bytes are accounted for, {what} make {found}"
            differences.append(Difference("accounting", -1, 0, found - reserved_bytes, detail))
    return Audit(
        len(table), total_bytes, medium_bytes, stale_bytes, index.file_bytes(), differences
    )


def _spans(
    index: PageIndex, table: PageTable, differences: list[Difference]
) -> dict[int, array[int]]:
    """By pack: offset, bytes and whether it is a page, of all records, one after another."""
    spans: dict[int, array[int]] = {}
    pages = 0
    for extent in index.extents():
        pages += 1
        size_bytes = record_bytes(extent.payload_bytes)
        spans.setdefault(extent.pack, array("Q")).extend((extent.offset, size_bytes, 1))
        if table.get(extent.key) != extent:
            detail = f"page {extent.key.hex()} lies elsewhere, as the agent knows it"
            differences.append(Difference("table", extent.pack, extent.offset, size_bytes, detail))
    if pages != len(table):
        detail = f"{pages} pages in the index, {len(table)} in memory"
        differences.append(Difference("table", -1, 0, 0, detail))
    for pack, offset, size_bytes in index.punches():
        spans.setdefault(pack, array("Q")).extend((offset, size_bytes, 0))
    return spans


def _in_order(flat: array[int], pack: int, differences: list[Difference]) -> list[_Span]:
    spans = sorted(
        _Span(offset, offset + size_bytes, bool(is_page))
        for offset, size_bytes, is_page in zip(flat[::3], flat[1::3], flat[2::3], strict=True)
    )
    for before, after in pairwise(spans):
        if before.end > after.offset:
            size_bytes = before.end - after.offset
            differences.append(
                Difference("overlap", pack, after.offset, size_bytes, "two records lie here")
            )
    return spans


def _data(fd: int, start: int) -> Iterator[tuple[int, int]]:
    """Runs of bytes that are no hole."""
    size = os.fstat(fd).st_size
    while start < size:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end
        start = end


def _check_present(
    pack: int, known: list[_Span], data: list[tuple[int, int]], differences: list[Difference]
) -> None:
    runs = iter(data)
    run = next(runs, None)
    for span in known:
        while run is not None and run[1] < span.end:
            run = next(runs, None)
        if span.is_page and (run is None or run[0] > span.offset):
            size_bytes = span.end - span.offset
            detail = "a hole, or the end of the file, where a page should be"
            differences.append(Difference("no_bytes", pack, span.offset, size_bytes, detail))


def _check_orphans(
    fd: int,
    pack: int,
    known: list[_Span],
    data: list[tuple[int, int]],
    differences: list[Difference],
) -> int:
    """Bytes that nothing refers to: differences, unless they are zeros. Returns those."""
    zeros = 0
    spans = iter(known)
    span = next(spans, None)
    for start, end in data:
        at = start
        while at < end:
            while span is not None and span.end <= at:
                span = next(spans, None)
            if span is not None and span.offset <= at:
                at = span.end
                continue
            until = end if span is None else min(end, span.offset)
            if _is_zero(fd, at, until):
                zeros += until - at
            else:
                detail = "bytes that neither a page nor a deletion refers to"
                differences.append(Difference("orphan", pack, at, until - at, detail))
            at = until
    return zeros


def _is_zero(fd: int, start: int, end: int) -> bool:
    return all(
        not any(os.pread(fd, min(_READ_BYTES, end - at), at))
        for at in range(start, end, _READ_BYTES)
    )


def _check_headers(
    fd: int, pack: int, known: list[_Span], table: PageTable, differences: list[Difference]
) -> None:
    for offset, end, is_page in known:
        fault = _header_fault(fd, pack, offset, table) if is_page else None
        if fault is not None:
            differences.append(Difference("wrong_record", pack, offset, end - offset, fault))


def _header_fault(fd: int, pack: int, offset: int, table: PageTable) -> str | None:
    try:
        header = decode_header(os.pread(fd, HEADER_BYTES, offset))
        extent = table.get(header.key)
        if extent is None or (extent.pack, extent.offset) != (pack, offset):
            return f"a record of page {header.key.hex()} lies here"
        check_header(header, extent.key, extent.payload_bytes)
    except PageCorrupt as error:
        return str(error)
    return None
