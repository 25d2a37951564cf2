"""Tenants' data keys: random, wrapped by the root key, destroyed with their tenant.

A key's id is the tenant's tag (16 bytes, opaque here). Wrapped keys lie in an index of this node
and, where there is an object store, under `keys/` there: created once by whichever node needs one
first, so that all nodes seal and open with the same. Destroying both makes what was sealed
unreadable, wherever copies of it may lie; other nodes hear of it by `refresh`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import lmdb
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from agentmem.errors import KeyUnreadable, StoreRefused
from agentmem.pages.crypt import SECRET_BYTES, DataKey, fresh_nonce
from agentmem.pages.record import KEY_ID_BYTES, NONCE_BYTES
from agentmem.store.lmdbfile import open_environment
from agentmem.store.objectstore import ObjectStore
from agentmem.store.pack import sync_directory

logger = logging.getLogger(__name__)

_INFO = b"agentmem data key wrapping v1"
_VERSION = b"\x01"
_ERASED = b"\x00"  # in place of a wrapped key: never made again under this id
# The object that says which root key the nodes of an object store share, and its own id.
_CHECK_NAME = "root-check"
_CHECK_ID = b"agmem root check"
_PUBLISHED = b" in"  # behind a key's id: the object store that has it
_MAP_BYTES = 1 << 30
_WRAPPED_BYTES = len(_VERSION) + NONCE_BYTES + SECRET_BYTES + 16

T = TypeVar("T")


class Keyring:
    """Makes, keeps and destroys data keys. Secrets are never logged."""

    def __init__(self, root_secret: bytes, directory: Path, store: ObjectStore | None) -> None:
        derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=_INFO).derive(root_secret)
        self._wrapping = AESGCM(derived)
        self._directory = directory
        self._store = store
        self._keys: dict[bytes, DataKey] = {}
        self._making = asyncio.Lock()
        self._root_checked = False
        # Keys that are known to be in the object store; which one that is, the index says.
        self._published: set[bytes] = set()
        self._place = b"" if store is None else store.url.encode()
        self._thread = ThreadPoolExecutor(1, "keyring")
        self._env: lmdb.Environment

    async def open(self) -> None:
        """Opens the index, and tries the root key on the keys there. Raises KeyUnreadable.

        A root key that opens none of them is another one: going on with it would lose them all.
        """
        await self._in_thread(self._open)
        for key_id, wrapped in await self._in_thread(self._all):
            self._keys[key_id] = self._unwrap(key_id, wrapped)

    async def close(self) -> None:
        """Closes the index."""
        await self._in_thread(self._env.close)
        self._thread.shutdown(wait=True)

    def cached(self, key_id: bytes) -> DataKey | None:
        """A key that takes no waiting."""
        return self._keys.get(key_id)

    async def known_key(self, key_id: bytes) -> DataKey | None:
        """A key to open records with; None where it was destroyed, or never was.

        Raises StoreRefused when the object store, which may have it, does not answer.
        """
        if (known := self._keys.get(key_id)) is not None:
            return known
        wrapped = await self._in_thread(partial(self._read, key_id))
        found = None
        if wrapped is None and self._store is not None:
            found = await self._store.get(_name(key_id))
            wrapped = None if found is None else bytes(found)
        if wrapped is None:
            return None
        # Tried before it is kept: one that does not open would keep the agent from starting.
        known = None if wrapped == _ERASED else self._unwrap(key_id, wrapped)
        if found is not None:
            await self._in_thread(partial(self._write, key_id, wrapped, published=True))
        return None if known is None else self._keys.setdefault(key_id, known)

    async def data_key(self, tenant: bytes) -> DataKey:
        """A tenant's key to seal records with, made where there is none yet.

        Raises StoreRefused (reason `key_unavailable`) when the object store does not answer, or
        the tenant was erased; KeyUnreadable.
        """
        known = self._keys.get(tenant)
        if known is not None and (self._store is None or tenant in self._published):
            return known
        async with self._making:
            try:
                known = await self.known_key(tenant)
                if known is None:
                    return await self._make(tenant)
                await self._publish(known)
                return known
            except StoreRefused as error:
                raise StoreRefused(
                    f"no data key to seal pages with: {error.message}", reason="key_unavailable"
                ) from error

    async def erase(self, tenant: bytes) -> None:
        """Destroys a tenant's key everywhere; it is never made again.

        Raises StoreRefused when the object store does not answer: it is then still there.
        """
        async with self._making:
            if self._store is not None:
                # In one step: no other node can make a key in between.
                await self._store.put(_name(tenant), _ERASED)
            await self._destroy(tenant)

    async def refresh(self) -> int:
        """Destroys here the keys that other nodes erased. Returns how many. Raises StoreRefused."""
        if self._store is None:
            return 0
        erased = [
            name
            for name, size_bytes in await self._store.list("keys/")
            if size_bytes == len(_ERASED)
        ]
        destroyed = 0
        async with self._making:
            for key_id in [key_id for key_id in self._keys if _name(key_id) in erased]:
                await self._destroy(key_id)
                destroyed += 1
        return destroyed

    async def _destroy(self, key_id: bytes) -> None:
        self._keys.pop(key_id, None)
        self._published.discard(key_id)
        await self._in_thread(partial(self._overwrite, key_id))

    async def _make(self, tenant: bytes) -> DataKey:
        if await self._in_thread(partial(self._read, tenant)) == _ERASED:
            raise StoreRefused("the tenant was erased", reason="key_unavailable")
        await self._check_root()
        data_key = DataKey(tenant, os.urandom(SECRET_BYTES))
        wrapped = self._wrap(data_key)
        if self._store is not None and not await self._store.put_new(_name(tenant), wrapped):
            # Another node was first: its key is the tenant's.
            theirs = await self.known_key(tenant)
            if theirs is None:
                raise StoreRefused("the tenant was erased", reason="key_unavailable")
            return theirs
        published = self._store is not None
        await self._in_thread(partial(self._write, tenant, wrapped, published=published))
        self._keys[tenant] = data_key
        return data_key

    async def _publish(self, data_key: DataKey) -> None:
        """Puts a key that was made without the object store there, before pages need it there."""
        key_id = data_key.key_id
        if self._store is None or key_id in self._published:
            return
        if await self._in_thread(partial(self._read, key_id + _PUBLISHED)) != self._place:
            await self._check_root()
            wrapped = self._wrap(data_key)
            if not await self._store.put_new(_name(key_id), wrapped):
                await self._compare(data_key, await self._store.get(_name(key_id)))
            local = await self._in_thread(partial(self._read, key_id))
            wrapped = wrapped if local is None else local
            await self._in_thread(partial(self._write, key_id, wrapped, published=True))
        self._published.add(key_id)

    async def _compare(self, data_key: DataKey, theirs: memoryview | None) -> None:
        """Raises StoreRefused where the object store has not the same key under this id."""
        if theirs is not None and bytes(theirs) == _ERASED:
            await self._destroy(data_key.key_id)
            raise StoreRefused("the tenant was erased", reason="key_unavailable")
        if theirs is None or self._unwrap(data_key.key_id, bytes(theirs)) != data_key:
            logger.error("data key %s differs from that of other nodes", data_key.key_id.hex())
            raise StoreRefused("other nodes have another key", reason="key_unavailable")

    async def _check_root(self) -> None:
        """Before a key is made that other nodes are to open. Raises KeyUnreadable, StoreRefused."""
        if self._store is None or self._root_checked:
            return
        check = self._wrap(DataKey(_CHECK_ID, os.urandom(SECRET_BYTES)))
        if not await self._store.put_new(_CHECK_NAME, check):
            self._unwrap(_CHECK_ID, bytes(await self._store.get(_CHECK_NAME) or b""))
        self._root_checked = True

    def _wrap(self, data_key: DataKey) -> bytes:
        nonce = fresh_nonce()
        return _VERSION + nonce + self._wrapping.encrypt(nonce, data_key.secret, data_key.key_id)

    def _unwrap(self, key_id: bytes, wrapped: bytes) -> DataKey:
        if len(wrapped) != _WRAPPED_BYTES or wrapped[:1] != _VERSION:
            raise KeyUnreadable(f"the wrapped data key {key_id.hex()} is damaged")
        nonce, sealed = wrapped[1 : 1 + NONCE_BYTES], wrapped[1 + NONCE_BYTES :]
        try:
            return DataKey(key_id, self._wrapping.decrypt(nonce, sealed, key_id))
        except InvalidTag as error:
            raise KeyUnreadable(
                f"the root key does not open data key {key_id.hex()}: it is another one than that "
                "was wrapped with",
                hint="Restore the file root_key; nothing was changed.",
            ) from error

    def _open(self) -> None:
        self._env = open_environment(self._directory, _MAP_BYTES)

    def _all(self) -> list[tuple[bytes, bytes]]:
        with self._env.begin() as tx:
            rows = [(bytes(k), bytes(v)) for k, v in tx.cursor()]
        return [(k, v) for k, v in rows if len(k) == KEY_ID_BYTES and v != _ERASED]

    def _read(self, key_id: bytes) -> bytes | None:
        with self._env.begin() as tx:
            value = tx.get(key_id)
            return None if value is None else bytes(value)

    def _write(self, key_id: bytes, value: bytes, *, published: bool = False) -> None:
        with self._env.begin(write=True) as tx:
            tx.put(key_id, value)
            if published:
                tx.put(key_id + _PUBLISHED, self._place)

    def _overwrite(self, key_id: bytes) -> None:
        """Marks a key as erased, and writes over the file that it was in: LMDB leaves what was
        deleted in pages that it may use again some day."""
        self._write(key_id, _ERASED)
        copy = self._directory.with_name(f"{self._directory.name}.copy")
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir(mode=0o700)
        self._env.copy(str(copy), compact=True)
        self._env.close()
        file = self._directory / "data.mdb"
        fd = os.open(copy / "data.mdb", os.O_RDONLY | os.O_CLOEXEC)
        old = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
            (copy / "data.mdb").rename(file)
            sync_directory(self._directory)
            os.pwrite(old, bytes(os.fstat(old).st_size), 0)
            os.fsync(old)
        finally:
            os.close(fd)
            os.close(old)
            self._open()
        shutil.rmtree(copy, ignore_errors=True)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


def _name(key_id: bytes) -> str:
    return f"keys/{key_id.hex()}"
