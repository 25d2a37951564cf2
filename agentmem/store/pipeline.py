"""Batches on their way to the disk: one is written and synced while the one before is committed.

A page is visible when the index has it, and the index hears of bytes that are synced, in the order
in which they were written. When a commit fails, its batch and all written behind it are taken back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import lmdb

from agentmem.store.index import Extent, PackState
from agentmem.store.indexthread import IndexThread
from agentmem.store.medium import reason_of
from agentmem.store.packwriter import Batch, PackWriter, Record
from agentmem.store.table import PageTable

T = TypeVar("T")
MakeRoom = Callable[[OSError | None], Awaitable[None]]
"""Makes room in the budget; given what a full medium said, on the medium. May raise it."""


class Pipeline:
    """Uses the pack writer, in a thread of its own.

    `unaccounted_bytes` are those of batches on their way, which no accounting has yet.
    """

    def __init__(self, writer: PackWriter, index: IndexThread, table: PageTable) -> None:
        self.unaccounted_bytes = 0
        self._writer = writer
        self._index = index
        self._table = table
        self._thread = ThreadPoolExecutor(1, "disk-writer")
        self._writing = asyncio.Lock()
        self._committing = asyncio.Lock()
        # Of commits that failed: what was to be, and where the page lies really.
        self._undone: list[tuple[Extent, Extent | None]] = []

    @property
    def in_use(self) -> frozenset[int]:
        """Packs that must stay: they are written to, or have records not committed yet."""
        return self._writer.in_use

    async def resume(self, packs: dict[int, PackState]) -> None:
        """Goes on after the packs that are there. Raises OSError."""
        await self._in_thread(self._writer.resume, packs)

    async def close(self) -> None:
        """Ends the thread; what was committed is durable already."""
        await self._in_thread(self._writer.close)
        self._thread.shutdown(wait=True)

    @contextlib.asynccontextmanager
    async def quiet(self) -> AsyncIterator[None]:
        """Nothing is written or committed meanwhile."""
        async with self._writing, self._committing:
            yield

    async def write(
        self,
        records: Sequence[Record],
        make_room: MakeRoom,
        commit: Callable[[Batch], Awaitable[T]],
    ) -> tuple[Batch, T]:
        """Writes and syncs a batch, then commits it. Returns it, and what `commit` returned.

        Raises what `make_room` raises, OSError or lmdb.Error; none of the records is then kept.
        """
        size_bytes = sum(len(record.view) for record in records)
        async with self._writing:
            await make_room(None)
            self.unaccounted_bytes += size_bytes
            try:
                batch = await self._write(records, make_room)
                # Before the next batch may be written: so they are committed in order.
                await self._committing.acquire()
            except BaseException:
                self.unaccounted_bytes -= size_bytes
                raise
        try:
            return batch, await self._commit(batch, commit)
        finally:
            self.unaccounted_bytes -= size_bytes
            self._committing.release()

    async def _write(self, records: Sequence[Record], make_room: MakeRoom) -> Batch:
        try:
            return await self._in_thread(self._writer.write, records)
        except OSError as error:
            if reason_of(error) != "disk_full":
                raise
            await make_room(error)
            return await self._in_thread(self._writer.write, records)

    async def _commit(self, batch: Batch, commit: Callable[[Batch], Awaitable[T]]) -> T:
        if batch.epoch != self._writer.epoch:
            raise lmdb.Error("the batch before this one could not be committed")
        try:
            await self._settle()
            result = await commit(batch)
        except lmdb.Error:
            await self._in_thread(self._writer.undo)
            # The medium may have kept a commit that was said to have failed.
            self._undone += [(extent, self._table.get(extent.key)) for extent in batch.extents]
            with contextlib.suppress(lmdb.Error):
                await self._settle()
            raise
        await self._in_thread(self._writer.keep, batch)
        return result

    async def _settle(self) -> None:
        """Makes sure that the index has nothing of commits that failed."""
        if self._undone:
            undone = list(self._undone)
            await self._index.run(partial(self._index.index.take_back, undone))
            del self._undone[: len(undone)]

    async def _in_thread(self, call: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(call, *args))
