"""Checking the object tier: what is wrong is found, named and mended, and then it is right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from agentmem.core import PageKey
from agentmem.store.object import ObjectTier
from agentmem.store.objectlisting import ObjectFinding
from agentmem.store.objectstore import ObjectStore
from tests.integration.object.conftest import Place
from tests.integration.object.test_tier import NODE, expected, opened, payloads, sealed
from tests.unit.store.records import RECORD, key_of

OTHER = "f" * 16


def packs_of(tmp_path: Path, node_id: str = NODE) -> list[Path]:
    return sorted((tmp_path / "store" / "packs" / node_id).glob("*.agm"))


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)


async def verified(tier: ObjectTier) -> tuple[int, list[tuple[PageKey, int]], list[ObjectFinding]]:
    """Pages checked, bad ones and where they lay, what else was found."""
    pages, bad, findings, after = 0, [], [], b""
    while True:
        found = await tier.verify(after)
        pages += found.pages
        bad += [(record.key, record.offset) for record in found.bad]
        findings += found.findings
        if not found.after:
            return pages, bad, findings
        after = found.after


async def is_well(tier: ObjectTier, numbers: Sequence[int]) -> None:
    assert await tier.audit() == []
    assert await verified(tier) == (len(numbers), [], [])
    assert await payloads(tier, numbers) == expected(numbers)


async def test_nothing_is_found_where_nothing_is_wrong(place: Place, tmp_path: Path) -> None:
    async with opened(place.open(), tmp_path / "a") as tier:
        await tier.put(sealed(range(20)))
        await tier.remove([key_of(3)])
        await tier.reclaim()
        await is_well(tier, [n for n in range(20) if n != 3])
    assert await place.open().list("probe/") == []


async def test_flipped_bits_are_those_pages_and_no_others(tmp_path: Path) -> None:
    async with opened(ObjectStore(f"file://{tmp_path}/store"), tmp_path / "a") as tier:
        lost: list[PageKey] = []
        tier.listing.on_lost = lambda keys, why: lost.extend(keys)
        await tier.put(sealed(range(20)))
        pack = packs_of(tmp_path)[1]  # with pages 6 to 11, as they lie
        for number in (7, 11):
            flip(pack, 4096 + (number - 6) * RECORD + 5000)
        assert await tier.audit() == []
        pages, bad, _ = await verified(tier)
        assert pages == 20
        assert bad == [(key_of(7), 4096 + RECORD), (key_of(11), 4096 + 5 * RECORD)]
        assert lost == [key_of(7), key_of(11)]
        await is_well(tier, [n for n in range(20) if n not in (7, 11)])
        await tier.put(sealed([7, 11]))
        await is_well(tier, range(20))


async def test_an_object_that_is_gone(place: Place, tmp_path: Path) -> None:
    async with opened(place.open(), tmp_path / "a") as tier:
        lost: list[PageKey] = []
        tier.listing.on_lost = lambda keys, why: lost.extend(keys)
        await tier.put(sealed(range(8)))
        store = place.open()
        name = sorted(await store.list("packs/"))[0][0]
        await store.delete(name)
        (finding,) = await tier.audit()
        assert (finding.kind, finding.name) == ("gone_object", name)
        assert lost == [key_of(n) for n in range(6)]
        await is_well(tier, [6, 7])


async def test_an_object_that_goes_before_it_is_read(tmp_path: Path) -> None:
    async with opened(ObjectStore(f"file://{tmp_path}/store"), tmp_path / "a") as tier:
        await tier.put(sealed(range(8)))
        packs_of(tmp_path)[0].unlink()
        _, bad, (finding,) = await verified(tier)
        assert [key for key, _ in bad] == [key_of(n) for n in range(6)]
        assert finding.kind == "gone_object"
        await is_well(tier, [6, 7])


async def test_an_object_of_its_own_that_it_does_not_know(tmp_path: Path) -> None:
    store = ObjectStore(f"file://{tmp_path}/store")
    async with opened(store, tmp_path / "a") as tier:
        await tier.put(sealed(range(3)))
    async with opened(store, tmp_path / "b", OTHER) as other:
        await other.put(sealed(range(10, 13)))
    async with opened(store, tmp_path / "lost") as tier:
        (finding,) = await tier.audit()  # what others put there is nothing to find
        assert finding.kind == "unknown_object"
        await is_well(tier, [0, 1, 2, 10, 11, 12])


@pytest.mark.parametrize("index", ["kept", "lost"])
async def test_a_footer_that_does_not_check(tmp_path: Path, index: str) -> None:
    store = ObjectStore(f"file://{tmp_path}/store")
    async with opened(store, tmp_path / "a") as tier:
        await tier.put(sealed(range(5)))
        await tier.put(sealed([20]))
    (pack, _) = packs_of(tmp_path)
    flip(pack, -10)
    flip(pack, 4096 + 2 * RECORD + 5000)
    async with opened(store, tmp_path / ("a" if index == "kept" else "new")) as tier:
        found = await tier.audit()
        _, bad, more = await verified(tier)
        kinds = sorted(each.kind for each in [*found, *more])
        if index == "kept":
            assert kinds == ["unreadable_object"]
            assert bad == [(key_of(2), 4096 + 2 * RECORD)]
        else:
            assert kinds == ["unknown_object", "unreadable_object"]
            assert bad == []
        assert not pack.exists()
        await is_well(tier, [0, 1, 3, 4, 20])


async def test_half_an_object(tmp_path: Path) -> None:
    async with opened(ObjectStore(f"file://{tmp_path}/store"), tmp_path / "a") as tier:
        lost: list[PageKey] = []
        tier.listing.on_lost = lambda keys, why: lost.extend(keys)
        await tier.put(sealed(range(5)))
        (pack,) = packs_of(tmp_path)
        pack.write_bytes(pack.read_bytes()[: 4096 + 2 * RECORD + 100])
        kinds = [each.kind for each in await tier.audit()]
        assert kinds == ["unreadable_object", "object_size"]
        assert lost == [key_of(n) for n in (2, 3, 4)]
        await is_well(tier, [0, 1])


async def test_another_nodes_damage_is_left_to_it(tmp_path: Path) -> None:
    store = ObjectStore(f"file://{tmp_path}/store")
    async with opened(store, tmp_path / "b", OTHER) as other:
        await other.put(sealed(range(3)))
    (pack,) = packs_of(tmp_path, OTHER)
    flip(pack, -10)
    async with opened(store, tmp_path / "a") as tier:
        await is_well(tier, [])
    assert pack.exists()


async def test_a_store_that_gives_other_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore(f"file://{tmp_path}/store")

    async def other_bytes(name: str, start: int, end: int) -> memoryview:
        return memoryview(bytes(end - start))

    async with opened(store, tmp_path / "a") as tier:
        with monkeypatch.context() as patched:
            patched.setattr(store, "get_range", other_bytes)
            (finding,) = await tier.audit()
            assert finding.kind == "store"
        await is_well(tier, [])


async def test_a_range_behind_the_end_is_empty(place: Place) -> None:
    store = place.open()
    await store.put_new("short", b"x" * 100)
    for _ in range(4):
        assert await store.get_range("short", 200, 300) == b""
    assert await store.get_range("short", 90, 300) == b"x" * 10
    assert store.failing is None
