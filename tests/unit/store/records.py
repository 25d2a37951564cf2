"""Records for the tests of the disk tier."""

from __future__ import annotations

import hashlib
from pathlib import Path

from agentmem.core import PageKey
from agentmem.pages.record import decode_header, encode_record
from agentmem.store.packwriter import Record

PAYLOAD_BYTES = 10_000


def key_of(number: int) -> PageKey:
    """The key of the test's page `number`."""
    return PageKey(bytes(16) + hashlib.sha256(b"page %d" % number).digest())


def payload_of(number: int) -> bytes:
    """Bytes that occur nowhere else."""
    return hashlib.shake_256(b"payload %d" % number).digest(PAYLOAD_BYTES)


def record_of(number: int, sequence: int = 1) -> Record:
    """A whole record."""
    view = memoryview(encode_record(key_of(number), payload_of(number), sequence))
    header = decode_header(view)
    return Record(header.key, view, header.payload_bytes, header.sequence)


def bytes_of(directory: Path) -> bytes:
    """All bytes of all packs."""
    return b"".join(path.read_bytes() for path in sorted(directory.glob("pack-*.agm")))
