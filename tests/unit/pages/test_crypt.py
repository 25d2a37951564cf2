"""Sealed records open to what they were, with their own key only, and show every change."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentmem.core import PageKey
from agentmem.errors import PageCorrupt
from agentmem.pages.crypt import DataKey, open_record, seal_record
from agentmem.pages.record import (
    HEADER_BYTES,
    decode_header,
    encode_header,
    encode_record,
    payload_checksum,
    verify_record,
)

KEY = PageKey(bytes(range(48)))
DATA_KEY = DataKey(b"tenant-of-a-page", os.urandom(32))


@given(payload=st.binary(min_size=1, max_size=9000))
@settings(max_examples=30)
def test_a_sealed_record_opens_to_the_plain_one(payload: bytes) -> None:
    plain = encode_record(KEY, payload, 7)
    sealed = seal_record(plain, DATA_KEY)
    assert len(sealed) == len(plain)
    header = verify_record(sealed, KEY)
    assert (header.key, header.payload_bytes, header.sequence) == (KEY, len(payload), 7)
    assert header.seal is not None
    assert header.seal.key_id == DATA_KEY.key_id
    assert open_record(sealed, DATA_KEY) == plain


def test_nothing_of_the_payload_is_left_and_no_nonce_comes_twice() -> None:
    plain = encode_record(KEY, b"conversation " * 500, 7)
    one, two = seal_record(plain, DATA_KEY), seal_record(plain, DATA_KEY)
    assert b"conversation" not in one
    assert one[HEADER_BYTES:] != two[HEADER_BYTES:]


def test_another_key_does_not_open_it() -> None:
    sealed = seal_record(encode_record(KEY, b"x" * 100, 7), DATA_KEY)
    with pytest.raises(PageCorrupt, match="not with"):
        open_record(sealed, DataKey(b"another tenant's", DATA_KEY.secret))
    with pytest.raises(PageCorrupt, match="does not open"):
        open_record(sealed, DATA_KEY._replace(secret=os.urandom(32)))


@pytest.mark.parametrize("change", [{"sequence": 8}, {"key": PageKey(bytes(48))}])
def test_a_forged_header_does_not_open(change: dict[str, object]) -> None:
    sealed = seal_record(encode_record(KEY, b"x" * 100, 7), DATA_KEY)
    forged = encode_header(decode_header(sealed)._replace(**change)) + sealed[HEADER_BYTES:]
    verify_record(forged)  # no damage: only the key tells
    with pytest.raises(PageCorrupt, match="does not open"):
        open_record(forged, DATA_KEY)


def test_a_forged_payload_does_not_open() -> None:
    sealed = bytearray(seal_record(encode_record(KEY, b"x" * 100, 7), DATA_KEY))
    sealed[HEADER_BYTES] ^= 1
    payload = sealed[HEADER_BYTES : HEADER_BYTES + 100]
    header = decode_header(sealed)._replace(checksum=payload_checksum([payload]))
    with pytest.raises(PageCorrupt, match="does not open"):
        open_record(encode_header(header) + sealed[HEADER_BYTES:], DATA_KEY)


def test_what_cannot_be_sealed_or_opened_is_refused() -> None:
    plain = encode_record(KEY, b"x", 7)
    with pytest.raises(ValueError, match="sealed already"):
        seal_record(seal_record(plain, DATA_KEY), DATA_KEY)
    with pytest.raises(ValueError, match="not sealed"):
        open_record(plain, DATA_KEY)
    with pytest.raises(ValueError, match="16-byte id"):
        seal_record(plain, DataKey(b"short", bytes(32)))
    with pytest.raises(PageCorrupt):
        seal_record(plain[:-HEADER_BYTES], DATA_KEY)


def test_a_secret_is_not_shown() -> None:
    assert DATA_KEY.secret.hex() not in repr(DATA_KEY)
    assert str(DATA_KEY.secret) not in f"{DATA_KEY}"
