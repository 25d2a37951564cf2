"""The object pack: an immutable object of sealed records, with its own index at the end.

    [0, 4096)      header: magic, version, node id, and their XXH3-64
    then           sealed records back to back, each a multiple of 4096 bytes
    then           footer: one row a record (key, offset, payload bytes, sequence)
    last 64 bytes  trailer: magic, version, rows, offset of the footer, XXH3-128 of it, own check

One range read of an object's end tells what is in it: a node that has lost its index, or that never
had one, reads the footers and nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import xxhash

from agentmem.core import PAGE_KEY_BYTES, PageKey
from agentmem.errors import PageCorrupt
from agentmem.pages.record import ALIGN_BYTES, KEY_ID_BYTES, record_bytes
from agentmem.store.packwriter import Record

MAGIC = b"AGMOBJP1"
VERSION = 1
HEADER_BYTES = 4096
TRAILER_BYTES = 64
# What a reader fetches of an object's end before it knows how long the footer is.
TAIL_BYTES = 256 << 10

_HEADER = struct.Struct("<8sH16s")
_ROW = struct.Struct(f"<{PAGE_KEY_BYTES}sQQQI{KEY_ID_BYTES}s")
_TRAILER = struct.Struct("<8sHIQ16s")
_CHECK_BYTES = 8


class Row(NamedTuple):
    """Where a record lies in its object; `position` and `key_id` as in `store.index.Extent`."""

    key: PageKey
    offset: int
    payload_bytes: int
    sequence: int
    position: int
    key_id: bytes


def encode_pack(node_id: str, records: Sequence[Record]) -> tuple[bytes, list[Row]]:
    """The whole object, and where its records lie in it."""
    fields = _HEADER.pack(MAGIC, VERSION, node_id.encode("ascii"))
    block = fields.ljust(HEADER_BYTES - _CHECK_BYTES, b"\x00")
    parts: list[bytes | memoryview] = [block, xxhash.xxh3_64_digest(block)]
    rows: list[Row] = []
    at = HEADER_BYTES
    for record in records:
        rows.append(Row(record.key, at, *record[2:]))
        parts.append(record.view)
        at += record.view.nbytes
    footer = b"".join([_ROW.pack(*row) for row in rows])
    parts += [footer, _trailer(len(rows), at, footer)]
    return b"".join(parts), rows


def decode_trailer(tail: bytes | memoryview, object_bytes: int) -> int:
    """Offset of the footer, given the object's last bytes. Raises PageCorrupt."""
    if len(tail) < TRAILER_BYTES:
        raise PageCorrupt("the object ends before its trailer")
    trailer = bytes(tail[-TRAILER_BYTES:])
    magic, version, rows, offset, _digest = _TRAILER.unpack_from(trailer)
    if magic != MAGIC or xxhash.xxh3_64_digest(trailer[:-_CHECK_BYTES]) != trailer[-_CHECK_BYTES:]:
        raise PageCorrupt("the object does not end with the trailer of a pack")
    if version != VERSION:
        raise PageCorrupt(f"object pack version {version}: this build reads {VERSION}")
    if offset + rows * _ROW.size + TRAILER_BYTES != object_bytes or offset < HEADER_BYTES:
        raise PageCorrupt("the trailer does not fit the object's length")
    return int(offset)


def decode_footer(footer: bytes | memoryview) -> list[Row]:
    """The rows of a footer with the trailer behind it. Raises PageCorrupt."""
    body, trailer = bytes(footer[:-TRAILER_BYTES]), bytes(footer[-TRAILER_BYTES:])
    _magic, _version, count, offset, digest = _TRAILER.unpack_from(trailer)
    if len(body) != count * _ROW.size or xxhash.xxh3_128_digest(body) != digest:
        raise PageCorrupt("the object's footer does not check")
    rows = [Row(PageKey(fields[0]), *fields[1:]) for fields in _ROW.iter_unpack(body)]
    at = HEADER_BYTES
    for row in rows:
        if row.offset != at or row.offset % ALIGN_BYTES or row.payload_bytes < 1:
            raise PageCorrupt("the object's footer names an impossible place")
        at += record_bytes(row.payload_bytes)
    if at != offset:
        raise PageCorrupt("the object's records do not reach up to its footer")
    return rows


def _trailer(rows: int, offset: int, footer: bytes) -> bytes:
    fields = _TRAILER.pack(MAGIC, VERSION, rows, offset, xxhash.xxh3_128_digest(footer))
    block = fields.ljust(TRAILER_BYTES - _CHECK_BYTES, b"\x00")
    return block + xxhash.xxh3_64_digest(block)
