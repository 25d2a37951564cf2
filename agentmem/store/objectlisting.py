"""Holds the index of the object tier against what the store lists: takes in, and forgets, objects.

What it finds of this node's own objects that should not be is kept until a doctor asks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Sequence
from typing import NamedTuple

from agentmem.core import PageKey
from agentmem.errors import PageCorrupt, StoreRefused
from agentmem.store.index import Extent
from agentmem.store.losses import Why
from agentmem.store.objectpack import (
    TAIL_BYTES,
    TRAILER_BYTES,
    Row,
    decode_footer,
    decode_trailer,
)
from agentmem.store.objectpages import FOLDER, ObjectPages
from agentmem.store.objectstore import ObjectStore

logger = logging.getLogger(__name__)

_IMPORTS_PER_REFRESH = 256
_IMPORTS_AT_ONCE = 8
_REFRESH_SECONDS_MIN = 2.0
_FINDINGS_MAX = 1000
# An upload that nobody waits for any more may still arrive: so long a deletion is remembered for it
_LATE_NS_MAX = 600 * 10**9


class ObjectFinding(NamedTuple):
    """What was wrong with an object, and what was done about it."""

    kind: str
    name: str
    size_bytes: int
    detail: str
    repair: str


class PackOwner(NamedTuple):
    """One node's objects in the store; `newest_at`: when the last was made, seconds since the
    epoch, 0 where no name tells."""

    node_id: str
    packs: int
    size_bytes: int
    newest_at: float


class ObjectListing:
    """See the module's docstring. Methods raise StoreRefused.

    `uploading`: names of objects under way, which are neither strangers' nor lost. `complete`:
    whether the last refresh read all that there was. `on_lost` is told of pages that are gone.
    """

    def __init__(self, store: ObjectStore, pages: ObjectPages) -> None:
        self.uploading: set[str] = set()
        self.complete = False
        self.findings: deque[ObjectFinding] = deque(maxlen=_FINDINGS_MAX)
        self.on_lost: Callable[[Sequence[PageKey], Why], None] = lambda keys, why: None
        self._store = store
        self._pages = pages
        self.unreadable: set[str] = set()  # names of objects that are left alone
        self._refreshing = asyncio.Lock()
        self._refreshed_at = float("-inf")

    async def refresh(self) -> int:
        """Takes in objects that the index does not know, and forgets those that are gone.

        Returns how many pages came.
        """
        async with self._refreshing:
            began = time.time_ns()
            index = self._pages.index
            known = index.names()
            listed = dict(await self._store.list(f"{FOLDER}/"))
            self.unreadable &= listed.keys()
            skipped = known | self.uploading | self.unreadable
            fresh = [name for name in listed if name not in skipped and name not in index]
            numbers = map(index.number, known - listed.keys())
            gone = {number for number in numbers if number is not None}
            batch = fresh[:_IMPORTS_PER_REFRESH]
            # A page whose object was rewritten elsewhere is in one of the new ones.
            pages = await self._take_in(batch, listed, gone)
            self.complete = len(batch) == len(fresh)
            if self.complete:
                await self.forget(gone)
                await index.prune_doomed(began - _LATE_NS_MAX)
            self._refreshed_at = time.monotonic()
            return pages

    async def refresh_soon(self) -> None:
        """`refresh`, unless that was done a moment ago; a store that fails changes nothing."""
        try:
            async with self._refreshing:
                pass  # one that is under way is soon enough
            if time.monotonic() - self._refreshed_at >= _REFRESH_SECONDS_MIN:
                await self.refresh()
        except StoreRefused as error:
            logger.warning("the object tier is not refreshed: %s", error)

    async def refresh_all(self) -> None:
        """`refresh`, until everything is read."""
        await self.refresh()
        while not self.complete:
            await self.refresh()

    async def forget(self, numbers: Iterable[int]) -> list[Extent]:
        """These objects are gone from the store: so are their pages. Returns those."""
        gone = list(numbers)
        lost = await self._pages.extents_in({pack for pack in gone if self._pages.live[pack]})
        for pack in gone:
            name, extents = self._pages.index.name(pack), lost[pack]
            own = self._pages.is_own(pack)
            await self._pages.drop(extents, [pack])
            if not extents:
                continue
            logger.error("object %s is gone, with %d pages", name, len(extents))
            self._store.counters["object_pages_lost"] += len(extents)
            if own:
                done = f"{len(extents)} pages dropped from the index"
                self._find(
                    "gone_object", name or "", 0, "the index knows it, the store does not", done
                )
            self.on_lost([extent.key for extent in extents], "lost")
        return [extent for pack in gone for extent in lost[pack]]

    async def rows(self, name: str, size_bytes: int) -> list[Row] | None:
        """An object's footer, None when it is gone by now. Raises PageCorrupt."""
        start = max(0, size_bytes - TAIL_BYTES)
        tail = await self._store.get_range(name, start, size_bytes)
        if tail is None:
            return None
        offset = decode_trailer(tail, size_bytes)
        footer_bytes = size_bytes - offset
        if footer_bytes > tail.nbytes:
            tail = await self._store.get_range(name, offset, size_bytes)
            if tail is None or tail.nbytes < TRAILER_BYTES:
                return None
        return decode_footer(tail[-footer_bytes:])

    async def owners(self) -> list[PackOwner]:
        """Whose objects lie in the store, most bytes first."""
        found: dict[str, PackOwner] = {}
        for name, size_bytes in await self._store.list(f"{FOLDER}/"):
            node_id = node_of(name)
            so_far = found.get(node_id, PackOwner(node_id, 0, 0, 0.0))
            found[node_id] = PackOwner(
                node_id,
                so_far.packs + 1,
                so_far.size_bytes + size_bytes,
                max(so_far.newest_at, _made_at(name)),
            )
        return sorted(found.values(), key=lambda owner: -owner.size_bytes)

    async def _take_in(
        self, names: Sequence[str], sizes: dict[str, int], gone: Container[int]
    ) -> int:
        """Reads the footers of objects, some at once. Returns how many pages came."""
        pages = 0
        for start in range(0, len(names), _IMPORTS_AT_ONCE):
            group = names[start : start + _IMPORTS_AT_ONCE]
            reads = (self.rows(name, sizes[name]) for name in group)
            found = await asyncio.gather(*reads, return_exceptions=True)
            for name, rows in zip(group, found, strict=True):
                if isinstance(rows, PageCorrupt):
                    self.unreadable.add(name)
                    self._store.counters["object_packs_unreadable"] += 1
                    logger.error("object %s is left alone: %s", name, rows)
                elif isinstance(rows, BaseException):
                    raise rows
                elif rows is not None:
                    pages += await self._take(name, rows, sizes[name], gone)
        return pages

    async def _take(
        self, name: str, rows: Sequence[Row], size_bytes: int, gone: Container[int]
    ) -> int:
        pages = await self._pages.take(name, rows, size_bytes, gone)
        number = self._pages.index.number(name)
        if number is not None and self._pages.is_own(number):
            done = f"{pages} pages taken in"
            self._find("unknown_object", name, size_bytes, "the index did not know it", done)
        return pages

    def _find(self, kind: str, name: str, size_bytes: int, detail: str, repair: str) -> None:
        self.findings.append(ObjectFinding(kind, name, size_bytes, detail, repair))


def node_of(name: str) -> str:
    """The node that an object's name says it is from."""
    return name.removeprefix(f"{FOLDER}/").split("/")[0]


def _made_at(name: str) -> float:
    stamp, *rest = name.rsplit("/", 1)[-1].split("-")
    try:
        return int(stamp, 16) / 1e9 if rest and len(stamp) == 16 else 0.0
    except ValueError:
        return 0.0
