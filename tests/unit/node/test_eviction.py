"""Which pages go when a tier needs room."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentmem.core import ClaimTerms
from tests.unit.node.nodes import RECORD, Node, keys_of
from tests.unit.store.records import PAYLOAD_BYTES, key_of

A, B = ClaimTerms(b"a" * 16), ClaimTerms(b"b" * 16)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path, disk_pages=20)
    await node.open()
    yield node
    await node.close()


async def keep(
    node: Node, name: str, *numbers: int, terms: ClaimTerms = A, seconds: float = 100.0
) -> None:
    node.store(*numbers)
    await node.retention.claim(name, keys_of(numbers), node.clock.now + seconds, terms)
    await node.durable(*numbers)


def in_dram(node: Node, numbers: range) -> list[int]:
    return [number for number in numbers if node.dram.get(key_of(number)) is not None]


async def test_the_end_of_a_log_leaves_dram_before_its_beginning(node: Node) -> None:
    await keep(node, "a", *range(6))
    for _ in range(2):
        # A load begins at the beginning: it must not make the end the last to go.
        hold = node.ownership.hold_prefix(keys_of(range(6)))
        node.ownership.holds.end(hold.hold_id)
    assert node.ownership.evict(2, [node.slab]) == 2
    assert in_dram(node, range(6)) == [0, 1, 2, 3]
    assert node.ownership.evict(9, [node.slab]) == 4


async def test_of_pages_that_nothing_claims_the_beginning_of_a_load_goes_last(node: Node) -> None:
    node.store(*range(6))
    assert await node.write_behind.drain(10)
    hold = node.ownership.hold_prefix(keys_of(range(6)))
    node.ownership.holds.end(hold.hold_id)
    assert node.ownership.evict(2, [node.slab]) == 2
    assert in_dram(node, range(6)) == [0, 1, 2, 3]


async def test_pages_of_a_running_turn_outlast_those_that_are_on_disk_too(node: Node) -> None:
    await keep(node, "a", *range(6))
    node.store(*range(20, 26))
    assert await node.write_behind.drain(10)
    assert node.ownership.evict(4, [node.slab]) == 4
    assert in_dram(node, range(30)) == [0, 1, *range(20, 26)]


async def test_what_precedes_a_page_that_is_read_stays(node: Node) -> None:
    await keep(node, "a", *range(6))
    hold = node.ownership.holds.take([c for c in [node.dram.get(key_of(3))] if c is not None])
    assert node.ownership.evict(9, [node.slab]) == 2
    assert in_dram(node, range(6)) == [0, 1, 2, 3]
    node.ownership.holds.end(hold.hold_id)


async def test_pages_of_other_slabs_stay(node: Node) -> None:
    await keep(node, "a", *range(3))
    assert node.ownership.evict(9, []) == 0
    assert in_dram(node, range(3)) == [0, 1, 2]


async def test_the_tenant_with_most_gives_way_in_dram(tmp_path: Path) -> None:
    node = Node(tmp_path, slots=16)
    await node.open()
    node.dram._budget_bytes = 8 * PAYLOAD_BYTES
    await keep(node, "a", *range(8))
    await keep(node, "b", *range(20, 23), terms=B)
    hold = node.ownership.hold_prefix(keys_of(range(8)))  # used last of all
    node.ownership.holds.end(hold.hold_id)
    node.ownership.evict(3, [node.slab])
    assert in_dram(node, range(30)) == [0, 1, 2, 3, 4, 20, 21, 22]
    await node.close()


async def test_the_disk_gives_up_leftovers_from_the_end_of_a_log_on(node: Node) -> None:
    await keep(node, "old", *range(4), seconds=10)
    await keep(node, "kept", 10, 11)
    node.clock.now += 50
    await node.retention.sweep()
    await node.ownership.drop_dram(None)
    await node.disk.evict(2 * RECORD)
    assert node.held(range(20)) == [0, 1, 10, 11]
    await node.disk.evict(100 * RECORD)
    assert node.held(range(20)) == [10, 11]


async def test_above_the_high_watermark_leftovers_go_before_a_write_has_to_wait(
    node: Node,
) -> None:
    await keep(node, "old", *range(12), seconds=10)
    await node.ownership.drop_dram(None)
    await keep(node, "new", *range(20, 28))
    node.clock.now += 50
    await node.retention.sweep()
    assert node.disk.usage().pages == 18  # the low watermark of 20
    node.clock.now += 1
    await node.retention.sweep()
    assert node.disk.usage().pages == 18


async def test_a_leftover_that_is_claimed_again_stays(node: Node) -> None:
    await keep(node, "old", *range(4), seconds=10)
    node.clock.now += 50
    await node.retention.sweep()
    await node.retention.claim("again", keys_of(range(2)), node.clock.now + 10, A)
    await node.ownership.drop_dram(None)
    await node.disk.evict(100 * RECORD)
    assert node.held(range(4)) == [0, 1]
