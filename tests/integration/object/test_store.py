"""The client of an object store: what it says about stores that are not there, fail or hang."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from agentmem.errors import ConfigurationInvalid, StoreRefused
from agentmem.store import objectstore
from agentmem.store.objectstore import ObjectStore
from tests.integration.object.conftest import Place
from tests.integration.object.test_tier import expected, opened, payloads, sealed
from tests.unit.store.records import key_of

OPTIONS = {"access_key_id": "test", "secret_access_key": "test", "region": "us-east-1"}
DATA = os.urandom(6 << 20)  # more than the library sends in one part of an upload in parts


async def test_objects(place: Place) -> None:
    store = place.open()
    assert await store.get("a/b") is None
    assert await store.get_range("a/b", 0, 1) is None
    assert await store.size("a/b") is None
    assert await store.put_new("a/b", DATA)
    assert not await store.put_new("a/b", b"other")
    assert bytes(await store.get("a/b") or b"") == DATA
    assert bytes(await store.get_range("a/b", 5, 9) or b"") == DATA[5:9]
    assert await store.size("a/b") == len(DATA)
    await store.put("a/b", b"other")
    assert bytes(await store.get("a/b") or b"") == b"other"
    await store.put("a/c", b"")
    assert await store.list("a/") == [("a/b", 5), ("a/c", 0)]
    assert await store.list("a/", "a/b") == [("a/c", 0)]
    await store.delete("a/b")
    await store.delete("a/b")
    assert await store.list("") == [("a/c", 0)]
    assert store.failing is None


async def test_lists_come_in_pages(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectstore, "_LIST_CHUNK", 3)
    store = place.open()
    for number in range(10):
        await store.put(f"many/{number}", b".")
    assert sorted(await store.list("many/")) == [(f"many/{number}", 1) for number in range(10)]


async def test_a_bucket_that_is_not_there_takes_nothing(s3: str, tmp_path: Path) -> None:
    store = ObjectStore("s3://nowhere/path", endpoint=s3, **OPTIONS)
    async with opened(store, tmp_path / "a") as tier:
        with pytest.raises(StoreRefused, match="failed"):
            await tier.put(sealed(range(3)))
        assert key_of(0) not in tier
    calls: list[Callable[[], Any]] = [
        lambda: store.get("a"),
        lambda: store.list(""),
        lambda: store.delete("a"),
    ]
    for call in calls:
        store._worked()
        with pytest.raises(StoreRefused, match="failed"):
            await call()


async def test_objects_in_a_directory_survive_a_loss_of_power(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def fsync(fd: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{fd}").readlink().relative_to(tmp_path)))

    monkeypatch.setattr(os, "fsync", fsync)
    await ObjectStore(f"file://{tmp_path}/the store").put_new("a/b/c", b"x")
    assert synced == ["the store/a/b/c", "the store/a/b", "the store/a", "the store"]


async def test_waits_grow_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(objectstore.time, "monotonic", lambda: now)
    store = ObjectStore("memory://")
    waits = []
    for _ in range(8):
        for _ in range(12):  # those that were under way together count once
            store._failed("get", OSError("no"))
        waits.append(store._paused_until - now)
        with pytest.raises(StoreRefused, match="left alone"):
            await store.get("a")
        now = store._paused_until
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]
    assert await store.get("a") is None
    assert store.failing is None
    store._failed("get", OSError("no"))
    store.check()


@pytest.mark.parametrize("url", ["nonsense", "ftp://a/b", "s3://"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ConfigurationInvalid):
        ObjectStore(url)


class Faulty:
    """A proxy before an S3 server that spoils answers while `fault` is set."""

    fault: str | None = None
    requests = 0

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._host, self._port = str(parts.hostname), int(parts.port or 80)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await _message(reader):
                self.requests += 1
                await self._answer(request, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, request: bytes, writer: asyncio.StreamWriter) -> None:
        if self.fault in ("500", "503"):
            writer.write(b"HTTP/1.1 %s no\r\ncontent-length: 0\r\n\r\n" % self.fault.encode())
            return
        if self.fault == "hang":
            await asyncio.sleep(3600)
        theirs, ours = await asyncio.open_connection(self._host, self._port)
        try:
            ours.write(request)
            answer = await _message(theirs)
        finally:
            ours.close()
        if self.fault == "half" and not request.startswith(b"HEAD"):
            head, _, body = answer.partition(b"\r\n\r\n")
            writer.write(head + b"\r\n\r\n" + body[: len(body) // 2])
            raise ConnectionError
        writer.write(answer)


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = await reader.readline()
        if not line:
            return b""
        head += line
        if re.match(rb"(?i)connection:", line):
            head = head[: -len(line)]
    length = re.search(rb"(?i)content-length: (\d+)", head)
    bodyless = head.startswith(b"HTTP/1.1 204")
    return head + (await reader.readexactly(int(length[1])) if length and not bodyless else b"")


@asynccontextmanager
async def faulty(target: str) -> AsyncIterator[tuple[Faulty, str]]:
    proxy = Faulty(target)
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(proxy.serve(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    yield proxy, f"http://{host}:{port}"
    server.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await server.wait_closed()


@pytest.mark.parametrize("place", ["s3"], indirect=True)
@pytest.mark.parametrize("fault", ["500", "503", "hang", "half"])
async def test_a_faulty_store_is_a_miss_and_comes_back(
    place: Place, s3: str, tmp_path: Path, fault: str
) -> None:
    async with faulty(s3) as (proxy, endpoint):
        options = place.options | {"endpoint": endpoint}
        store = ObjectStore(place.url, call_seconds_max=2.0, **options)
        async with opened(store, tmp_path / "a") as tier:
            await tier.put(sealed(range(6)))
            proxy.fault = fault
            assert await payloads(tier, range(6)) == []
            assert tier.failing
            if fault != "half":  # what a put is answered has no body to lose
                with pytest.raises(StoreRefused):
                    await tier.put(sealed(range(6, 9)))
            with pytest.raises(StoreRefused):
                await tier.refresh()
            assert tier.usage().pages == 6
            while not store.resting:
                with pytest.raises(StoreRefused):
                    await tier.refresh()
            seen = proxy.requests
            with pytest.raises(StoreRefused, match="left alone"):
                await store.get("packs/none")
            assert proxy.requests == seen
            proxy.fault = None
            while tier.failing:
                await asyncio.sleep(0.05)
                await tier.refresh_soon()
            assert await payloads(tier, range(6)) == expected(range(6))
            await tier.put(sealed(range(6, 9)))
            assert await payloads(tier, range(9)) == expected(range(9))


@pytest.mark.parametrize("place", ["s3"], indirect=True)
async def test_a_reader_gets_nothing_after_its_deadline(
    place: Place, s3: str, tmp_path: Path
) -> None:
    async with faulty(s3) as (proxy, endpoint):
        store = ObjectStore(place.url, **place.options | {"endpoint": endpoint})
        async with opened(store, tmp_path / "a") as tier:
            await tier.put(sealed(range(3)))
            proxy.fault = "hang"
            copies = [copy for n in range(3) if (copy := tier.get(key_of(n))) is not None]
            assert [copy async for copy, _ in tier.fetch(copies, 0.2)] == []
            proxy.fault = None
            assert await payloads(tier, range(3)) == expected(range(3))
