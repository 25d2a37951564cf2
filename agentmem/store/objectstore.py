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
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlparse

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

T = TypeVar("T")


class ObjectStore:
    """One bucket or directory, below the path that its URL names.

    Credentials come from the environment, under the names that the store's own tools use
    (`AWS_ACCESS_KEY_ID`, `GOOGLE_SERVICE_ACCOUNT`, `AZURE_STORAGE_ACCOUNT_KEY`, ...); `options`
    win over them. `endpoint` is a server that speaks S3's protocol. `failing` says why the last
    call failed, None while the store works. Methods raise StoreRefused (reason `object_failed`)
    where the store fails or is left alone.
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
        if endpoint:
            options["endpoint"] = endpoint
            # Whoever names a server without TLS means it.
            allowed = {"allow_http": endpoint.startswith("http://")}
            options["client_options"] = {**allowed, **options.get("client_options", {})}
        self._store = _open(url, call_seconds_max, options)
        # An object in a directory survives a loss of power only when it is synced.
        in_directory = url.startswith("file://")
        self._directory = Path(unquote(urlparse(url).path)) if in_directory else None

    async def put_new(self, name: str, data: bytes | memoryview) -> bool:
        """Makes an object, whole and durable; False, and nothing changed, where the name is taken
        already."""

        async def make() -> None:
            await obstore.put_async(self._store, name, data, mode="create")
            if self._directory is not None:
                await asyncio.to_thread(_sync, self._directory, name)

        return await self._call("put", make, _made, False)

    async def get(self, name: str) -> memoryview | None:
        """The whole object; None where there is none."""

        async def read() -> memoryview:
            found = await obstore.get_async(self._store, name)
            return memoryview(await found.bytes_async())

        return await self._call("get", read, _same, None)

    async def get_range(self, name: str, start: int, end: int) -> memoryview | None:
        """Bytes [start, end) of an object, fewer where it ends before; None where there is none."""

        async def read() -> memoryview:
            return memoryview(
                await obstore.get_range_async(self._store, name, start=start, end=end)
            )

        found: memoryview | None = await self._call("get", read, _same, None)
        self.counters["object_read_bytes"] += 0 if found is None else found.nbytes
        return found

    async def size(self, name: str) -> int | None:
        """Bytes of an object; None where there is none."""
        return await self._call(
            "head",
            lambda: obstore.head_async(self._store, name),
            lambda meta: int(meta["size"]),
            None,
        )

    async def delete(self, name: str) -> None:
        """Deletes an object; one that is not there is fine."""
        await self._call("delete", lambda: obstore.delete_async(self._store, name), _made, True)

    async def list(self, prefix: str, after: str | None = None) -> list[tuple[str, int]]:
        """(name, bytes) of the objects below `prefix`, those after a name only where given."""

        async def read() -> list[tuple[str, int]]:
            stream = obstore.list(self._store, prefix, offset=after, chunk_size=_LIST_CHUNK)
            return [
                (str(meta["path"]), int(meta["size"])) async for chunk in stream for meta in chunk
            ]

        return await self._call("list", read, _same, [])

    async def _call(
        self,
        kind: str,
        call: Callable[[], Awaitable[Any]],
        made: Callable[[Any], T],
        absent: T,
    ) -> T:
        """Makes a call. `absent` is the answer where there is no such object, or one already."""
        if time.monotonic() < self._paused_until:
            raise StoreRefused(
                f"the object store is left alone for a while: {self.failing}",
                reason="object_failed",
            )
        self.counters[f"object_{kind}_calls"] += 1
        try:
            async with asyncio.timeout(self._call_seconds_max):
                answer = await call()
        except (FileNotFoundError, AlreadyExistsError):
            self._worked()
            return absent
        except (BaseError, OSError, TimeoutError) as error:
            raise self._failed(kind, error) from error
        self._worked()
        return made(answer)

    def _worked(self) -> None:
        if self.failing is not None:
            logger.warning("the object store works again")
        self.failing = None
        self._failures = 0
        self._pause_seconds = _PAUSE_SECONDS_MIN

    def _failed(self, kind: str, error: Exception) -> StoreRefused:
        # The library's message is long, and names the request: the first line says what is wrong.
        words = str(error).strip().splitlines() or [type(error).__name__]
        self.failing = f"{kind}: {words[0][:300]}"
        self.counters["object_calls_failed"] += 1
        self._failures += 1
        if self._failures >= _FAILURES_BEFORE_PAUSE:
            self._paused_until = time.monotonic() + self._pause_seconds
            self._pause_seconds = min(2 * self._pause_seconds, _PAUSE_SECONDS_MAX)
            logger.error("the object store fails: %s", self.failing)
        return StoreRefused(f"the object store failed: {self.failing}", reason="object_failed")


def _sync(directory: Path, name: str) -> None:
    path = directory / name
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    while path != directory:
        path = path.parent
        sync_directory(path)


def _made(_answer: object) -> bool:
    return True


def _same(answer: T) -> T:
    return answer


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
