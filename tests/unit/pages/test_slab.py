"""The slab's layout, and whose it is."""

from __future__ import annotations

import os
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentmem.core import PageKey
from agentmem.errors import PageCorrupt
from agentmem.pages.record import HEADER_BYTES, RecordHeader, decode_header, encode_header
from agentmem.pages.slab import (
    ENGINE_ID_BYTES_MAX,
    SlabHeader,
    commit_slot,
    decode_slab_header,
    encode_slab_header,
    free_slot,
    owner_is_alive,
    process_start_ticks,
    slot_is_free,
    slot_offset,
)

HEADER = SlabHeader("0123456789abcdef", 8192, 3, "engine", 17, 99)


@given(
    slots=st.integers(1, 1000),
    slot_pages=st.integers(2, 64),
    engine_id=st.text(max_size=30),
    pid=st.integers(0, 2**32 - 1),
    ticks=st.integers(0, 2**64 - 1),
)
@settings(max_examples=50)
def test_a_slab_header_is_read_back(
    slots: int, slot_pages: int, engine_id: str, pid: int, ticks: int
) -> None:
    header = SlabHeader("00112233aabbccdd", slot_pages * 4096, slots, engine_id, pid, ticks)
    assert decode_slab_header(encode_slab_header(header)) == header
    assert header.file_bytes == slot_offset(header.slot_bytes, slots)


@given(st.integers(0, 4096 * 8 - 1))
@settings(max_examples=100)
def test_any_flipped_bit_of_a_slab_header_is_noticed(bit: int) -> None:
    block = bytearray(encode_slab_header(HEADER))
    block[bit // 8] ^= 1 << (bit % 8)
    with pytest.raises(PageCorrupt):
        decode_slab_header(bytes(block))


@pytest.mark.parametrize(
    "wrong",
    [
        HEADER._replace(slot_bytes=4096),
        HEADER._replace(slot_bytes=8193),
        HEADER._replace(slots=0),
        HEADER._replace(slot_bytes=1 << 30, slots=5),
        HEADER._replace(owner_engine_id="x" * (ENGINE_ID_BYTES_MAX + 1)),
    ],
)
def test_an_impossible_slab_is_not_encoded(wrong: SlabHeader) -> None:
    with pytest.raises(ValueError, match=r"slots of|a slab has|engine id"):
        encode_slab_header(wrong)


def test_a_committed_slot_is_not_free_and_a_freed_one_is_zero() -> None:
    slab = memoryview(bytearray(HEADER.file_bytes))
    offset = slot_offset(HEADER.slot_bytes, 1)
    record = RecordHeader(PageKey(bytes(48)), 10, 1, bytes(16))
    assert slot_is_free(slab, offset)
    commit_slot(slab, offset, encode_header(record))
    assert not slot_is_free(slab, offset)
    assert decode_header(slab[offset : offset + HEADER_BYTES]) == record
    free_slot(slab, offset)
    assert slot_is_free(slab, offset)
    assert not any(slab)


def test_the_magic_is_what_makes_a_slot_a_page() -> None:
    """A crash before the last 8 bytes leaves a free slot, whatever else lies there."""
    slab = memoryview(bytearray(HEADER.file_bytes))
    block = encode_header(RecordHeader(PageKey(bytes(48)), 10, 1, bytes(16)))
    offset = slot_offset(HEADER.slot_bytes, 0)
    slab[offset + 8 : offset + HEADER_BYTES] = block[8:]
    assert slot_is_free(slab, offset)


def test_an_owner_is_its_process_and_no_later_one_with_its_pid() -> None:
    ticks = process_start_ticks(os.getpid())
    assert ticks is not None
    mine = HEADER._replace(owner_pid=os.getpid(), owner_start_ticks=ticks)
    assert owner_is_alive(mine)
    assert not owner_is_alive(mine._replace(owner_start_ticks=ticks - 1))


def test_a_dead_owner_is_dead_before_and_after_it_is_reaped() -> None:
    child = subprocess.Popen(["sleep", "60"])
    ticks = process_start_ticks(child.pid)
    assert ticks is not None
    header = HEADER._replace(owner_pid=child.pid, owner_start_ticks=ticks)
    assert owner_is_alive(header)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
    assert not owner_is_alive(header)
    child.wait()
    assert not owner_is_alive(header)
