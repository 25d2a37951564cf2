"""Checks the object tier: the store itself, index against listing, every record of every object.

Reads one range of at most 16 MiB at a time. What can be repaired is.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from agentmem.core import PageKey
from agentmem.errors import PageCorrupt
from agentmem.pages.record import (
    ALIGN_BYTES,
    HEADER_BYTES,
    decode_header,
    record_bytes,
    verify_record,
)
from agentmem.store.index import Extent
from agentmem.store.objectcopies import copy_of, extent_of, ranges_of
from agentmem.store.objectlisting import ObjectFinding, ObjectListing
from agentmem.store.objectpages import ObjectPages
from agentmem.store.objectstore import ObjectStore
from agentmem.store.packwriter import Record

logger = logging.getLogger(__name__)

_PROBE_BYTES = 8192
_NUMBER_BYTES = 4

Rewrite = Callable[[int, Sequence[Extent]], Awaitable[None]]
Put = Callable[[Sequence[Record]], Awaitable[None]]


class BadRecord(NamedTuple):
    """A page whose record failed its checks, or is gone; it is out of the index."""

    key: PageKey
    name: str
    offset: int
    why: str


class Verified(NamedTuple):
    """What was read of one object. `after`: ask on from there; empty when that was the last."""

    after: bytes
    pages: int
    record_bytes: int
    bad: list[BadRecord]
    findings: list[ObjectFinding]


class ObjectChecker:
    """See the module's docstring. Methods raise StoreRefused when the store does not answer."""

    def __init__(
        self,
        store: ObjectStore,
        pages: ObjectPages,
        listing: ObjectListing,
        rewrite: Rewrite,
        put: Put,
    ) -> None:
        self._store = store
        self._pages = pages
        self._listing = listing
        self._rewrite = rewrite
        self._put = put

    async def audit(self, node_id: str) -> list[ObjectFinding]:
        """Tries the store, and brings index and listing together.

        Returns what was found now, or since the last audit, of this node's own objects.
        """
        fault = await self._probe(node_id)
        await self._listing.refresh_all()
        await self._check_sizes()
        for name in sorted(filter(self._pages.is_own_name, self._listing.unreadable)):
            await self._salvage(name)
        found = [ObjectFinding("store", "", 0, fault, "")] if fault else []
        return found + self._found()

    async def verify(self, after: bytes) -> Verified:
        """Checks every page in the next object after that one (empty: the first)."""
        last = int.from_bytes(after) if after else -1
        numbers = (self._pages.index.number(name) for name in self._pages.index.names())
        pack = min((n for n in numbers if n is not None and n > last), default=None)
        if pack is None:
            return Verified(b"", 0, 0, [], self._found())
        pages, size_bytes, bad = await self.check(pack)
        return Verified(pack.to_bytes(_NUMBER_BYTES), pages, size_bytes, bad, self._found())

    def _found(self) -> list[ObjectFinding]:
        found = list(self._listing.findings)
        self._listing.findings.clear()
        return found

    async def _probe(self, node_id: str) -> str:
        """Makes, reads and deletes an object. Returns what was wrong with that, or nothing."""
        name = f"probe/{node_id}-{secrets.token_hex(8)}"
        data = os.urandom(_PROBE_BYTES)
        await self._store.put_new(name, data)
        try:
            whole = await self._store.get(name)
            part = await self._store.get_range(name, 100, 1100)
        finally:
            await self._store.delete(name)
        if whole is None or bytes(whole) != data or part is None or bytes(part) != data[100:1100]:
            return "an object that was just made does not come back as it was"
        if await self._store.get(name) is not None:
            return "an object that was deleted is still there"
        return ""

    async def _check_sizes(self) -> None:
        """Checks the pages of objects that are not as long as they were when they were made."""
        sizes = await self._pages.index.sizes()
        for name, size_bytes in await self._store.list("packs/"):
            pack = self._pages.index.number(name)
            if pack is None or sizes.get(pack, size_bytes) == size_bytes:
                continue
            _, _, bad = await self.check(pack)
            detail = f"it has {size_bytes} bytes, {sizes[pack]} were made"
            done = f"{len(bad)} bad pages dropped from the index"
            finding = ObjectFinding("object_size", name, size_bytes, detail, done)
            self._listing.findings.append(finding)

    async def _salvage(self, name: str) -> None:
        """Puts what is whole in an object without a footer into a new one, and deletes it."""
        data = await self._store.get(name)
        if data is None:
            return
        records = await asyncio.to_thread(_whole_records, data)
        await self._put(records)
        await self._store.delete(name)
        self._listing.unreadable.discard(name)
        finding = ObjectFinding(
            "unreadable_object",
            name,
            data.nbytes,
            "its footer does not check",
            f"{len(records)} whole records put into a new object, this one deleted",
        )
        self._listing.findings.append(finding)

    async def check(self, pack: int) -> tuple[int, int, list[BadRecord]]:
        """Checks one object's pages: how many, their records' bytes, and the bad ones."""
        name = self._pages.index.name(pack) or ""
        size_bytes = await self._store.size(name)
        if size_bytes is None:
            lost = await self._listing.forget([pack])
            return len(lost), 0, [_lost(extent, name) for extent in lost]
        live, whole = await self._extents(pack, name, size_bytes)
        faults = await self._faults(name, live)
        bad = []
        for extent in [extent for extent in live if extent.key in faults]:
            # Read again: it may have moved meanwhile, or the read be at fault.
            why = (await self._faults(name, [extent])).get(extent.key)
            if why is not None and self._pages.table.get(extent.key) == extent:
                logger.error("object page is quarantined: %s", why)
                bad.append(BadRecord(extent.key, name, extent.offset, why))
        if bad:
            keys = [record.key for record in bad]
            self._store.counters["corrupt_object_pages"] += len(keys)
            removed = await self._pages.remove(keys, None)
            self._store.counters["quarantined_object_pages"] += len(removed)
            self._listing.on_lost(keys, "quarantined")
        if not whole and self._pages.is_own(pack):
            gone = {record.key for record in bad}
            await self._rewrite(pack, [extent for extent in live if extent.key not in gone])
        return len(live), sum(record_bytes(extent.payload_bytes) for extent in live), bad

    async def _extents(self, pack: int, name: str, size_bytes: int) -> tuple[list[Extent], bool]:
        """The pages that the index has in an object, and whether its footer checks."""
        table, whole = self._pages.table, True
        try:
            rows = await self._listing.rows(name, size_bytes) or []
        except PageCorrupt as error:
            detail = f"its footer is damaged: {error}"
            done = "written anew" if self._pages.is_own(pack) else "left to the node that wrote it"
            logger.error("object %s: %s", name, detail)
            if self._pages.is_own(pack):
                finding = ObjectFinding("unreadable_object", name, size_bytes, detail, done)
                self._listing.findings.append(finding)
            rows, whole = [], False
        live = [extent for row in rows if table.get(row.key) == (extent := extent_of(pack, row))]
        if len(live) != self._pages.live[pack]:
            live = (await self._pages.extents_in({pack}))[pack]
        return live, whole

    async def _faults(self, name: str, extents: Sequence[Extent]) -> dict[PageKey, str]:
        """What is wrong with these pages' records, by key."""
        faults: dict[PageKey, str] = {}
        for found in ranges_of(list(map(copy_of, extents))):
            data = await self._store.get_range(name, found.start, found.end) or memoryview(b"")
            views = [
                (copy.key, data[copy.offset - found.start :][: record_bytes(copy.payload_bytes)])
                for copy in found.copies
            ]
            faults |= await asyncio.to_thread(_faults_of, views)
        return faults


def _faults_of(views: Sequence[tuple[PageKey, memoryview]]) -> dict[PageKey, str]:
    faults = {}
    for key, view in views:
        try:
            verify_record(view, key)
            header = decode_header(view)
            if header.seal is None:
                faults[key] = "the record is not sealed"
            elif view.nbytes < record_bytes(header.payload_bytes):
                faults[key] = "the record is cut off"
        except PageCorrupt as error:
            faults[key] = str(error)
    return faults


def _whole_records(data: memoryview) -> list[Record]:
    """Records of an object, wherever one begins, that check and are sealed."""
    records = []
    at = HEADER_BYTES
    while at < data.nbytes:
        try:
            header = decode_header(data[at:])
            view = data[at : at + record_bytes(header.payload_bytes)]
            verify_record(view, header.key)
        except PageCorrupt:
            at += ALIGN_BYTES
            continue
        at += view.nbytes
        if header.seal is not None:
            size, sequence, key_id = header.payload_bytes, header.sequence, header.seal.key_id
            records.append(Record(header.key, view, size, sequence, 0, key_id))
    return records


def _lost(extent: Extent, name: str) -> BadRecord:
    return BadRecord(extent.key, name, extent.offset, "its object is gone")
