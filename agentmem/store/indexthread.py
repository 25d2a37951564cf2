"""The one thread that the index is used from, and what is done there when LMDB cannot go on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import lmdb

from agentmem.store.index import PageIndex
from agentmem.store.lmdbfile import set_aside
from agentmem.store.recovery import Recovery, open_index

logger = logging.getLogger(__name__)

# How often the reading of the index may end the process before it is set aside.
_ATTEMPTS_MAX = 3

# The file was changed by something else than LMDB: bits flipped on the medium, or in memory.
_DAMAGED = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError)

T = TypeVar("T")
Recover = Callable[[PageIndex, bool], Recovery]
"""Fills what is in memory from the index, given whether that was made anew."""


class IndexThread:
    """Runs calls of the index one after another, in the order in which they were made.

    A file that has filled its address space is given more, and the call made again: it is one
    transaction, of which nothing happened. After a failed write LMDB refuses everything until it
    is opened again: that is done before the error goes to the caller.

    `damaged` is set when LMDB meets something that it cannot have written: from there only a new
    start goes on, which makes the index anew.
    """

    index: PageIndex

    def __init__(self, name: str = "disk-index") -> None:
        self.damaged = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, name)

    async def open(self, path: Path, recover: Recover) -> Recovery:
        """Opens the index and has it recovered. Raises lmdb.Error, OSError.

        One that cannot be read is set aside, and made anew from the packs.
        """
        self._loop = asyncio.get_running_loop()
        return await self._submit(lambda: self._open(path, recover))

    async def run(self, call: Callable[[], T]) -> T:
        """Makes a call in the thread. Raises what it raises: lmdb.Error when the index fails."""
        return await self._submit(lambda: self._attempt(call))

    async def close(self) -> None:
        """Closes the index and ends the thread."""
        await self._submit(self.index.close)
        self._thread.shutdown(wait=True)

    async def _submit(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def _open(self, path: Path, recover: Recover) -> Recovery:
        attempts = path.with_name("index.opening")
        tried = len(attempts.read_bytes()) if attempts.exists() else 0
        if tried >= _ATTEMPTS_MAX:
            # Reading a damaged file can end the process: then only a look from outside helps.
            logger.error("%d starts ended while they read the index", tried)
            set_aside(path)
        attempts.write_bytes(b"." * (tried % _ATTEMPTS_MAX + 1))
        self.index, rebuilt = open_index(path)
        try:
            recovery = recover(self.index, rebuilt)
        except lmdb.Error as error:
            logger.error("the index is unreadable: %s", error)
            self.index.close()
            set_aside(path)
            self.index, rebuilt = open_index(path)
            recovery = recover(self.index, rebuilt)
        attempts.unlink()
        return recovery

    def _attempt(self, call: Callable[[], T]) -> T:
        while True:
            try:
                return call()
            except lmdb.MapFullError:
                if not self.index.grow():
                    raise
            except _DAMAGED:
                self._loop.call_soon_threadsafe(self.damaged.set)
                raise
            except lmdb.PanicError:
                logger.error("the index is opened again after a write that failed")
                self.index.reopen()
                raise
