"""The object tier: packs of sealed records in an object store, and an index of them on this node.

An object is written once and never changed. What is in it is told by its footer, so the index here
is a cache of the footers: a node that has lost it, or that wants what another node has put there,
reads them (`listing`). State changes on the event loop; the index has a thread of its own.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from agentmem.core import PageKey, Tier
from agentmem.errors import StoreRefused
from agentmem.store.base import TierUsage
from agentmem.store.index import Extent
from agentmem.store.leftovers import Leftover
from agentmem.store.objectcheck import ObjectChecker, Verified
from agentmem.store.objectcopies import ObjectCopy, checked, copy_of, groups
from agentmem.store.objectlisting import ObjectFinding, ObjectListing, node_of
from agentmem.store.objectpack import Row, encode_pack
from agentmem.store.objectpages import FOLDER, ObjectPages
from agentmem.store.objectreader import ObjectReader
from agentmem.store.objectstore import ObjectStore
from agentmem.store.packwriter import Record

logger = logging.getLogger(__name__)

_FETCH_SECONDS = 600.0


class Taken(NamedTuple):
    """Objects of another node that are gone now, their pages, and how many are left."""

    packs: int
    pages: int
    left: int


class ObjectTier:
    """Sealed pages in an object store, and where they lie. Every page of it is durable.

    `budget_bytes` is what the records in this node's own objects are to take, 0: no bound. The
    tier takes more all the same: it is for eviction to keep to it.
    """

    tier = Tier.OBJECT

    def __init__(
        self,
        store: ObjectStore,
        directory: Path,
        node_id: str,
        *,
        pack_bytes: int,
        budget_bytes: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._directory = directory
        self._node_id = node_id
        self._pack_bytes = pack_bytes
        self._budget_bytes = budget_bytes
        self._pages = ObjectPages(node_id, clock)
        self._reader = ObjectReader(store, self._pages.index, self._pages.table)
        self.listing = ObjectListing(store, self._pages)
        self._checker = ObjectChecker(store, self._pages, self.listing, self._rewrite, self.put)
        self._reclaiming = asyncio.Lock()
        self.leftover_pages = 0

    @property
    def counters(self) -> Counter[str]:
        """Calls and bytes of the store."""
        return self._store.counters

    @property
    def failing(self) -> str | None:
        """Why the store failed the last time, None while it works."""
        return self._store.failing

    @property
    def own_bytes(self) -> int:
        """Bytes of the records in this node's own objects."""
        return self._pages.own_bytes

    async def open(self) -> None:
        """Reads the index. The store is not asked: `refresh` does that. Raises lmdb.Error."""
        await self._pages.open(self._directory)

    async def close(self) -> None:
        """Closes the index, once what was begun there is done."""
        await self._pages.close()

    def __contains__(self, key: object) -> bool:
        """Whether the page is in the object store."""
        return isinstance(key, bytes) and PageKey(key) in self._pages.table

    def get(self, key: PageKey) -> ObjectCopy | None:
        """Where the page lies; None when it is not there. Changes nothing."""
        extent = self._pages.table.get(key)
        return None if extent is None else copy_of(extent)

    def is_own(self, key: PageKey) -> bool:
        """Whether the page is in an object of this node's own."""
        extent = self._pages.table.get(key)
        return extent is not None and self._pages.is_own(extent.pack)

    def usage(self) -> TierUsage:
        """Pages and bytes of their records, other nodes' included."""
        table = self._pages.table
        sums = len(table), table.page_bytes, self._pages.record_bytes
        return TierUsage(*sums, self._budget_bytes)

    async def put(self, records: Sequence[Record]) -> None:
        """Makes sealed records durable pages, in objects of up to `pack_bytes` each.

        Those that are in an object of this node's already, or that were deleted meanwhile, are left
        out. Raises StoreRefused; those of the objects that were made are pages then.
        """
        for group in groups(records, self._pack_bytes):
            await self._put_pack(group)

    def fetch(
        self, copies: Sequence[ObjectCopy], timeout_seconds: float
    ) -> AsyncIterator[tuple[ObjectCopy, memoryview]]:
        """The records of these pages, in this order, unchecked; see `ObjectReader.fetch`."""
        return self._reader.fetch(copies, timeout_seconds)

    async def remove(self, keys: Sequence[PageKey], *, up_to: int | None = None) -> list[Extent]:
        """Deletes pages up to a sequence (default: now): not found any more on return.

        `reclaim` destroys their bytes. Copies of them that are under way, or lie in objects that
        the index does not know yet, never become pages: so give all keys that are deleted. Returns
        where those that were here lay. Raises StoreRefused.
        """
        return await self._pages.remove(keys, time.time_ns() if up_to is None else up_to)

    async def quarantine(self, keys: Sequence[PageKey]) -> list[Extent]:
        """Removes pages whose bytes are bad; good copies may be put again. Raises StoreRefused."""
        return await self._pages.remove(keys, None)

    def evict(self, keys: Sequence[PageKey]) -> Coroutine[Any, Any, list[Extent]]:
        """Takes pages away that nobody wants: they are not found any more when this returns.

        Awaiting what it returns takes them out of the index, and raises StoreRefused, with the
        pages back, where that fails. Their bytes go when their object is mostly empty.
        """
        return self._pages.evict(keys)

    async def keys_after(self, after: bytes, pages_max: int) -> list[PageKey]:
        """Keys of the next pages after that key (empty: from the first). Raises StoreRefused."""
        return await self._pages.index.keys_after(after, pages_max)

    async def note_leftovers(
        self, unclaimed: Sequence[PageKey], claimed: Sequence[PageKey], since_us: int
    ) -> None:
        """Lists pages that nothing claims, unless they are listed already; unlists claimed ones.

        Raises StoreRefused.
        """
        found = [
            Leftover(key, None, extent.position, extent.key_id or bytes(16), "standard", since_us)
            for key in unclaimed
            if (extent := self._pages.table.get(key)) is not None
        ]
        self.leftover_pages = await self._pages.index.note_leftovers(found, list(claimed))

    async def leftovers(self, pages_max: int) -> list[Leftover]:
        """Listed pages, those left over first first. Raises StoreRefused."""
        return await self._pages.index.leftovers(pages_max)

    async def reclaim(self) -> None:
        """Destroys the bytes of deleted pages: rewrites the objects of this node that hold some,
        and those that eviction has left mostly empty.

        New object, then index, then deletion of the old one: a crash leaves all pages there.
        Raises StoreRefused; what is left is done the next time.
        """
        async with self._reclaiming:
            packs = self._pages.to_rewrite()
            if not packs:
                return
            self._store.check()
            live = await self._pages.extents_in({pack for pack in packs if self._pages.live[pack]})
            for pack in packs:
                await self._rewrite(pack, live[pack])

    async def refresh(self) -> int:
        """See `ObjectListing.refresh`."""
        return await self.listing.refresh()

    async def refresh_soon(self) -> None:
        """See `ObjectListing.refresh_soon`."""
        await self.listing.refresh_soon()

    async def audit(self) -> list[ObjectFinding]:
        """Tries the store, and brings index and listing together. Raises StoreRefused."""
        async with self._reclaiming:
            return await self._checker.audit(self._node_id)

    async def verify(self, after: bytes) -> Verified:
        """Checks every page in the next object after that one. Raises StoreRefused."""
        async with self._reclaiming:
            return await self._checker.verify(after)

    async def recheck(self, copy: ObjectCopy) -> None:
        """Checks the object of a page that did not come, if it is said to be there still.

        Raises StoreRefused.
        """
        async with self._reclaiming:
            now = self.get(copy.key)
            if now is not None and (now.pack, now.offset) == (copy.pack, copy.offset):
                await self._checker.check(copy.pack)

    async def take_over(self, node_id: str, packs_max: int) -> Taken:
        """Moves pages of another node's objects into objects of this node's own, some at a time.

        Raises StoreRefused; what is left is another node's still. An object whose footer does not
        check stays where it is.
        """
        async with self._reclaiming:
            await self.listing.refresh_all()
            theirs = self._numbers_of(node_id)
            chosen = theirs[:packs_max]
            live = await self._pages.extents_in(set(chosen))
            for pack in chosen:
                await self._rewrite(pack, live[pack])
                if self._pages.index.name(pack) is not None:
                    raise StoreRefused(
                        f"pages of {self._pages.index.name(pack)} did not come",
                        reason="object_failed",
                    )
            pages = sum(map(len, live.values()))
            return Taken(len(chosen), pages, len(theirs) - len(chosen))

    async def discard(self, node_id: str, packs_max: int) -> Taken:
        """Deletes another node's objects, pages and all, some at a time. Raises StoreRefused."""
        async with self._reclaiming:
            names = [name for name, _ in await self._store.list(f"{FOLDER}/{node_id}/")]
            chosen = names[:packs_max]
            for name in chosen:
                await self._store.delete(name)
            numbers = map(self._pages.index.number, chosen)
            lost = await self.listing.forget(number for number in numbers if number is not None)
            self.counters["object_packs_deleted"] += len(chosen)
            return Taken(len(chosen), len(lost), len(names) - len(chosen))

    def _numbers_of(self, node_id: str) -> list[int]:
        index = self._pages.index
        names = sorted(name for name in index.names() if node_of(name) == node_id)
        return [number for name in names if (number := index.number(name)) is not None]

    async def _put_pack(self, records: Sequence[Record]) -> None:
        # What this node claims is to be in objects that no other node may rewrite.
        others = {
            extent.pack
            for record in records
            if (extent := self._pages.table.get(record.key)) and not self._pages.is_own(extent.pack)
        }
        name = self._fresh_name()
        self.listing.uploading.add(name)
        try:
            rows, size_bytes = await self._upload(name, records)
            await self._pages.take(name, rows, size_bytes, others)
        finally:
            # Whatever became of it, a refresh finds it if it is there and unknown.
            self.listing.uploading.discard(name)

    def _fresh_name(self) -> str:
        # Old ones first, and never the same twice.
        return f"{FOLDER}/{self._node_id}/{time.time_ns():016x}-{secrets.token_hex(4)}.agm"

    async def _upload(self, name: str, records: Sequence[Record]) -> tuple[list[Row], int]:
        """Makes one object of these records: its rows and bytes. Raises StoreRefused."""
        data, rows = await asyncio.to_thread(encode_pack, self._node_id, records)
        if not await self._store.put_new(name, data):
            # The name is random: who made it was this call, when the store was tried again.
            logger.warning("object %s was there already: a write that was tried again", name)
        return rows, len(data)

    async def _rewrite(self, pack: int, live: Sequence[Extent]) -> None:
        """Puts what is live of an object into a new one of this node's, and deletes it."""
        live = [extent for extent in live if self._pages.table.get(extent.key) == extent]
        if live:
            found = [view async for _, view in self.fetch(list(map(copy_of, live)), _FETCH_SECONDS)]
            if len(found) < len(live):
                return  # the store did not give all of it, or it was deleted: later
            records = await asyncio.to_thread(checked, live, found)
            good = {record.key for record in records}
            table = self._pages.table
            bad = [x.key for x in live if x.key not in good and table.get(x.key) == x]
            if bad:
                self.counters["quarantined_object_pages"] += len(await self.quarantine(bad))
                self.listing.on_lost(bad, "quarantined")
            if records:
                await self._move(live, records)
        if not self._pages.live[pack]:
            await self._delete(pack)

    async def _move(self, live: Sequence[Extent], records: Sequence[Record]) -> None:
        name = self._fresh_name()
        self.listing.uploading.add(name)
        try:
            rows, size_bytes = await self._upload(name, records)
            await self._pages.move(live, name, rows, size_bytes)
        finally:
            self.listing.uploading.discard(name)

    async def _delete(self, pack: int) -> None:
        """Deletes an object that no page is in any more."""
        name = self._pages.index.name(pack)
        if name is not None:
            await self._store.delete(name)
        await self._pages.drop([], [pack])
        self.counters["object_packs_deleted"] += 1
