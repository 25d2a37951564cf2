"""Sealed records: the payload encrypted with AES-256-GCM under a tenant's data key.

The header stays readable (it says which key opens the payload) and is authenticated where it
matters: key, payload length and sequence are the additional data, so a payload cannot be passed off
as another page's. `agentmem.native` does the same in C, a batch at a time.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from agentmem.core import PAGE_KEY_BYTES
from agentmem.errors import PageCorrupt
from agentmem.pages.record import (
    HEADER_BYTES,
    KEY_ID_BYTES,
    NONCE_BYTES,
    TAG_BYTES,
    RecordHeader,
    Seal,
    aligned,
    encode_header,
    payload_checksum,
    verify_record,
)

SECRET_BYTES = 32
_AAD = struct.Struct(f"<{PAGE_KEY_BYTES}sQQ")


class DataKey(NamedTuple):
    """A tenant's key: `key_id` (16 bytes) names it, `secret` (32 bytes) is never logged."""

    key_id: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"DataKey({self.key_id.hex()})"


def check_data_key(data_key: DataKey) -> None:
    """Raises ValueError for a key of the wrong size."""
    if len(data_key.key_id) != KEY_ID_BYTES or len(data_key.secret) != SECRET_BYTES:
        raise ValueError("a data key has a 16-byte id and a 32-byte secret")


def additional_data(header: RecordHeader) -> bytes:
    """What GCM authenticates besides the payload."""
    return _AAD.pack(header.key, header.payload_bytes, header.sequence)


def fresh_nonce() -> bytes:
    """96 random bits. NIST SP 800-38D (8.3) allows 2^32 of these under one key."""
    return os.urandom(NONCE_BYTES)


def seal_record(
    record: bytes | bytearray | memoryview, data_key: DataKey, *, nonce: bytes | None = None
) -> bytes:
    """The sealed record of a plain one; `nonce` is never used twice under a key: leave it out.

    Raises PageCorrupt for a record that does not check, ValueError for one that is sealed.
    """
    check_data_key(data_key)
    header = verify_record(record)
    if header.seal is not None:
        raise ValueError("the record is sealed already")
    nonce = fresh_nonce() if nonce is None else nonce
    payload = memoryview(record)[HEADER_BYTES : HEADER_BYTES + header.payload_bytes]
    sealed = AESGCM(data_key.secret).encrypt(nonce, payload, additional_data(header))
    ciphertext = memoryview(sealed)[:-TAG_BYTES]
    tag = sealed[-TAG_BYTES:]
    written = header._replace(
        checksum=payload_checksum([ciphertext]), seal=Seal(data_key.key_id, nonce, tag)
    )
    padding = b"\x00" * (aligned(header.payload_bytes) - header.payload_bytes)
    return b"".join((encode_header(written), ciphertext, padding))


def open_payload(
    header: RecordHeader, ciphertext: bytes | bytearray | memoryview, secret: bytes
) -> bytes:
    """The plain payload of a sealed one. Raises PageCorrupt when it is not authentic."""
    if header.seal is None:
        raise ValueError("the record is not sealed")
    try:
        return AESGCM(secret).decrypt(
            header.seal.nonce, b"".join((ciphertext, header.seal.tag)), additional_data(header)
        )
    except InvalidTag as error:
        raise PageCorrupt(
            f"page {header.key.hex()} does not open with data key {header.seal.key_id.hex()}: "
            "damaged, forged, or sealed with another key"
        ) from error


def open_record(record: bytes | bytearray | memoryview, data_key: DataKey) -> bytes:
    """The plain record of a sealed one. Raises PageCorrupt when it does not check or open."""
    check_data_key(data_key)
    header = verify_record(record)
    if header.seal is None:
        raise ValueError("the record is not sealed")
    if header.seal.key_id != data_key.key_id:
        raise PageCorrupt(
            f"page {header.key.hex()} is sealed with data key {header.seal.key_id.hex()}, "
            f"not with {data_key.key_id.hex()}"
        )
    payload = memoryview(record)[HEADER_BYTES : HEADER_BYTES + header.payload_bytes]
    plain = open_payload(header, payload, data_key.secret)
    written = header._replace(checksum=payload_checksum([plain]), seal=None)
    padding = b"\x00" * (aligned(len(plain)) - len(plain))
    return b"".join((encode_header(written), plain, padding))
