"""The dram tier: the index of slab slots, duplicates, holds, eviction, adoption, reopening."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentmem.errors import StoreRefused
from agentmem.pages.record import HEADER_BYTES, decode_header, record_bytes
from agentmem.pages.slab import SlabHeader, commit_slot, slot_is_dirty, slot_is_free
from agentmem.store.dram import Acceptance, DramTier
from agentmem.store.slab import Slab, create_slab, scrub_slots
from tests.unit.store.records import PAYLOAD_BYTES, key_of, payload_of, record_of

SLOT_BYTES = record_bytes(PAYLOAD_BYTES)
SLOTS = 4
NODE = "0" * 16


@pytest.fixture
def dram(tmp_path: Path) -> DramTier:
    tier = DramTier(tmp_path, NODE, 3 * (4096 + SLOTS * SLOT_BYTES))
    tier.open()
    return tier


def grant(dram: DramTier, engine_id: str = "engine", pid: int = 1) -> Slab:
    """A slab of a process that is dead, or of init, whose start is not 0."""
    header = SlabHeader(NODE, SLOT_BYTES, SLOTS, engine_id, pid, 0)
    path = dram.reserve(header)
    create_slab(path, header)
    return dram.add(path)


def write(slab: Slab, slot: int, number: int, sequence: int = 1) -> None:
    """What an engine does to store a page."""
    record = record_of(number, sequence).view
    offset = slab.offset(slot)
    slab.view[offset + HEADER_BYTES : offset + len(record)] = record[HEADER_BYTES:]
    commit_slot(slab.view, offset, bytes(record[:HEADER_BYTES]))


def accept(dram: DramTier, slab: Slab, slot: int, number: int) -> Acceptance:
    return dram.accept(slab, slot, key_of(number), held=False)


def test_an_announced_slot_is_a_page_with_its_bytes(dram: DramTier) -> None:
    slab = grant(dram)
    write(slab, 2, 7)
    assert accept(dram, slab, 2, 7) is Acceptance.ACCEPTED
    assert accept(dram, slab, 2, 7) is Acceptance.ACCEPTED  # idempotent
    copy = dram.get(key_of(7))
    assert copy is not None
    assert bytes(copy.record[HEADER_BYTES : HEADER_BYTES + PAYLOAD_BYTES]) == payload_of(7)
    location = dram.location(copy)
    raw = Path(location.path).read_bytes()[location.offset :]
    assert decode_header(raw).key == key_of(7)
    assert dram.usage()[:2] == (1, PAYLOAD_BYTES)


def test_what_is_no_such_page_is_not_taken(dram: DramTier) -> None:
    slab = grant(dram)
    assert accept(dram, slab, 0, 7) is Acceptance.STALE  # a free slot
    write(slab, 0, 7)
    assert accept(dram, slab, 0, 8) is Acceptance.STALE  # another page
    slab.view[slab.offset(0) + 30] ^= 1
    assert accept(dram, slab, 0, 7) is Acceptance.CORRUPT
    assert slot_is_free(slab.view, slab.offset(0))
    assert dram.corrupt_headers == 1
    assert dram.usage().pages == 0


def test_of_two_copies_the_first_stays_and_the_other_slot_is_freed_for_its_owner_to_zero(
    dram: DramTier,
) -> None:
    slab = grant(dram)
    write(slab, 0, 7, sequence=5)
    write(slab, 1, 7, sequence=4)
    assert accept(dram, slab, 0, 7) is Acceptance.ACCEPTED
    assert accept(dram, slab, 1, 7) is Acceptance.DUPLICATE
    write(slab, 2, 8)
    assert dram.accept(slab, 2, key_of(8), held=True) is Acceptance.DUPLICATE
    for slot in (1, 2):
        assert slot_is_free(slab.view, slab.offset(slot))
        assert slot_is_dirty(slab.view, slab.offset(slot))


def test_a_removed_page_keeps_its_bytes_until_the_last_hold_ends(dram: DramTier) -> None:
    slab = grant(dram)
    write(slab, 0, 7)
    accept(dram, slab, 0, 7)
    copy = dram.get(key_of(7))
    assert copy is not None
    dram.hold(copy)
    dram.hold(copy)
    dram.remove(copy)
    assert dram.get(key_of(7)) is None
    dram.unhold(copy)
    assert bytes(copy.record[HEADER_BYTES : HEADER_BYTES + PAYLOAD_BYTES]) == payload_of(7)
    assert accept(dram, slab, 0, 7) is Acceptance.STALE
    dram.unhold(copy)
    assert not any(slab.view[slab.offset(0) : slab.offset(1)])


def test_the_budget_bounds_slabs(dram: DramTier) -> None:
    for _ in range(3):
        grant(dram)
    with pytest.raises(StoreRefused) as refused:
        grant(dram)
    assert refused.value.reason == "dram_budget"


def test_reopened_slabs_have_their_pages_and_the_first_of_two_copies_wins(
    dram: DramTier, tmp_path: Path
) -> None:
    slab = grant(dram)
    write(slab, 0, 1, sequence=9)
    write(slab, 1, 1, sequence=3)
    write(slab, 2, 2)
    slab.view[slab.offset(2) + 50] ^= 1  # torn header
    write(slab, 3, 3)
    (tmp_path / "slab-000009.new").write_bytes(b"half made")
    (tmp_path / "slab-000007").write_bytes(b"no slab")
    again = DramTier(tmp_path, NODE, 1 << 30)
    again.open()
    assert {copy.key: copy.sequence for copy in again.pages()} == {key_of(1): 3, key_of(3): 1}
    assert again.corrupt_headers == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["slab-000000"]
    assert grant(again).name == "slab-000008"


def test_a_dead_engines_slab_is_adopted_with_pages_that_nobody_announced(dram: DramTier) -> None:
    slab = grant(dram, pid=2**22 + 1)
    write(slab, 0, 1)
    accept(dram, slab, 0, 1)
    write(slab, 1, 2)
    half = slab.offset(2) + HEADER_BYTES
    slab.view[half : half + 4] = b"half"  # the engine died while it copied
    assert dram.orphans() == [slab]
    assert [copy.key for copy in dram.adopt(slab)] == [key_of(2)]
    assert dram.orphans() == []
    assert slab.is_agents
    dirty = dram.begin_scrub(slab)
    assert 2 in dirty
    assert dram.begin_scrub(slab) == []  # reserved: nobody else writes or zeroes there meanwhile
    dram.end_scrub(slab, scrub_slots(slab, dirty))
    assert not any(slab.view[half : half + 4])
    assert dram.unlink_empty() == 0
    for copy in list(dram.pages()):
        dram.remove(copy)
    assert dram.unlink_empty() == 1
    assert not slab.path.exists()
    assert dram.usage().reserved_bytes == 0


def test_the_agent_takes_only_free_slots_of_its_own_slabs(dram: DramTier) -> None:
    grant(dram)
    assert dram.take_slot(PAYLOAD_BYTES) is None
    mine = grant(dram, engine_id="")
    write(mine, 0, 1)
    accept(dram, mine, 0, 1)
    taken = [dram.take_slot(PAYLOAD_BYTES) for _ in range(4)]
    assert taken == [(mine, 1), (mine, 2), (mine, 3), None]
    assert dram.take_slot(SLOT_BYTES + 1) is None
    dram.end_writing(mine, 2)
    assert dram.take_slot(PAYLOAD_BYTES) == (mine, 2)
