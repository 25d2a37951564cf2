"""The object tier when something stops half-way: kills, lost files, and changes that meet."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from agentmem.errors import StoreRefused
from agentmem.store.object import ObjectTier
from agentmem.store.objectcopies import ObjectCopy
from agentmem.store.objectstore import ObjectStore
from tests.integration.object.test_tier import expected, opened, payloads, sealed
from tests.unit.store.records import key_of


class Killed(BaseException):
    """The process ends here: nobody handles it."""


class Watched(ObjectStore):
    """Does something of the test's before or after an object is made."""

    before: Callable[[], Awaitable[object]] | None = None
    after: Callable[[], Awaitable[object]] | None = None
    ranges = 0

    async def put_new(self, name: str, data: bytes | memoryview) -> bool:
        if self.before is not None:
            await self.before()
        made = await super().put_new(name, data)
        if self.after is not None:
            await self.after()
        return made

    async def get_range(self, name: str, start: int, end: int) -> memoryview | None:
        self.ranges += 1
        return await super().get_range(name, start, end)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


async def die() -> None:
    raise Killed


def copies_of(tier: ObjectTier, numbers: range) -> list[ObjectCopy]:
    return [copy for n in numbers if (copy := tier.get(key_of(n))) is not None]


async def test_what_was_uploaded_when_the_agent_died_is_found(url: str, tmp_path: Path) -> None:
    store = Watched(url)
    store.after = die
    async with opened(store, tmp_path / "a") as tier:
        with pytest.raises(Killed):
            await tier.put(sealed(range(3)))
        assert key_of(0) not in tier
    async with opened(ObjectStore(url), tmp_path / "a") as tier:
        assert await tier.refresh() == 3
        assert await payloads(tier, range(3)) == expected(range(3))


@pytest.mark.parametrize("lost", ["index", "names"])
@pytest.mark.parametrize("damage", ["gone", "garbage"])
async def test_one_of_two_files_lost(url: str, tmp_path: Path, lost: str, damage: str) -> None:
    async with opened(ObjectStore(url), tmp_path / "a") as tier:
        await tier.put(sealed(range(20)))
        await tier.remove([key_of(3)])
    if damage == "gone":
        shutil.rmtree(tmp_path / "a" / lost)
    else:
        file = tmp_path / "a" / lost / "data.mdb"
        file.write_bytes(os.urandom(file.stat().st_size))
    async with opened(ObjectStore(url), tmp_path / "a") as tier:
        await tier.refresh()
        await tier.reclaim()
        rest = [n for n in range(20) if n != 3]
        assert await payloads(tier, rest) == expected(rest)
        assert tier.counters["object_pages_lost"] == 0
        assert tier.counters["quarantined_object_pages"] == 0


async def test_readers_follow_pages_into_the_new_object(url: str, tmp_path: Path) -> None:
    async with opened(ObjectStore(url), tmp_path / "a") as tier:
        await tier.put(sealed(range(3)))
        before = copies_of(tier, range(3))
        await tier.remove([key_of(1)])
        await tier.reclaim()
        found = [copy.key async for copy, _ in tier.fetch([before[0], before[2]], 5)]
        assert found == [key_of(0), key_of(2)]
        # A page that is gone ends what is read.
        assert [copy.key async for copy, _ in tier.fetch(before, 5)] == [key_of(0)]


async def test_reads_wait_for_a_slow_caller(url: str, tmp_path: Path) -> None:
    store = Watched(url)
    async with opened(store, tmp_path / "a") as tier:
        await tier.put(sealed(range(60)))
        # Backwards, so that each page is a range of its own.
        reads = tier.fetch(copies_of(tier, range(60))[::-1], 30)
        await anext(reads)
        for _ in range(100):
            await asyncio.sleep(0.001)
        assert store.ranges <= 9
        assert [copy.key async for copy, _ in reads] == [key_of(n) for n in range(58, -1, -1)]


async def test_a_page_deleted_while_it_is_uploaded_stays_deleted(url: str, tmp_path: Path) -> None:
    store = Watched(url)
    async with opened(store, tmp_path / "a") as tier:
        store.before = lambda: tier.remove([key_of(1)])
        await tier.put(sealed(range(3)))
        store.before = None
        assert key_of(1) not in tier
        assert key_of(0) in tier
        await tier.reclaim()
        assert await payloads(tier, [0, 2]) == expected([0, 2])


async def test_a_page_deleted_before_its_lost_upload_is_found_stays_deleted(
    url: str, tmp_path: Path
) -> None:
    store = Watched(url)
    store.after = die
    async with opened(store, tmp_path / "a") as tier:
        with pytest.raises(Killed):
            await tier.put(sealed(range(3)))
        await tier.remove([key_of(1)])
        assert await tier.refresh() == 2
        assert key_of(1) not in tier


async def test_what_was_stored_after_a_deletion_is_kept(url: str, tmp_path: Path) -> None:
    async with opened(ObjectStore(url), tmp_path / "a") as tier:
        await tier.put(sealed(range(2)))  # of sequence 1
        assert await tier.remove([key_of(0)], up_to=0) == []
        assert key_of(0) in tier
        assert len(await tier.quarantine([key_of(0)])) == 1
        await tier.put(sealed([0]))
        assert key_of(0) in tier


async def test_a_refresh_leaves_uploads_alone(url: str, tmp_path: Path) -> None:
    store = Watched(url)
    async with opened(store, tmp_path / "a") as tier:
        store.before = store.after = tier.refresh
        await tier.put(sealed(range(3)))
        store.before = store.after = None
        assert tier.usage().pages == 3
        made = await store.list("packs/")
        await tier.reclaim()
        assert await store.list("packs/") == made
        await tier.remove([key_of(0)])
        await tier.reclaim()
        await tier.refresh()
        assert await payloads(tier, [1, 2]) == expected([1, 2])
        assert len(await store.list("packs/")) == 1


async def test_a_caller_that_gives_up_leaves_index_and_table_alike(
    url: str, tmp_path: Path
) -> None:
    async with opened(ObjectStore(url), tmp_path / "a") as tier:
        await tier.put(sealed(range(3)))
        removal = asyncio.create_task(tier.remove([key_of(0)]))
        await asyncio.sleep(0)
        removal.cancel()
        with pytest.raises(asyncio.CancelledError):
            await removal
    assert key_of(0) not in tier
    async with opened(ObjectStore(url), tmp_path / "a") as tier:
        assert key_of(0) not in tier


async def test_an_unreadable_object_is_left_alone(url: str, tmp_path: Path) -> None:
    async with opened(ObjectStore(url), tmp_path / "a") as tier:
        await tier.put(sealed(range(3)))
    stranger = tmp_path / "store" / "packs" / "f" / "0.agm"
    stranger.parent.mkdir()
    stranger.write_bytes(bytes(10_000))
    async with opened(ObjectStore(url), tmp_path / "b", "f" * 16) as tier:
        assert await tier.refresh() == 3
        assert await tier.refresh() == 0
        assert tier.counters["object_packs_unreadable"] == 1
        await tier.reclaim()
    assert stranger.exists()


async def test_a_store_whose_directory_is_gone_has_not_lost_its_pages(
    url: str, tmp_path: Path
) -> None:
    async with opened(ObjectStore(url), tmp_path / "a") as tier:
        await tier.put(sealed(range(3)))
        (tmp_path / "store").rename(tmp_path / "away")
        with pytest.raises(StoreRefused, match="gone"):
            await tier.refresh()
        assert tier.usage().pages == 3
        (tmp_path / "away").rename(tmp_path / "store")
        assert await tier.refresh() == 0
        assert await payloads(tier, range(3)) == expected(range(3))
