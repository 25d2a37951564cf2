"""The record: one page as it lies in a slab slot or in a pack.

    [0, 4096)            header block: fields, reserved zeros, XXH3-64 of its first 4088 bytes
    [4096, 4096 + n)     payload, n = payload_bytes
    up to a multiple of 4096: padding

Header and payload both start on a 4096-byte boundary, so that a record moves between slab, pack
and O_DIRECT without a copy. A sealed record's payload is ciphertext of the same length (see
`pages.crypt`); the checksum is over the payload as it lies there, so that whoever moves or checks
records needs no key.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

import xxhash

from agentmem.core import PAGE_KEY_BYTES, PageKey
from agentmem.errors import PageCorrupt

MAGIC = b"AGMPAGE1"
FORMAT_VERSION = 2
ALIGN_BYTES = 4096
HEADER_BYTES = 4096
CHECKSUM_BYTES = 16
KEY_ID_BYTES = 16
NONCE_BYTES = 12
TAG_BYTES = 16
FLAG_SEALED = 1
FREE_MARK = b"\x00" * 8
PAYLOAD_BYTES_MAX = 1 << 30

# magic, version, flags, header bytes, payload bytes, key, sequence, xxh3_128 of the payload,
# data key id, nonce, tag (the last three are zeros in a plain record)
_FIELDS = struct.Struct(
    f"<8sHHIQ{PAGE_KEY_BYTES}sQ{CHECKSUM_BYTES}s{KEY_ID_BYTES}s{NONCE_BYTES}s{TAG_BYTES}s"
)
_CHECK_BYTES = 8
_RESERVED = b"\x00" * (HEADER_BYTES - _CHECK_BYTES - _FIELDS.size)
_NO_SEAL = (b"\x00" * KEY_ID_BYTES, b"\x00" * NONCE_BYTES, b"\x00" * TAG_BYTES)


class Seal(NamedTuple):
    """What it takes, besides the data key's secret, to open a sealed record."""

    key_id: bytes
    nonce: bytes
    tag: bytes


class RecordHeader(NamedTuple):
    """What a record says of itself.

    `sequence` is the writer's clock in nanoseconds at commit: of two records of one key the
    smaller one was committed first, and a deletion covers all records older than itself.
    `seal` is None for a plain record.
    """

    key: PageKey
    payload_bytes: int
    sequence: int
    checksum: bytes
    seal: Seal | None = None


def aligned(size_bytes: int) -> int:
    """`size_bytes` rounded up to the record alignment."""
    return -(-size_bytes // ALIGN_BYTES) * ALIGN_BYTES


def record_bytes(payload_bytes: int) -> int:
    """Bytes that a record of this payload takes, header and padding included."""
    return HEADER_BYTES + aligned(payload_bytes)


def payload_checksum(parts: Iterable[memoryview | bytes | bytearray]) -> bytes:
    """xxh3_128 (16 bytes) of the concatenated parts."""
    state = xxhash.xxh3_128()
    for part in parts:
        state.update(part)
    return state.digest()


def encode_header(header: RecordHeader) -> bytes:
    """The 4096-byte header block. Raises ValueError for a field of the wrong size."""
    if len(header.key) != PAGE_KEY_BYTES or len(header.checksum) != CHECKSUM_BYTES:
        raise ValueError("a record needs a 48-byte key and a 16-byte checksum")
    seal = header.seal or _NO_SEAL
    if tuple(map(len, seal)) != (KEY_ID_BYTES, NONCE_BYTES, TAG_BYTES):
        raise ValueError("a seal needs a 16-byte key id, a 12-byte nonce and a 16-byte tag")
    if not 0 < header.payload_bytes <= PAYLOAD_BYTES_MAX:
        raise ValueError(
            f"a payload has 1 to {PAYLOAD_BYTES_MAX} bytes, not {header.payload_bytes}"
        )
    fields = _FIELDS.pack(
        MAGIC,
        FORMAT_VERSION,
        0 if header.seal is None else FLAG_SEALED,
        HEADER_BYTES,
        header.payload_bytes,
        header.key,
        header.sequence,
        header.checksum,
        *seal,
    )
    block = fields + _RESERVED
    return block + xxhash.xxh3_64_digest(block)


def decode_header(block: bytes | bytearray | memoryview) -> RecordHeader:
    """Reads a header block. Raises PageCorrupt saying which check failed."""
    if len(block) < HEADER_BYTES:
        raise PageCorrupt(f"a record header has {HEADER_BYTES} bytes, only {len(block)} are there")
    magic, version, flags, header_bytes, payload_bytes, key, sequence, checksum, *seal = (
        _FIELDS.unpack_from(block)
    )
    if magic != MAGIC:
        raise PageCorrupt(f"not a record: magic {magic!r}")
    view = memoryview(block)[:HEADER_BYTES]
    if xxhash.xxh3_64_digest(view[:-_CHECK_BYTES]) != view[-_CHECK_BYTES:]:
        raise PageCorrupt("the record header's own checksum does not match: torn or flipped bits")
    if version != FORMAT_VERSION or flags & ~FLAG_SEALED or header_bytes != HEADER_BYTES:
        raise PageCorrupt(
            f"record format version {version}, flags {flags:#x}, header of {header_bytes} bytes: "
            f"this build reads version {FORMAT_VERSION} with flags up to {FLAG_SEALED:#x}"
        )
    if not 0 < payload_bytes <= PAYLOAD_BYTES_MAX:
        raise PageCorrupt(f"impossible payload length {payload_bytes}")
    sealed = Seal(*seal) if flags & FLAG_SEALED else None
    return RecordHeader(PageKey(key), payload_bytes, sequence, checksum, sealed)


def check_header(header: RecordHeader, key: bytes, payload_bytes: int) -> None:
    """Raises PageCorrupt unless the record is of this key (fingerprint included) and length."""
    if header.key != key:
        raise PageCorrupt(f"the record is of page {header.key.hex()}, not of {bytes(key).hex()}")
    if header.payload_bytes != payload_bytes:
        raise PageCorrupt(
            f"the record's payload has {header.payload_bytes} bytes, not {payload_bytes}"
        )


def verify_record(record: bytes | bytearray | memoryview, key: bytes | None = None) -> RecordHeader:
    """Checks a whole record in memory: header, key (where given), length, payload checksum.

    That of a sealed one covers the ciphertext: it shows damage, opening it shows forgery.
    Raises PageCorrupt saying which check failed.
    """
    header = decode_header(record)
    if key is not None:
        check_header(header, key, header.payload_bytes)
    payload = memoryview(record)[HEADER_BYTES : HEADER_BYTES + header.payload_bytes]
    if len(payload) != header.payload_bytes:
        raise PageCorrupt(f"payload cut off: {len(payload)} of {header.payload_bytes} bytes")
    if payload_checksum([payload]) != header.checksum:
        raise PageCorrupt(f"the payload's checksum does not match for page {header.key.hex()}")
    return header


def encode_record(key: PageKey, payload: bytes | memoryview, sequence: int) -> bytes:
    """A whole record, padded: for tests and small copies; the data path writes in place."""
    header = RecordHeader(key, len(payload), sequence, payload_checksum([payload]))
    padding = b"\x00" * (aligned(len(payload)) - len(payload))
    return encode_header(header) + bytes(payload) + padding
