"""The object tier over real stores: what was put comes back, from this node and from others."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agentmem.errors import KeyUnreadable, PageCorrupt, StoreRefused
from agentmem.pages.crypt import DataKey, open_record, seal_record
from agentmem.store.keyring import Keyring
from agentmem.store.object import ObjectTier
from agentmem.store.objectpack import decode_footer, decode_trailer, encode_pack
from agentmem.store.objectstore import ObjectStore
from agentmem.store.packwriter import Record
from tests.integration.object.conftest import Place
from tests.unit.store.records import key_of, payload_of, record_of

DATA_KEY = DataKey(b"a tenant's tag..", bytes(range(32)))
NODE = "0123456789abcdef"
PACK_BYTES = 100_000  # some records of 16 KiB


def sealed(numbers: Sequence[int]) -> list[Record]:
    found = []
    for number in numbers:
        plain = record_of(number)
        view = memoryview(seal_record(plain.view, DATA_KEY))
        found.append(plain._replace(view=view, position=number, key_id=DATA_KEY.key_id))
    return found


@asynccontextmanager
async def opened(
    store: ObjectStore, directory: Path, node_id: str = NODE
) -> AsyncIterator[ObjectTier]:
    tier = ObjectTier(store, directory, node_id, pack_bytes=PACK_BYTES)
    await tier.open()
    yield tier
    await tier.close()


async def payloads(tier: ObjectTier, numbers: Sequence[int]) -> list[bytes]:
    """What a reader gets for these pages, opened and checked."""
    copies = [copy for n in numbers if (copy := tier.get(key_of(n))) is not None]
    found = []
    async for _copy, view in tier.fetch(copies, 30):
        record = open_record(view, DATA_KEY)
        found.append(record[4096 : 4096 + len(payload_of(0))])
    return found


def expected(numbers: Sequence[int]) -> list[bytes]:
    return [payload_of(number) for number in numbers]


async def test_pages_come_back_in_the_order_asked(place: Place, tmp_path: Path) -> None:
    async with opened(place.open(), tmp_path / "a") as tier:
        await tier.put(sealed(range(20)))
        assert len(await place.open().list("packs/")) == 4
        order = [*range(19, -1, -1), *range(20)]
        assert await payloads(tier, order) == expected(order)
        assert tier.usage().pages == 20
    async with opened(place.open(), tmp_path / "a") as tier:
        assert await payloads(tier, range(20)) == expected(range(20))


async def test_nothing_lies_in_clear(place: Place, tmp_path: Path) -> None:
    async with opened(place.open(), tmp_path / "a") as tier:
        await tier.put(sealed(range(3)))
    store = place.open()
    for name, _ in await store.list(""):
        data = await store.get(name)
        assert data is not None
        assert all(payload_of(n)[100:150] not in bytes(data) for n in range(3))


async def test_a_node_that_lost_its_index_reads_the_footers(place: Place, tmp_path: Path) -> None:
    async with opened(place.open(), tmp_path / "a") as tier:
        await tier.put(sealed(range(20)))
    shutil.rmtree(tmp_path / "a")
    async with opened(place.open(), tmp_path / "a") as tier:
        assert key_of(0) not in tier
        assert await tier.refresh() == 20
        assert await payloads(tier, range(20)) == expected(range(20))
        assert await tier.refresh() == 0


async def test_another_node_finds_them_and_sees_them_go(place: Place, tmp_path: Path) -> None:
    async with (
        opened(place.open(), tmp_path / "a") as one,
        opened(place.open(), tmp_path / "b", "f" * 16) as other,
    ):
        await one.put(sealed(range(6)))
        assert await other.refresh() == 6
        assert await payloads(other, range(6)) == expected(range(6))
        await one.remove([key_of(n) for n in range(6)])
        await one.reclaim()
        assert await other.refresh() == 0
        assert key_of(0) not in other
        assert other.counters["object_pages_lost"] == 6


async def test_deleted_pages_leave_the_store(place: Place, tmp_path: Path) -> None:
    store = place.open()
    async with opened(place.open(), tmp_path / "a") as tier:
        records = sealed(range(10))
        await tier.put(records)
        assert len(await tier.remove([key_of(1), key_of(7), key_of(8), key_of(99)])) == 3
        assert key_of(1) not in tier
        await tier.reclaim()
        left = b"".join([bytes(await store.get(name) or b"") for name, _ in await store.list("")])
        gone = [n for n in range(10) if bytes(records[n].view[4096:8192]) not in left]
        assert gone == [1, 7, 8]
        rest = [n for n in range(10) if n not in gone]
        assert await payloads(tier, rest) == expected(rest)
        await tier.remove([key_of(n) for n in rest])
        await tier.reclaim()
        assert await store.list("packs/") == []
        assert tier.usage()[:3] == (0, 0, 0)
    async with opened(place.open(), tmp_path / "a") as tier:
        assert await tier.refresh() == 0
        assert tier.usage().pages == 0


class Breaking(ObjectStore):
    """Fails, as a dead process would, at the n-th call that changes something."""

    after = 10**9

    async def _count(self) -> None:
        self.after -= 1
        if self.after < 0:
            raise StoreRefused("the test pulled the plug", reason="object_failed")

    async def put_new(self, name: str, data: bytes | memoryview) -> bool:
        await self._count()
        made = await super().put_new(name, data)
        await self._count()
        return made

    async def delete(self, name: str) -> None:
        await self._count()
        await super().delete(name)
        await self._count()


@pytest.mark.parametrize("after", range(8))
async def test_a_crash_at_any_step_of_a_rewrite_loses_nothing(tmp_path: Path, after: int) -> None:
    url = f"file://{tmp_path}/store"
    store = Breaking(url)
    rest = [n for n in range(10) if n not in (1, 7)]
    async with opened(store, tmp_path / "a") as tier:
        await tier.put(sealed(range(10)))
        await tier.remove([key_of(1), key_of(7)])
        store.after = after
        try:
            await tier.reclaim()
        except StoreRefused:
            assert after < 8
    async with opened(ObjectStore(url), tmp_path / "a") as tier:
        await tier.refresh()
        assert await payloads(tier, rest) == expected(rest)
        assert key_of(1) not in tier
        await tier.reclaim()
        await tier.refresh()
        await tier.reclaim()
        assert await payloads(tier, rest) == expected(rest)
        assert tier.usage().pages == len(rest)


async def test_a_store_that_is_away_costs_a_miss_and_comes_back(tmp_path: Path) -> None:
    store = ObjectStore(
        "s3://bucket",
        call_seconds_max=1.0,
        endpoint="http://127.0.0.1:9",
        access_key_id="x",
        secret_access_key="y",
        region="us-east-1",
    )
    async with opened(store, tmp_path / "a") as tier:
        for _ in range(4):
            with pytest.raises(StoreRefused, match="object store"):
                await tier.put(sealed([1]))
        assert key_of(1) not in tier
        assert tier.failing
        calls = tier.counters["object_put_calls"]
        with pytest.raises(StoreRefused, match="left alone"):
            await tier.put(sealed([1]))
        assert tier.counters["object_put_calls"] == calls


async def test_half_an_object_is_no_page(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    async with opened(ObjectStore(url), tmp_path / "a") as tier:
        await tier.put(sealed(range(3)))
        (pack,) = (tmp_path / "store" / "packs").rglob("*.agm")
        whole = pack.read_bytes()
        pack.write_bytes(whole[: 4096 + 16384 + 100])
        assert len(await payloads(tier, range(3))) <= 1
        pack.write_bytes(whole)
        assert await payloads(tier, range(3)) == expected(range(3))


@pytest.mark.parametrize("cut", [1, 30, 64, 100, 5000])
def test_a_damaged_footer_is_refused(cut: int) -> None:
    data, rows = encode_pack(NODE, sealed(range(3)))
    tail_at = decode_trailer(data, len(data))
    assert decode_footer(data[tail_at:]) == rows
    with pytest.raises(PageCorrupt):
        decode_footer(data[decode_trailer(data[:-cut], len(data) - cut) :])
    flipped = bytearray(data)
    flipped[-cut if cut < len(data) - tail_at else tail_at] ^= 1
    with pytest.raises(PageCorrupt):
        decode_footer(bytes(flipped[decode_trailer(bytes(flipped), len(data)) :]))


@asynccontextmanager
async def keyring(
    directory: Path, store: ObjectStore | None, root: bytes = bytes(32)
) -> AsyncIterator[Keyring]:
    ring = Keyring(root, directory, store)
    await ring.open()
    yield ring
    await ring.close()


TENANT = b"tenant tag of 16"


async def test_nodes_agree_on_a_tenants_key(place: Place, tmp_path: Path) -> None:
    async with (
        keyring(tmp_path / "a", place.open()) as one,
        keyring(tmp_path / "b", place.open()) as other,
    ):
        assert await one.known_key(TENANT) is None
        key = await one.data_key(TENANT)
        assert await other.data_key(TENANT) == key
        assert other.cached(TENANT) == key
    async with keyring(tmp_path / "a", None) as ring:
        assert ring.cached(TENANT) == key
    stored = await place.open().get(f"keys/{TENANT.hex()}")
    assert stored is not None
    assert key.secret not in bytes(stored)


async def test_another_root_key_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    async with keyring(tmp_path / "a", None) as ring:
        key = await ring.data_key(TENANT)
    ring = Keyring(os.urandom(32), tmp_path / "a", None)
    with pytest.raises(KeyUnreadable, match="another one"):
        await ring.open()
    await ring.close()
    async with keyring(tmp_path / "a", None) as ring:
        assert ring.cached(TENANT) == key


async def test_an_erased_tenants_key_is_gone_everywhere(place: Place, tmp_path: Path) -> None:
    async with keyring(tmp_path / "a", place.open()) as ring:
        await ring.data_key(TENANT)
        await ring.erase(TENANT)
        assert ring.cached(TENANT) is None
        assert await ring.known_key(TENANT) is None
        with pytest.raises(StoreRefused, match="erased"):
            await ring.data_key(TENANT)
    async with keyring(tmp_path / "b", place.open()) as ring:
        assert await ring.known_key(TENANT) is None
        with pytest.raises(StoreRefused, match="erased"):
            await ring.data_key(TENANT)
