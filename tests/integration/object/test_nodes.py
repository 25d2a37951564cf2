"""Several nodes in one object store: each keeps what it claims, and follows what others do."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentmem.core import PageKey
from agentmem.store.objectstore import ObjectStore
from tests.integration.object.conftest import Place
from tests.integration.object.test_tier import expected, opened, payloads, sealed
from tests.unit.store.records import RECORD, key_of

OTHER = "f" * 16


async def test_pages_are_followed_into_another_nodes_new_objects(
    place: Place, tmp_path: Path
) -> None:
    async with (
        opened(place.open(), tmp_path / "a") as one,
        opened(place.open(), tmp_path / "b", OTHER) as other,
    ):
        lost: list[PageKey] = []
        other.listing.on_lost = lambda keys, why: lost.extend(keys)
        await one.put(sealed(range(6)))
        await other.refresh()
        await one.remove([key_of(1)])
        await one.reclaim()
        await other.refresh()
        rest = [0, 2, 3, 4, 5]
        assert await payloads(other, rest) == expected(rest)
        assert lost == [key_of(1)]
        assert other.usage().pages == 5


async def test_what_a_node_puts_no_longer_depends_on_another(place: Place, tmp_path: Path) -> None:
    async with (
        opened(place.open(), tmp_path / "a") as one,
        opened(place.open(), tmp_path / "b", OTHER) as other,
    ):
        await one.put(sealed(range(6)))
        await other.refresh()
        await other.put(sealed([2, 3]))
        assert [n for n in range(6) if other.is_own(key_of(n))] == [2, 3]
        assert (other.usage().pages, other.own_bytes) == (6, 2 * RECORD)
        await other.put(sealed([2]))  # its own twice is once
        assert other.own_bytes == 2 * RECORD
        await one.remove([key_of(n) for n in range(6)])
        await one.reclaim()
        await other.refresh()
        await other.reclaim()
        assert await payloads(other, [2, 3]) == expected([2, 3])
        assert other.usage().pages == 2


async def test_a_lost_nodes_objects_are_taken_over(place: Place, tmp_path: Path) -> None:
    async with opened(place.open(), tmp_path / "lost", OTHER) as gone:
        await gone.put(sealed(range(20)))
        await gone.remove([key_of(3)])
    async with opened(place.open(), tmp_path / "a") as tier:
        await tier.put(sealed([0, 40]))
        (mine, theirs) = sorted(await tier.listing.owners(), key=lambda owner: owner.packs)
        assert (mine.packs, theirs.node_id, theirs.packs) == (1, OTHER, 4)
        assert theirs.newest_at > 1e9
        packs = pages = 0
        left = 1
        while left:
            taken = await tier.take_over(OTHER, 1)
            packs, pages, left = packs + taken.packs, pages + taken.pages, taken.left
        # The page that was deleted a moment before the node was lost was never rewritten away.
        assert (packs, pages) == (4, 19)
        assert [owner.node_id for owner in await tier.listing.owners()] == [mine.node_id]
        numbers = [*range(20), 40]
        assert await payloads(tier, numbers) == expected(numbers)
        assert all(tier.is_own(key_of(n)) for n in numbers)
        assert tier.own_bytes == 21 * RECORD
        await tier.reclaim()
        assert await payloads(tier, numbers) == expected(numbers)
    async with opened(place.open(), tmp_path / "b", "e" * 16) as fresh:
        assert await fresh.refresh() == 21


async def test_a_lost_nodes_objects_are_deleted(place: Place, tmp_path: Path) -> None:
    async with opened(place.open(), tmp_path / "lost", OTHER) as gone:
        await gone.put(sealed(range(20)))
    async with opened(place.open(), tmp_path / "a") as tier:
        lost: list[PageKey] = []
        tier.listing.on_lost = lambda keys, why: lost.extend(keys)
        await tier.put(sealed([0]))
        await tier.refresh()
        taken = await tier.discard(OTHER, 3)
        assert (taken.packs, taken.left) == (3, 1)
        taken = await tier.discard(OTHER, 3)
        assert (taken.packs, taken.left) == (1, 0)
        assert sorted(lost) == sorted(key_of(n) for n in range(1, 20))
        assert await payloads(tier, [0]) == expected([0])
        assert tier.usage().pages == 1
        assert len(await place.open().list("packs/")) == 1


async def test_a_damaged_object_is_not_taken_over(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    async with opened(ObjectStore(url), tmp_path / "lost", OTHER) as gone:
        await gone.put(sealed(range(2)))
    (pack,) = (tmp_path / "store" / "packs" / OTHER).glob("*.agm")
    data = bytearray(pack.read_bytes())
    data[-10] ^= 1
    pack.write_bytes(data)
    async with opened(ObjectStore(url), tmp_path / "a") as tier:
        assert (await tier.take_over(OTHER, 4))[:2] == (0, 0)
        assert pack.exists()
        assert (await tier.discard(OTHER, 4)).packs == 1


@pytest.mark.parametrize("name", ["x.agm", "zz-1.agm", f"{'g' * 16}-0.agm"])
async def test_names_without_a_time_tell_none(tmp_path: Path, name: str) -> None:
    store = ObjectStore(f"file://{tmp_path}/store")
    await store.put_new(f"packs/{OTHER}/{name}", b"x")
    async with opened(store, tmp_path / "a") as tier:
        (owner,) = await tier.listing.owners()
        assert (owner.newest_at, owner.size_bytes) == (0.0, 1)
