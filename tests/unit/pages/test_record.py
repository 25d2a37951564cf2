"""The record format: what is written is read back, and what is damaged is refused with a reason."""

from __future__ import annotations

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from agentmem.core import PageKey
from agentmem.errors import PageCorrupt
from agentmem.pages.record import (
    ALIGN_BYTES,
    HEADER_BYTES,
    RecordHeader,
    Seal,
    check_header,
    decode_header,
    encode_header,
    encode_record,
    payload_checksum,
    record_bytes,
    verify_record,
)

KEY = PageKey(bytes(range(48)))
OTHER = PageKey(bytes(48))


@given(
    key=st.binary(min_size=48, max_size=48),
    payload=st.binary(min_size=1, max_size=9000),
    sequence=st.integers(0, 2**64 - 1),
)
@settings(max_examples=50)
def test_a_record_is_read_back_as_it_was_written(key: bytes, payload: bytes, sequence: int) -> None:
    record = encode_record(PageKey(key), payload, sequence)
    assert len(record) == record_bytes(len(payload))
    assert len(record) % ALIGN_BYTES == 0
    header = verify_record(record, key)
    assert header == RecordHeader(PageKey(key), len(payload), sequence, payload_checksum([payload]))
    assert record[HEADER_BYTES : HEADER_BYTES + len(payload)] == payload


@given(st.integers(0, HEADER_BYTES * 8 - 1))
@settings(max_examples=100)
def test_any_flipped_bit_of_the_header_is_noticed(bit: int) -> None:
    record = bytearray(encode_record(KEY, b"x" * 5000, 7))
    record[bit // 8] ^= 1 << (bit % 8)
    with pytest.raises(PageCorrupt):
        decode_header(record)


@given(st.integers(0, 5000 * 8 - 1))
@settings(max_examples=50)
def test_any_flipped_bit_of_the_payload_is_noticed(bit: int) -> None:
    record = bytearray(encode_record(KEY, b"x" * 5000, 7))
    record[HEADER_BYTES + bit // 8] ^= 1 << (bit % 8)
    with pytest.raises(PageCorrupt, match="payload's checksum"):
        verify_record(record, KEY)


@pytest.mark.parametrize("length", [0, 1, 8, HEADER_BYTES - 1])
def test_a_cut_off_header_is_refused(length: int) -> None:
    with pytest.raises(PageCorrupt, match=f"only {length} are there"):
        decode_header(encode_record(KEY, b"x", 1)[:length])


@pytest.mark.parametrize("length", [HEADER_BYTES, HEADER_BYTES + 4999])
def test_a_cut_off_payload_is_refused(length: int) -> None:
    with pytest.raises(PageCorrupt, match=f"cut off: {length - HEADER_BYTES} of 5000"):
        verify_record(encode_record(KEY, b"x" * 5000, 1)[:length], KEY)


def test_a_page_under_another_key_is_refused() -> None:
    record = encode_record(KEY, b"x", 1)
    with pytest.raises(PageCorrupt, match="not of"):
        verify_record(record, OTHER)
    with pytest.raises(PageCorrupt, match="has 1 bytes, not 2"):
        check_header(decode_header(record), KEY, 2)


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (0, b"NOTAPAGE", "magic"),
        (8, b"\x01\x00", "version 1"),
        (10, b"\x02\x00", "flags 0x2"),
        (16, (0).to_bytes(8, "little"), "impossible payload length 0"),
        (16, (1 << 40).to_bytes(8, "little"), "impossible payload length"),
    ],
)
def test_a_sound_header_of_another_kind_is_refused(offset: int, value: bytes, reason: str) -> None:
    block = bytearray(encode_header(RecordHeader(KEY, 5000, 1, bytes(16))))
    block[offset : offset + len(value)] = value
    block[-8:] = xxhash.xxh3_64_digest(bytes(block[:-8]))
    with pytest.raises(PageCorrupt, match=reason):
        decode_header(block)


@pytest.mark.parametrize(
    "header",
    [
        RecordHeader(PageKey(b"short"), 1, 1, bytes(16)),
        RecordHeader(KEY, 1, 1, b"short"),
        RecordHeader(KEY, 0, 1, bytes(16)),
        RecordHeader(KEY, 1, 1, bytes(16), Seal(bytes(16), bytes(11), bytes(16))),
    ],
)
def test_an_impossible_header_is_not_encoded(header: RecordHeader) -> None:
    with pytest.raises(ValueError, match=r"needs a|a payload has"):
        encode_header(header)
