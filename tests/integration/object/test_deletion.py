"""What is deleted stays deleted: during uploads, after crashes, on every node."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import pytest

from agentmem.errors import KeyUnreadable, StoreRefused
from agentmem.store.objectstore import ObjectStore
from tests.integration.object.conftest import Place
from tests.integration.object.test_tier import (
    NODE,
    TENANT,
    expected,
    keyring,
    opened,
    payloads,
    sealed,
)
from tests.unit.store.records import key_of

T = TypeVar("T")


class Gated(ObjectStore):
    """Uploads wait for `go`, and may end the process when they are done."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.killed = False

    async def put_new(self, name: str, data: bytes | memoryview) -> bool:
        self.begun.set()
        await self.go.wait()
        made = await super().put_new(name, data)
        if self.killed:
            raise Killed
        return made


class Killed(Exception):
    """The process ends here."""


async def test_a_page_deleted_during_its_upload_never_appears(tmp_path: Path) -> None:
    store = Gated(f"file://{tmp_path}/store")
    async with opened(store, tmp_path / "index") as tier:
        put = asyncio.create_task(tier.put(sealed(range(2))))
        await store.begun.wait()
        assert await tier.remove([key_of(0)]) == []
        store.go.set()
        await put
        assert key_of(0) not in tier
        assert await payloads(tier, range(2)) == expected([1])
        before = await store.list("packs/")
        await tier.reclaim()
        assert [name for name, _ in await store.list("packs/")] != [name for name, _ in before]
        assert await payloads(tier, range(2)) == expected([1])
    async with opened(ObjectStore(store.url), tmp_path / "index") as tier:
        assert [n for n in range(2) if key_of(n) in tier] == [1]


async def test_an_object_that_a_crash_left_is_found_and_can_be_deleted(tmp_path: Path) -> None:
    dying = Gated(f"file://{tmp_path}/store")
    dying.go.set()
    dying.killed = True
    async with opened(dying, tmp_path / "index") as tier:
        with pytest.raises(Killed):
            await tier.put(sealed(range(3)))
    store = ObjectStore(dying.url)
    async with opened(store, tmp_path / "index") as tier:
        assert await tier.refresh() == 3
        assert await payloads(tier, range(3)) == expected(range(3))
        await tier.remove([key_of(n) for n in range(3)])
        await tier.reclaim()
        assert await store.list("packs/") == []


@pytest.mark.parametrize("lost", ["index", "names"])
async def test_half_of_the_index_may_be_lost(tmp_path: Path, lost: str) -> None:
    store = ObjectStore(f"file://{tmp_path}/store")
    async with opened(store, tmp_path / "index") as tier:
        await tier.put(sealed(range(12)))
    shutil.rmtree(tmp_path / "index" / lost)
    async with opened(store, tmp_path / "index") as tier:
        assert key_of(0) not in tier
        assert await tier.refresh() == 12
        assert await payloads(tier, range(12)) == expected(range(12))


async def test_what_is_no_pack_is_read_once(tmp_path: Path) -> None:
    store = ObjectStore(f"file://{tmp_path}/store")
    async with opened(store, tmp_path / "index") as tier:
        await store.put_new(f"packs/{NODE}/other.agm", bytes(9000))
        for _ in range(3):
            assert await tier.refresh() == 0
        assert tier.counters["object_packs_unreadable"] == 1
        await tier.reclaim()
        assert len(await store.list("packs/")) == 1


async def test_other_nodes_hear_of_an_erased_tenant(place: Place, tmp_path: Path) -> None:
    async with (
        keyring(tmp_path / "a", place.open()) as one,
        keyring(tmp_path / "b", place.open()) as other,
    ):
        await one.data_key(TENANT)
        await other.data_key(TENANT)
        neighbour = await other.data_key(b"another tenant's")
        stored = await place.open().get(f"keys/{TENANT.hex()}")
        assert stored is not None
        wrapped = bytes(stored)
        await one.erase(TENANT)
        assert await other.refresh() == 1
        assert await other.refresh() == 0
        assert other.cached(TENANT) is None
        with pytest.raises(StoreRefused, match="erased"):
            await other.data_key(TENANT)
        assert other.cached(neighbour.key_id) == neighbour
    for path in (p for node in "ab" for p in (tmp_path / node).rglob("*") if p.is_file()):
        assert wrapped[13:] not in path.read_bytes(), path
    async with keyring(tmp_path / "b", None) as other:
        assert await other.known_key(TENANT) is None
        assert other.cached(neighbour.key_id) == neighbour


async def test_a_node_with_another_root_key_makes_no_keys(place: Place, tmp_path: Path) -> None:
    async with keyring(tmp_path / "a", place.open()) as ring:
        await ring.data_key(TENANT)
    other = b"another tenant's"
    async with keyring(tmp_path / "b", place.open(), os.urandom(32)) as stranger:
        with pytest.raises(KeyUnreadable, match="another one"):
            await stranger.data_key(other)
    assert await place.open().get(f"keys/{other.hex()}") is None


async def test_no_key_is_made_while_one_is_erased(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = place.open()
    async with (
        keyring(tmp_path / "a", store) as one,
        keyring(tmp_path / "b", place.open()) as other,
    ):
        await one.data_key(TENANT)

        def meanwhile(call: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
            async def called(*arguments: object) -> T:
                answer = await call(*arguments)
                with suppress(StoreRefused):
                    await other.data_key(TENANT)
                return answer

            return called

        for name in ("delete", "put", "put_new"):
            monkeypatch.setattr(store, name, meanwhile(getattr(store, name)))
        await one.erase(TENANT)
        assert bytes(await place.open().get(f"keys/{TENANT.hex()}") or b"") == b"\x00"
        assert await other.known_key(TENANT) is None


async def test_a_key_made_without_a_store_is_put_there_when_there_is_one(
    place: Place, tmp_path: Path
) -> None:
    async with keyring(tmp_path / "a", None) as ring:
        key = await ring.data_key(TENANT)
    for _ in range(2):
        store = place.open()
        async with keyring(tmp_path / "a", store) as ring:
            assert [await ring.data_key(TENANT) for _ in range(3)] == [key] * 3
    # Once it is known to be there, no store is asked.
    assert store.counters == {}
    async with keyring(tmp_path / "b", place.open()) as ring:
        assert await ring.data_key(TENANT) == key


async def test_two_keys_of_one_tenant_are_told_apart(place: Place, tmp_path: Path) -> None:
    async with keyring(tmp_path / "a", None) as ring:
        key = await ring.data_key(TENANT)
    async with keyring(tmp_path / "b", place.open()) as ring:
        assert await ring.data_key(TENANT) != key
    async with keyring(tmp_path / "a", place.open()) as ring:
        with pytest.raises(StoreRefused, match="another key"):
            await ring.data_key(TENANT)
        assert await ring.known_key(TENANT) == key  # what it sealed can still be read


async def test_a_key_that_the_root_does_not_open_is_not_kept(place: Place, tmp_path: Path) -> None:
    async with keyring(tmp_path / "a", place.open()) as ring:
        await ring.data_key(TENANT)
    root = os.urandom(32)
    async with keyring(tmp_path / "b", place.open(), root) as stranger:
        with pytest.raises(KeyUnreadable):
            await stranger.known_key(TENANT)
    async with keyring(tmp_path / "b", None, root) as stranger:
        assert await stranger.known_key(TENANT) is None
