"""The table of pages in memory, against a dictionary that does the same."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

import pytest

from agentmem.core import PageKey
from agentmem.pages.record import ALIGN_BYTES
from agentmem.store.index import Extent
from agentmem.store.table import PageTable


def key_of(number: int) -> PageKey:
    return PageKey(bytes(16) + hashlib.sha256(b"%d" % number).digest())


def crowded_key(number: int) -> PageKey:
    """Keys that all begin to look for their row in one of two places of one table."""
    start = (number % 2 << 10).to_bytes(8, "little")
    return PageKey(bytes(16) + start + number.to_bytes(24, "little"))


@pytest.mark.parametrize("make_key", [key_of, crowded_key])
def test_it_is_a_mapping_of_keys_to_extents(make_key: Callable[[int], PageKey]) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    table, model = PageTable(), dict[PageKey, Extent]()
    pages = 4000 if make_key is key_of else 60
    for step in range(20_000):
        key = make_key(chance.randrange(pages))
        if chance.random() < 0.55:
            extent = Extent(
                key,
                chance.randrange(1 << 32),
                ALIGN_BYTES * chance.randrange(1, 1 << 32),
                chance.randrange(1, 1 << 30),
                step,
                chance.randrange(1 << 20),
                b"" if chance.random() < 0.5 else bytes([chance.randrange(5)]) * 16,
            )
            table.add(extent, step)
            model[key] = extent
        else:
            assert table.pop(key) == model.pop(key, None)
        assert table.get(key) == model.get(key)
        assert (key in table) == (key in model)
        if step % 2000 == 0:
            assert sorted(table.extents()) == sorted(model.values())
    assert len(table) == len(model)
    assert table.page_bytes == sum(extent.payload_bytes for extent in model.values())
    assert all(table.get(key) == extent for key, extent in model.items())
    assert {use.key: use.payload_bytes for use in table.uses()} == {
        key: extent.payload_bytes for key, extent in model.items()
    }


@pytest.mark.parametrize("reserved", [0, 10, 100_000])
def test_room_made_ahead_changes_nothing_else(reserved: int) -> None:
    table = PageTable()
    table.reserve(reserved)
    extents = [Extent(key_of(n), n, ALIGN_BYTES, 1, n) for n in range(20_000)]
    for extent in extents:
        table.put(extent, 0)
    assert [table.get(extent.key) for extent in extents] == extents
    assert table.pop(key_of(1)) == extents[1]
    table.put(extents[1], 0)
    assert len(table) == len(list(table.extents())) == 20_000


def test_moved_pages_keep_everything_but_their_place() -> None:
    table = PageTable()
    extent = Extent(key_of(1), 3, 5 * ALIGN_BYTES, 100, 7, 2, b"k" * 16)
    table.add(extent, 50)
    table.move(extent.key, 4, 9 * ALIGN_BYTES)
    assert table.get(extent.key) == extent._replace(pack=4, offset=9 * ALIGN_BYTES)
    with pytest.raises(KeyError):
        table.move(key_of(2), 4, ALIGN_BYTES)


def test_pages_come_in_the_order_of_their_last_use() -> None:
    table = PageTable()
    for number in range(6):
        table.add(Extent(key_of(number), 0, ALIGN_BYTES, 1, 1, position=number), 100)
    table.touch(key_of(5), 300)
    table.touch(key_of(0), 200)
    table.touch(key_of(9), 1)  # is not there
    assert table.least_used(3) == [key_of(4), key_of(3), key_of(2)]
    assert table.least_used(99) == [key_of(n) for n in (4, 3, 2, 1, 0, 5)]


def test_iterating_sees_what_was_there_all_the_time() -> None:
    table = PageTable()
    for number in range(5000):
        table.add(Extent(key_of(number), 0, ALIGN_BYTES, 1, 1), 0)
    seen = set()
    for count, use in enumerate(table.uses()):
        seen.add(use.key)
        table.pop(key_of(4999 - count % 1000))
        table.add(Extent(key_of(5000 + count), 0, ALIGN_BYTES, 1, 1), 0)
    assert seen >= {key_of(number) for number in range(4000)}
