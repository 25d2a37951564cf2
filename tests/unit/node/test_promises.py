"""Promises: admission, what is evicted, what was lost, and whose it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentmem.core import ClaimTerms
from agentmem.store.pack import pack_name
from agentmem.store.policy import Admission
from tests.unit.node.nodes import RECORD, Node, keys_of
from tests.unit.store.records import PAYLOAD_BYTES, key_of

A, B = ClaimTerms(b"a" * 16), ClaimTerms(b"b" * 16)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path, disk_pages=10, quota_pages=6)
    await node.open()
    yield node
    await node.close()


async def claim(
    node: Node, name: str, *numbers: int, terms: ClaimTerms = A, seconds: float = 100.0
) -> Admission:
    expires_at = node.clock.now + seconds
    return await node.retention.claim(name, keys_of(numbers), expires_at, terms)


async def keep(node: Node, name: str, *numbers: int, terms: ClaimTerms = A) -> None:
    """Stores pages, claims them and sees them durable."""
    assert node.store(*numbers) == list(numbers)
    await claim(node, name, *numbers, terms=terms)
    await node.durable(*numbers)


async def test_what_there_is_no_room_for_is_not_promised_but_kept(node: Node) -> None:
    await keep(node, "a", 0, 1, 2, 3)
    assert await claim(node, "a2", *range(4, 12)) == Admission(2, "quota")
    # The disk's share for promises is 9 pages; tenant a has 6 of them.
    assert await claim(node, "b", *range(20, 26), terms=B) == Admission(3, "capacity")
    assert node.promises.promised_bytes == 9 * RECORD
    assert node.promises.counters["promises_refused_quota"] == 1
    assert node.store(4, 5, 6) == [4, 5, 6]
    await node.durable(4, 5, 6)  # page 6 is cache, and there is room for it


@pytest.mark.parametrize(("pages", "promised"), [(0, 0), (4, 1), (100, 3)])
async def test_a_plans_quota_holds_beside_the_nodes(node: Node, pages: int, promised: int) -> None:
    await keep(node, "a", 0, 1, 2)
    terms = A._replace(quota_bytes=pages * RECORD)
    assert await claim(node, "a2", *range(3, 12), terms=terms) == Admission(promised, "quota")
    assert node.promises.promised_bytes == (3 + promised) * RECORD, "nothing is taken back"
    terms = B._replace(quota_bytes=None)
    assert (await claim(node, "b", *range(20, 23), terms=terms)).pages == 3


async def test_pages_that_are_not_promised_go_and_promised_ones_do_not(node: Node) -> None:
    await keep(node, "a", *range(6))
    assert await claim(node, "a2", 6, 7) == Admission(0, "quota")
    node.store(6, 7)
    await node.durable(6, 7)
    await node.ownership.drop_dram(None)
    await node.disk.evict(100 * RECORD)
    assert node.held(range(8)) == [0, 1, 2, 3, 4, 5]


async def test_an_expired_claim_makes_room_for_promises(node: Node) -> None:
    await keep(node, "a", *range(6))
    assert (await claim(node, "a2", 6)).pages == 0
    node.clock.now += 1000
    await node.retention.sweep()
    assert await claim(node, "a2", 6) == Admission(1)


async def test_promises_hold_over_a_restart(node: Node) -> None:
    await keep(node, "a", *range(6))
    await node.close()
    await node.open()
    assert node.promises.promised_bytes == 6 * RECORD
    assert (await claim(node, "a2", 6)).reason == "quota"
    await node.ownership.drop_dram(None)
    await node.disk.evict(100 * RECORD)
    assert node.held(range(6)) == [0, 1, 2, 3, 4, 5]


async def test_use_by_tenant(node: Node) -> None:
    await keep(node, "a", 0, 1)
    await keep(node, "b", 10, 11, 12, terms=B)
    await claim(node, "b", 13, terms=B._replace(start=3))
    await node.ownership.drop_dram(keys_of([0]))
    b, a = await node.promises.tenants(10)
    assert a == (A.tenant, 2, 2 * RECORD, 1, PAYLOAD_BYTES, 2, 2 * PAYLOAD_BYTES)
    assert b == (B.tenant, 4, 4 * RECORD, 3, 3 * PAYLOAD_BYTES, 3, 3 * PAYLOAD_BYTES)
    assert await node.promises.tenants(1) == [b]


async def lose(node: Node, number: int) -> None:
    """A reader finds the page's bytes wrong, wherever they are."""
    for _ in range(2):
        hold = node.ownership.hold_prefix([key_of(number)])
        for copy in hold.copies:
            location = node.ownership.locations(hold)[0]
            with Path(location.path).open("r+b") as file:
                file.seek(location.offset + 5000)
                file.write(b"wrong")
            await node.retention.judge([copy])
        node.ownership.holds.end(hold.hold_id)
    await node.promises.record_lost()


async def test_a_promised_page_that_is_gone_is_a_breach_until_it_is_back(node: Node) -> None:
    persistent = A._replace(retention="persistent")
    await keep(node, "a", 0, 1, 2, terms=persistent)
    await lose(node, 1)
    (loss,) = await node.promises.losses(0, 10, gone=True)
    assert (loss.key, loss.claim_id, loss.why) == (key_of(1), b"a", "quarantined")
    assert (loss.tenant, loss.retention, loss.back_us) == (A.tenant, "persistent", 0)
    node.store(1)
    await node.durable(1)
    await node.retention.sweep()
    assert await node.promises.losses(0, 10, gone=True) == []
    (loss,) = await node.promises.losses(0, 10, gone=False)
    assert loss.back_us > 0
    assert await node.promises.losses(loss.number, 10, gone=False) == []
    assert node.promises.counters["breaches_quarantined"] == 1
    assert node.promises.counters["losses_back"] == 1


async def test_what_is_no_breach(node: Node) -> None:
    await keep(node, "helper", 0, terms=A._replace(retention="scratch"))
    await keep(node, "a", 1)
    await claim(node, "b", 2)
    node.store(3)
    await lose(node, 0)  # a helper's
    await lose(node, 2)  # never there
    await lose(node, 3)  # nobody's
    node.clock.now += 1000
    await lose(node, 1)  # expired
    assert node.held(range(4)) == []
    assert await node.promises.losses(0, 10, gone=False) == []


async def test_a_page_that_was_not_promised_is_no_breach(node: Node) -> None:
    await keep(node, "a", *range(6))
    assert (await claim(node, "a2", 6)).pages == 0
    node.store(6)
    await node.durable(6)
    await lose(node, 6)
    assert node.held([6]) == []
    assert await node.promises.losses(0, 10, gone=False) == []


async def test_a_loss_is_told_once_and_ends_with_its_claim(node: Node) -> None:
    await keep(node, "a", 0, 1)
    for _ in range(2):
        await lose(node, 1)
    assert len(await node.promises.losses(0, 10, gone=True)) == 1
    await node.close()
    await node.open()
    assert len(await node.promises.losses(0, 10, gone=True)) == 1
    await node.retention.unclaim("a", keys_of([0, 1]))
    await node.retention.sweep()
    assert await node.promises.losses(0, 10, gone=True) == []
    assert len(await node.promises.losses(0, 10, gone=False)) == 1


async def test_promised_pages_dropped_while_the_disk_fails_are_listed(node: Node) -> None:
    await node.close()
    await node.open(write=False)
    node.store(0, 1, 2)
    await claim(node, "a", 0, 1)
    node.write_behind.failing = "disk_failed"
    assert node.ownership.evict(3, [node.slab]) == 3
    await node.promises.record_lost()
    losses = await node.promises.losses(0, 10, gone=True)
    assert {(loss.key, loss.why) for loss in losses} == {
        (key, "evicted") for key in keys_of([0, 1])
    }


async def test_pages_lost_with_their_medium_are_breaches(node: Node) -> None:
    await keep(node, "a", 0, 1)
    copy = node.disk.get(key_of(0))
    assert copy is not None
    await node.close()
    (node.directory / "packs" / pack_name(copy.pack)).unlink()
    for slab in (node.directory / "slabs").iterdir():
        slab.unlink()
    await node.open()
    losses = await node.promises.losses(0, 10, gone=True)
    assert sorted((loss.key, loss.why) for loss in losses) == sorted(
        (key, "lost") for key in keys_of([0, 1])
    )


async def test_after_deletion_nothing_of_the_pages_is_left_in_any_file(node: Node) -> None:
    await keep(node, "a", 0, 1, 2)
    await keep(node, "b", 2, 3)
    assert node.found_in_files(range(4)) == [0, 1, 2, 3]
    await node.retention.unclaim("a", keys_of([0, 1, 2]))
    await node.retention.sweep()
    assert node.found_in_files(range(4)) == [2, 3]
