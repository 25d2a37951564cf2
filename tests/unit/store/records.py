"""Records for the tests of the disk tier."""

from __future__ import annotations

import hashlib
from pathlib import Path

from agentmem.core import PageKey
from agentmem.pages.record import decode_header, encode_record, record_bytes, verify_record
from agentmem.store.copies import DiskCopy
from agentmem.store.disk import DiskTier
from agentmem.store.pack import PACK_HEADER_BYTES
from agentmem.store.packwriter import Record

PAYLOAD_BYTES = 10_000
RECORD = record_bytes(PAYLOAD_BYTES)
PACK_BYTES = PACK_HEADER_BYTES + 4 * RECORD  # four records to a pack


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


def read(disk: DiskTier, number: int) -> bytes:
    """The page's payload as it lies in its pack, verified."""
    copy = disk.get(key_of(number))
    assert isinstance(copy, DiskCopy)
    location = disk.location(copy)
    record = Path(location.path).read_bytes()[location.offset : location.offset + RECORD]
    verify_record(record, key_of(number))
    return record[4096 : 4096 + PAYLOAD_BYTES]


def held(disk: DiskTier, numbers: range) -> list[int]:
    """Which of the test's pages the tier has."""
    return [n for n in numbers if disk.get(key_of(n)) is not None]
