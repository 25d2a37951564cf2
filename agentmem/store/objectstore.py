"""A bounded client of an object store (S3, Google Cloud, Azure, a directory), over `obstore`.

Every call has a deadline and few retries. A store that fails again and again is left alone for a
while, ever longer, so that it costs those who wait for it nothing; it is tried again by itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import from_url

from agentmem.errors import ConfigurationInvalid, StoreRefused
from agentmem.store.pack import sync_directory

logger = logging.getLogger(__name__)

_CALL_SECONDS_MAX = 30.0
_CONNECT_SECONDS_MAX = 5.0
_RETRIES_MAX = 2
_RETRY_SECONDS_MAX = 5.0
_FAILURES_BEFORE_PAUSE = 3
_PAUSE_SECONDS_MIN = 1.0
_PAUSE_SECONDS_MAX = 30.0
_LIST_CHUNK = 1000
# What stores say where not the object but the bucket is missing: no answer about any object.
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "specified bucket does not exist")
# What they say of a range that begins behind an object's end: one that was cut off has no more.
_BEYOND_END = ("range was invalid", "InvalidRange", "Range Not Satisfiable")

T = TypeVar("T")


class ObjectStore:
    """One bucket or directory, below the path that its URL names.

    Credentials come from the environment, under the names that the store's own tools use
    (`AWS_ACCESS_KEY_ID`, `GOOGLE_SERVICE_ACCOUNT`, `AZURE_STORAGE_ACCOUNT_KEY`, ...); `options`
    win over them. `endpoint` is a server that speaks S3's protocol. `failing` says why the last
    call failed, None while the store works. Methods raise StoreRefused (reason `object_failed`)
    where the store fails or is left alone. What was written to a directory is synced.
    """

    def __init__(
        self,
        url: str,
        *,
        endpoint: str = "",
        call_seconds_max: float = _CALL_SECONDS_MAX,
        **options: Any,
    ) -> None:
        self.url = url
        self.failing: str | None = None
        self.counters: Counter[str] = Counter()
        self._call_seconds_max = call_seconds_max
        self._failures = 0
        self._pause_seconds = _PAUSE_SECONDS_MIN
        self._paused_until = 0.0
        self._directory = Path(unquote(urlsplit(url).path)) if url.startswith("file://") else None
        if endpoint:
            options["endpoint"] = endpoint
            # Whoever names a server without TLS means it.
            allowed = {"allow_http": endpoint.startswith("http://")}
            options["client_options"] = {**allowed, **options.get("client_options", {})}
        self._store = _open(url, call_seconds_max, options)

    async def put_new(self, name: str, data: bytes | memoryview) -> bool:
        """Makes an object whole; False, and nothing changed, where the name is taken already."""

        async def write() -> bool:
            try:
                await obstore.put_async(self._store, name, data, mode="create")
            except AlreadyExistsError:
                return False
            await self._sync(name)
            return True

        return await self._call("put", write)

    async def put(self, name: str, data: bytes | memoryview) -> None:
        """Makes an object whole, in place of one of that name if there is one."""

        async def write() -> None:
            await obstore.put_async(self._store, name, data)
            await self._sync(name)

        await self._call("put", write)

    async def get(self, name: str) -> memoryview | None:
        """The whole object; None where there is none."""

        async def read() -> memoryview:
            found = await obstore.get_async(self._store, name)
            return memoryview(await found.bytes_async())

        return await self._call("get", lambda: _or_none(read()))

    async def get_range(self, name: str, start: int, end: int) -> memoryview | None:
        """Bytes [start, end) of an object, fewer where it ends before; None where there is none."""

        async def read() -> memoryview:
            try:
                found = await obstore.get_range_async(self._store, name, start=start, end=end)
            except BaseError as error:
                if not any(words in str(error) for words in _BEYOND_END):
                    raise
                return memoryview(b"")
            return memoryview(found)

        found = await self._call("get", lambda: _or_none(read()))
        self.counters["object_read_bytes"] += 0 if found is None else found.nbytes
        return found

    async def size(self, name: str) -> int | None:
        """Bytes of an object; None where there is none."""

        async def read() -> int:
            return int((await obstore.head_async(self._store, name))["size"])

        return await self._call("head", lambda: _or_none(read()))

    async def delete(self, name: str) -> None:
        """Deletes an object; one that is not there is fine."""

        async def delete() -> None:
            await obstore.delete_async(self._store, name)

        await self._call("delete", lambda: _or_none(delete()))

    async def list(self, prefix: str, after: str | None = None) -> list[tuple[str, int]]:
        """(name, bytes) of the objects below `prefix`, those after a name only where given.

        Each page of the answer is a call with a deadline of its own.
        """
        if self._directory is not None and not await asyncio.to_thread(self._directory.is_dir):
            # The library takes a directory that went away, with all that is in it, for an empty one
            raise self._failed("list", FileNotFoundError(f"{self._directory} is gone"))
        pages = aiter(obstore.list(self._store, prefix, offset=after, chunk_size=_LIST_CHUNK))
        found: list[tuple[str, int]] = []
        while page := await self._call("list", lambda: _next(pages)):
            found += [(str(meta["path"]), int(meta["size"])) for meta in page]
        return found

    @property
    def resting(self) -> bool:
        """Whether the store is left alone for now."""
        return time.monotonic() < self._paused_until

    def check(self) -> None:
        """Raises StoreRefused while the store is left alone, as every call would."""
        if self.resting:
            raise StoreRefused(
                f"the object store is left alone for a while: {self.failing}",
                reason="object_failed",
            )

    async def _call(self, kind: str, call: Callable[[], Awaitable[T]]) -> T:
        """Makes a call, bounded. Raises StoreRefused."""
        self.check()
        self.counters[f"object_{kind}_calls"] += 1
        try:
            async with asyncio.timeout(self._call_seconds_max):
                answer = await call()
        except (BaseError, OSError, TimeoutError) as error:
            raise self._failed(kind, error) from error
        self._worked()
        return answer

    async def _sync(self, name: str) -> None:
        """Makes an object in a directory survive a loss of power: the library does not."""
        if self._directory is not None:
            await asyncio.to_thread(_sync_below, self._directory, name)

    def _worked(self) -> None:
        if self.failing is not None:
            logger.warning("the object store works again")
        self.failing = None
        self._failures = 0
        self._pause_seconds = _PAUSE_SECONDS_MIN
        self._paused_until = 0.0

    def _failed(self, kind: str, error: Exception) -> StoreRefused:
        # The library's message is long, and names the request: the first line says what is wrong.
        words = str(error).strip().splitlines() or [type(error).__name__]
        self.failing = f"{kind}: {words[0][:300]}"
        self.counters["object_calls_failed"] += 1
        self._failures += 1
        now = time.monotonic()
        # Calls that were under way when the pause began say nothing new.
        if self._failures >= _FAILURES_BEFORE_PAUSE and now >= self._paused_until:
            self._paused_until = now + self._pause_seconds
            self._pause_seconds = min(2 * self._pause_seconds, _PAUSE_SECONDS_MAX)
            logger.error("the object store fails: %s", self.failing)
        return StoreRefused(f"the object store failed: {self.failing}", reason="object_failed")


async def _or_none(answer: Awaitable[T]) -> T | None:
    """None where there is no such object. Raises FileNotFoundError where there is no bucket."""
    try:
        return await answer
    except FileNotFoundError as error:
        if any(words in str(error) for words in _NO_BUCKET):
            raise
        return None


async def _next(pages: AsyncIterator[Sequence[Any]]) -> Sequence[Any]:
    """The next page that has something in it; an empty one at the end."""
    async for page in pages:
        if page:
            return page
    return ()


def _sync_below(directory: Path, name: str) -> None:
    path = directory / name
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    while path != directory:
        path = path.parent
        sync_directory(path)


def _open(url: str, call_seconds_max: float, options: dict[str, Any]) -> Any:
    """Raises ConfigurationInvalid for a URL that no store is at."""
    try:
        if url.startswith("file://"):
            return from_url(url, mkdir=True)
        if url.startswith("memory://"):
            return from_url(url)
        limits = {
            "timeout": timedelta(seconds=call_seconds_max),
            "connect_timeout": timedelta(seconds=_CONNECT_SECONDS_MAX),
            **options.pop("client_options", {}),
        }
        retries = {
            "max_retries": _RETRIES_MAX,
            "retry_timeout": timedelta(seconds=_RETRY_SECONDS_MAX),
        }
        arguments: dict[str, Any] = {"client_options": limits, "retry_config": retries, **options}
        return from_url(url, **arguments)
    except (BaseError, ValueError, OSError) as error:
        raise ConfigurationInvalid(
            f"the object store {url!r} cannot be used: {error}",
            hint="AGENTMEM_OBJECT_URL is s3://bucket/path, gs://, az:// or file:///directory.",
        ) from error
