"""Destroys the bytes of deleted records, and gives their space back to the file system."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from agentmem.pages.record import record_bytes
from agentmem.store.index import Extent
from agentmem.store.indexthread import IndexThread
from agentmem.store.pack import pack_name, punch
from agentmem.store.space import PackSpace

logger = logging.getLogger(__name__)


class Dead(NamedTuple):
    """A record that is no page any more, and that nobody reads."""

    pack: int
    offset: int
    size_bytes: int

    @classmethod
    def of(cls, extent: Extent) -> Dead:
        """The record at this extent."""
        return cls(extent.pack, extent.offset, record_bytes(extent.payload_bytes))


class Reclaimer:
    """What must be destroyed. The index remembers it, too, until it is done.

    `wanted` is set while there is something new; what failed is tried again with every `run`.
    `has_holes`: whether the file system gives back a part of a file, as far as known.
    """

    def __init__(
        self,
        directory: Path,
        space: PackSpace,
        index: IndexThread,
        in_use: Callable[[], Collection[int]],
    ) -> None:
        self.wanted = asyncio.Event()
        self.has_holes = True
        self.counters: Counter[str] = Counter()
        self._directory = directory
        self._space = space
        self._index = index
        self._in_use = in_use
        self._thread = ThreadPoolExecutor(1, "disk-punch")
        self._running = asyncio.Lock()
        self._dead: list[Dead] = []
        # Destroyed, which the index does not know yet.
        self._done: list[tuple[int, int]] = []

    @property
    def pending(self) -> list[Dead]:
        """What is still to be destroyed."""
        return list(self._dead)

    def later(self, dead: Dead) -> None:
        """This record's bytes are to go."""
        self._dead.append(dead)
        self.wanted.set()

    async def run(self) -> None:
        """Destroys what there is to destroy. Raises lmdb.Error when the index cannot note it."""
        async with self._running:
            work, self._dead = self._dead, []
            self.wanted.clear()
            if work:
                loop = asyncio.get_running_loop()
                done, failed = await loop.run_in_executor(self._thread, self._destroy, work)
                self._dead += failed
                self.counters["punch_failed"] += len(failed)
                for dead in done:
                    self._space.destroyed(dead.pack, dead.size_bytes, given_back=self.has_holes)
                    self._done.append((dead.pack, dead.offset))
            if self._done:
                finished = list(self._done)
                await self._index.run(partial(self._index.index.finish, finished, []))
                del self._done[: len(finished)]
                await self._unlink_empty({pack for pack, _ in finished})

    async def unlink_empty(self, packs: Iterable[int]) -> None:
        """Removes those of the packs that hold nothing. Raises OSError, lmdb.Error."""
        async with self._running:
            await self._unlink_empty(packs)

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(wait=True)

    async def _unlink_empty(self, packs: Iterable[int]) -> None:
        in_use = self._in_use()
        empty = [pack for pack in packs if self._space.is_empty(pack) and pack not in in_use]
        for pack in empty:
            (self._directory / pack_name(pack)).unlink(missing_ok=True)
            self._space.unlinked(pack)
        if empty:
            await self._index.run(partial(self._index.index.forget, [], empty))

    def _destroy(self, work: list[Dead]) -> tuple[list[Dead], list[Dead]]:
        """In the thread. Returns those whose bytes are gone for sure, and those that failed."""
        done: list[Dead] = []
        failed: list[Dead] = []
        by_pack: dict[int, list[Dead]] = {}
        for dead in sorted(work):
            by_pack.setdefault(dead.pack, []).append(dead)
        for pack, records in by_pack.items():
            try:
                self._destroy_in(pack, records)
                done += records
            except FileNotFoundError:
                done += records
            except OSError as error:
                logger.error("pack %d: bytes of deleted pages stay for now: %s", pack, error)
                failed += records
        return done, failed

    def _destroy_in(self, pack: int, records: list[Dead]) -> None:
        fd = os.open(self._directory / pack_name(pack), os.O_RDWR | os.O_CLOEXEC)
        try:
            for offset, size_bytes in _joined(records):
                if not punch(fd, offset, size_bytes):
                    self.has_holes = False
            os.fsync(fd)
        finally:
            os.close(fd)


def _joined(records: list[Dead]) -> list[tuple[int, int]]:
    """Offset and bytes of runs of records that lie back to back."""
    runs: list[tuple[int, int]] = []
    for _pack, offset, size_bytes in records:
        if runs and sum(runs[-1]) == offset:
            runs[-1] = (runs[-1][0], runs[-1][1] + size_bytes)
        else:
            runs.append((offset, size_bytes))
    return runs
