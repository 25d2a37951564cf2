"""What this node knows of the object tier, in LMDB: pages by key, objects by number and name.

The page index names packs by number and object stores by name: two files, which a crash or damage
can leave apart. They are brought together when they are opened: an object that one of them does not
know is forgotten, and a refresh of the tier takes it in again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Container, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import lmdb

from agentmem.core import PageKey
from agentmem.errors import StoreRefused
from agentmem.store.index import Extent, PackState, PageIndex
from agentmem.store.indexthread import IndexThread
from agentmem.store.leftovers import Leftover
from agentmem.store.objectcopies import extent_of
from agentmem.store.objectnames import PackNames
from agentmem.store.objectpack import Row
from agentmem.store.recovery import Recovery

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Known(NamedTuple):
    """What was known at start: pages, and (pack, offset, bytes) of dead records."""

    extents: list[Extent]
    dead: list[tuple[int, int, int]]


class Added(NamedTuple):
    """Where an object's records lie, and those of them that did not become pages."""

    extents: list[Extent]
    refused: list[Extent]


class Moved(NamedTuple):
    """(old, new) extents of pages: those that lie in the new object now, those that do not."""

    made: list[tuple[Extent, Extent]]
    refused: list[tuple[Extent, Extent]]


class ObjectIndex:
    """One transaction a method. All raise StoreRefused (reason `index_failed`) when LMDB fails."""

    def __init__(self) -> None:
        self._thread = IndexThread("object-index")
        self._names: PackNames

    async def open(self, directory: Path) -> Known:
        """Opens both files, and reads them. Damaged ones are set aside. Raises lmdb.Error."""
        await asyncio.to_thread(directory.mkdir, mode=0o700, parents=True, exist_ok=True)
        known = Known([], [])
        await self._thread.open(directory / "index", partial(self._recover, directory, known))
        return known

    async def close(self) -> None:
        """Closes both files."""
        await self._thread.run(self._names.close)
        await self._thread.close()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def names(self) -> set[str]:
        """Every object that is known."""
        return self._names.all()

    def name(self, number: int) -> str | None:
        """The object of a number; None for one that is gone."""
        return self._names.name(number)

    def number(self, name: str) -> int | None:
        """The number of an object; None for one that is not known."""
        return self._names.number(name)

    async def add(
        self, name: str, rows: Sequence[Row], size_bytes: int, over: Container[int] = ()
    ) -> Added:
        """Makes the records of an object pages, but for those that exist or were deleted.

        Pages that lie in objects that `over` names lie in this one then.
        """
        return await self._run(partial(self._add, name, rows, size_bytes, over))

    async def move(
        self, old: Sequence[Extent], name: str, rows: Sequence[Row], size_bytes: int
    ) -> Moved:
        """Makes pages lie in a new object, but for those that were deleted or moved meanwhile."""
        return await self._run(partial(self._move, old, name, rows, size_bytes))

    async def remove(self, keys: Sequence[PageKey], *, up_to: int | None) -> list[Extent]:
        """Removes pages. Returns where they lay.

        `up_to`: only those with a sequence up to that, and no such record becomes a page again.
        """
        return await self._run(partial(self._thread.index.remove, list(keys), up_to))

    async def forget(self, extents: Sequence[Extent], numbers: Collection[int]) -> None:
        """Drops objects that are gone, and the pages that were in them."""
        await self._run(partial(self._forget, list(extents), list(numbers)))

    async def prune_doomed(self, before: int) -> None:
        """Forgets deletions older than a sequence: no record that they are for can come any more"""
        await self._run(partial(self._prune_doomed, before))

    async def sizes(self) -> dict[int, int]:
        """Bytes of every object, by number, as they were when it became known."""
        packs = await self._run(self._thread.index.packs)
        return {number: state.committed_end for number, state in packs.items()}

    async def keys_after(self, after: bytes, pages_max: int) -> list[PageKey]:
        """Keys of the next pages after that key (empty: from the first), in order."""
        return await self._run(partial(self._thread.index.keys_after, after, pages_max))

    async def note_leftovers(self, unclaimed: list[Leftover], claimed: list[PageKey]) -> int:
        """Lists pages that nothing claims, and unlists others. Returns how many are listed."""
        return await self._run(partial(self._note_leftovers, unclaimed, claimed))

    async def leftovers(self, pages_max: int) -> list[Leftover]:
        """Pages that were listed as left over, those left over first first."""
        found = await self._run(partial(self._thread.index.leftovers, pages_max, 0))
        return [page for page, _ in found]

    def _note_leftovers(self, unclaimed: list[Leftover], claimed: list[PageKey]) -> int:
        table = self._thread.index.leftover_table
        table.note(unclaimed, claimed)
        return table.pages()

    def _recover(self, directory: Path, known: Known, index: PageIndex, rebuilt: bool) -> Recovery:
        self._names = PackNames(directory / "names")
        packs = index.packs()
        for number in self._names.numbers() - packs.keys():
            self._names.drop(number)
        nameless = packs.keys() - self._names.numbers()
        extents = list(index.extents())
        lost = [extent for extent in extents if self._names.name(extent.pack) is None]
        if lost or nameless:
            logger.error("the names of %d object packs are lost: read again", len(nameless))
            index.forget(lost, {*nameless, *(extent.pack for extent in lost)})
        known.extents[:] = [extent for extent in extents if self._names.name(extent.pack)]
        known.dead[:] = [dead for dead in index.punches() if self._names.name(dead[0])]
        return Recovery(0, len(lost), 0, rebuilt)

    def _add(self, name: str, rows: Sequence[Row], size_bytes: int, over: Container[int]) -> Added:
        number = self._names.add(name)
        extents = [extent_of(number, row) for row in rows]
        state = PackState(size_bytes, sealed=True)
        return Added(extents, self._thread.index.commit(extents, {number: state}, over))

    def _move(
        self, old: Sequence[Extent], name: str, rows: Sequence[Row], size_bytes: int
    ) -> Moved:
        number = self._names.add(name)
        new = {row.key: extent_of(number, row) for row in rows}
        moves = [(extent, new[extent.key]) for extent in old if extent.key in new]
        packs = {number: PackState(size_bytes, sealed=True)}
        made = self._thread.index.move(moves, packs)
        done = set(made)
        return Moved(made, [move for move in moves if move not in done])

    def _forget(self, extents: list[Extent], numbers: list[int]) -> None:
        self._thread.index.forget(extents, numbers)
        for number in numbers:
            self._names.drop(number)

    def _prune_doomed(self, before: int) -> None:
        index = self._thread.index
        old = [key for key, sequence in index.doomed().items() if sequence < before]
        if old:
            index.finish([], old)

    async def _run(self, call: Callable[[], T]) -> T:
        try:
            return await self._thread.run(call)
        except lmdb.Error as error:
            raise StoreRefused(
                f"the index of the object tier failed: {error}", reason="index_failed"
            ) from error
