"""Moves pages between an engine's memory and the node: what SGLang's storage plugin calls.

Nothing here raises or waits past its deadline. An agent that is slow, stopped or dead is a miss on
`find` and `load`; `store` copies into a slab that was granted before and announces it later.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from agentmem.core import PAGE_HASH_BYTES, Fingerprint, PageHash, PageKey, Tier
from agentmem.errors import AgentmemError, NodeUnavailable
from agentmem.native.datapath import load_batch, open_direct, store_batch
from agentmem.native.jobs import LoadJob, Outcome, PageBuffers, StoreJob
from agentmem.node.answers import Located
from agentmem.node.client import NodeClient
from agentmem.node.feeder import Feeder
from agentmem.node.spool import MappedSlab, Spool, map_slab
from agentmem.pages.keys import keys_of_hashes
from agentmem.pages.record import record_bytes
from agentmem.pages.slab import SLAB_HEADER_BYTES

logger = logging.getLogger(__name__)

Buffers = PageBuffers | Sequence[Sequence[memoryview]]

SWITCH_INTERVAL_SECONDS = 0.0002
"""For `sys.setswitchinterval` in a process whose main loop spins, as SGLang's scheduler does.

So long a thread that comes back from a native call, or from the agent's socket, waits for the
interpreter lock. Python's 5 ms are as long as moving a batch of pages takes.
"""

_MISSING_SECONDS = 0.25
_ANNOUNCE_SECONDS = 0.25
_LOCATE_SECONDS = 1.0
_RELEASE_SECONDS = 1.0


class PageTransfer:
    """One per engine process; any thread may call it.

    `page_bytes`: payload bytes of every page. `slab_bytes`: size of the slabs to ask for.
    `spool_slabs_min`: slabs' worth of free slots to keep granted while the agent is alive, which
    is what can be stored while it is not. `verify_loads=False` is for measurements only.
    """

    def __init__(
        self,
        socket_path: Path,
        *,
        engine_id: str,
        fingerprint: Fingerprint,
        page_bytes: int,
        slab_bytes: int = 64 << 20,
        spool_slabs_min: int = 2,
        find_deadline_seconds: float = 0.5,
        store_deadline_seconds: float = 2.0,
        load_deadline_seconds: float = 10.0,
        verify_loads: bool = True,
    ) -> None:
        self._fingerprint = fingerprint
        self._page_bytes = page_bytes
        self._find_seconds = find_deadline_seconds
        self._store_seconds = store_deadline_seconds
        self._load_seconds = load_deadline_seconds
        self._verify_loads = verify_loads
        self._counters: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._closed = False
        self._maps: dict[str, MappedSlab] = {}
        self._mapping = threading.Lock()
        self._spool = Spool()

        def client() -> NodeClient:
            return NodeClient(
                socket_path, role="engine", engine_id=engine_id, fingerprint=fingerprint.digest
            )

        # Apart, so that a long batch of loads does not keep a store waiting.
        self._reader = client()
        self._writer = client()
        slot_bytes = record_bytes(page_bytes)
        self._feeder = Feeder(
            client(),
            self._spool,
            slot_bytes=slot_bytes,
            slots=max(1, (slab_bytes - SLAB_HEADER_BYTES) // slot_bytes),
            spool_slabs_min=spool_slabs_min,
            count=self._count,
            tidy=self._forget_unlinked,
        )
        self._feeder.start()

    def find(self, hashes: Sequence[PageHash]) -> int:
        """How many pages, counted from the first, are stored. 0 when the agent is not there."""
        try:
            return self._find(self._keys(hashes))
        except NodeUnavailable as error:
            self._feeder.note_silence(error)
        except Exception:  # plugin edge: an exception would end SGLang's storage thread for good
            logger.exception("find failed: answering that nothing is stored")
            self._count("find_failed")
        return 0

    def store(self, hashes: Sequence[PageHash], buffers: Buffers) -> list[bool]:
        """Stores pages; the bytes of one are its buffers, concatenated. True where it is safe:

        held by the agent, or committed in shared memory, which outlives engine and agent.
        """
        results = [False] * len(hashes)
        try:
            self._store(self._keys(hashes), _page_buffers(buffers), results)
        except Exception:  # plugin edge: an exception would end SGLang's storage thread for good
            logger.exception("store failed: %d pages", len(hashes))
            self._count("store_failed")
        self._count("store_refused_pages", results.count(False))
        return results

    def load(self, hashes: Sequence[PageHash], buffers: Buffers) -> list[bool]:
        """Loads pages into the given writable buffers. True where the page is whole and checked.

        The buffers of other pages hold anything. After the first page that is not stored none is.
        """
        results = [False] * len(hashes)
        try:
            self._load(self._keys(hashes), _page_buffers(buffers), results)
        except NodeUnavailable as error:
            self._feeder.note_silence(error)
        except Exception:  # plugin edge: an exception would end SGLang's storage thread for good
            logger.exception("load failed: %d pages", len(hashes))
            self._count("load_failed")
            results = [False] * len(hashes)
        return results

    def counters(self) -> dict[str, int]:
        """Counts since the start, and the gauges `spool_free_slots`, `spool_slots` and
        `unacknowledged_pages`."""
        free, total, unacknowledged = self._spool.counts()
        with self._counting:
            return {
                **self._counters,
                "spool_free_slots": free,
                "spool_slots": total,
                "unacknowledged_pages": unacknowledged,
                "agent_silent": int(self._feeder.silent),
            }

    def close(self) -> None:
        """Announces what is left (within about a second) and hands the slabs to the agent."""
        if self._closed:
            return
        self._closed = True
        self._feeder.stop()
        for client in (self._reader, self._writer):
            client.close()

    def _keys(self, hashes: Sequence[PageHash]) -> list[PageKey]:
        if any(len(page_hash) != PAGE_HASH_BYTES for page_hash in hashes):
            raise ValueError(f"a page hash has {PAGE_HASH_BYTES} bytes")
        return keys_of_hashes(self._fingerprint, hashes)

    def _count(self, name: str, amount: int = 1) -> None:
        if amount:
            with self._counting:
                self._counters[name] += amount

    def _find(self, keys: list[PageKey]) -> int:
        if self._closed or self._feeder.silent or not keys:
            return 0
        found = self._reader.find(keys, timeout_seconds=self._find_seconds)
        self._count("find_calls")
        self._count("found_pages", found)
        return found

    def _store(self, keys: list[PageKey], buffers: PageBuffers, results: list[bool]) -> None:
        deadline = time.monotonic() + self._store_seconds
        if self._closed or not keys:
            return
        if len(keys) != len(buffers):
            raise ValueError(f"{len(keys)} pages, but buffers for {len(buffers)}")
        pages: dict[PageKey, int] = {}  # a key given twice is stored once
        for index, key in enumerate(keys):
            if buffers.page_bytes(index) == self._page_bytes:
                pages.setdefault(key, index)
            else:
                self._count("store_wrong_size_pages")
        safe = self._held(list(pages), deadline)
        self._count("store_held_pages", len(safe))
        wanted = [key for key in pages if key not in safe]
        while wanted:
            slots = self._spool.take_now(len(wanted))
            self._feeder.note_taken()
            if not slots:
                # One that was slow once may grant yet; one that is gone grants and frees nothing.
                slots = self._spool.take(len(wanted), deadline, lambda: self._feeder.unreachable)
            if not slots:
                break
            batch, wanted = wanted[: len(slots)], wanted[len(slots) :]
            jobs = [StoreJob(slot.address, key) for slot, key in zip(slots, batch, strict=True)]
            sources = buffers.select([pages[key] for key in batch])
            outcomes = store_batch(jobs, sources, deadline=deadline)
            done = [i for i, outcome in enumerate(outcomes) if outcome is Outcome.MOVED]
            late = [slots[i] for i, outcome in enumerate(outcomes) if outcome is not Outcome.MOVED]
            self._spool.put_back(late)
            self._spool.committed([slots[i] for i in done], [batch[i] for i in done])
            self._count("stored_pages", len(done))
            safe.update(batch[i] for i in done)
            if late:
                break
        lost = self._announce(deadline)
        for index, key in enumerate(keys):
            results[index] = key in safe and key not in lost and key in pages

    def _held(self, keys: list[PageKey], deadline: float) -> set[PageKey]:
        """Pages that need no storing: the agent has them, or they wait to be announced."""
        held = {key for key in keys if self._spool.holds(key)}
        ask = [key for key in keys if key not in held]
        if self._feeder.silent or not ask:
            return held
        seconds = min(_MISSING_SECONDS, deadline - time.monotonic())
        try:
            missing = self._writer.missing(ask, timeout_seconds=seconds)
        except NodeUnavailable as error:
            self._feeder.note_silence(error)
            return held
        return held.union(key for key, gone in zip(ask, missing, strict=True) if not gone)

    def _announce(self, deadline: float) -> set[PageKey]:
        """Tells the agent now, if it listens; the feeder does it later otherwise."""
        if self._feeder.silent:
            return set()
        try:
            seconds = min(_ANNOUNCE_SECONDS, deadline - time.monotonic())
            return self._feeder.announce(self._writer, timeout_seconds=seconds)
        except NodeUnavailable as error:
            self._feeder.note_silence(error)
            return set()

    def _load(self, keys: list[PageKey], buffers: PageBuffers, results: list[bool]) -> None:
        deadline = time.monotonic() + self._load_seconds
        if self._closed or self._feeder.silent or not keys:
            return
        if len(keys) != len(buffers):
            raise ValueError(f"{len(keys)} pages, but buffers for {len(buffers)}")
        located = self._locate(keys)
        loaded: dict[Tier, list[int]] = {}
        corrupt: list[int] = []
        try:
            outcomes = self._read(keys, buffers, located, deadline)
            for index, outcome in enumerate(outcomes):
                if outcome in (Outcome.CORRUPT, Outcome.UNREADABLE):
                    corrupt.append(index)
                results[index] = outcome is Outcome.MOVED
            # SGLang uses pages up to the first bad one: only these count as loaded.
            for index in range(results.index(False) if False in results else len(results)):
                loaded.setdefault(located.pages[index].tier, []).append(index)
                self._count(f"loaded_{located.pages[index].tier}_pages")
            self._count("corrupt_pages", len(corrupt))
        finally:
            self._release(located.hold_id, loaded, corrupt)

    def _locate(self, keys: list[PageKey]) -> Located:
        seconds = min(self._load_seconds, _LOCATE_SECONDS)
        located = self._reader.locate(keys, timeout_seconds=seconds)
        if not located.more:
            return located
        # The agent lives, and fetches the rest from far away: half of the time is for that.
        self._release(located.hold_id, {}, [])
        wait_seconds = self._load_seconds / 2
        return self._reader.locate(
            keys, wait_seconds=wait_seconds, timeout_seconds=wait_seconds + _LOCATE_SECONDS
        )

    def _read(
        self, keys: list[PageKey], buffers: PageBuffers, located: Located, deadline: float
    ) -> list[Outcome]:
        with ExitStack() as opened:
            fds: dict[str, int] = {}
            slabs: dict[str, MappedSlab] = {}
            jobs: list[LoadJob] = []
            for index, (key, page) in enumerate(zip(keys, located.pages, strict=False)):
                if buffers.page_bytes(index) != page.payload_bytes:
                    self._count("load_wrong_size_pages")
                    break
                job = LoadJob(key, page.payload_bytes, secret=page.secret)
                if page.tier is Tier.DRAM:
                    slab = slabs.get(page.path) or slabs.setdefault(
                        page.path, self._slab(page.path)
                    )
                    record, room = slab.address + page.offset, slab.view.nbytes - page.offset
                    jobs.append(job._replace(record=record, capacity=max(0, room)))
                    continue
                if page.path not in fds:
                    # By path each time: a pack may be gone or another file by the next batch.
                    fds[page.path] = fd = open_direct(page.path)
                    opened.callback(os.close, fd)
                jobs.append(job._replace(fd=fds[page.path], offset=page.offset))
            wanted = buffers.select(range(len(jobs)))
            return load_batch(jobs, wanted, deadline=deadline, verify=self._verify_loads)

    def _slab(self, path: str) -> MappedSlab:
        """A slab, mapped once as long as the file is the same. Raises OSError."""
        status = Path(path).stat()
        identity = (status.st_dev, status.st_ino)
        own = self._spool.mapped(Path(path).name, identity)
        if own is not None:
            return own
        with self._mapping:
            known = self._maps.get(path)
            if known is None or known.identity != identity:
                known = self._maps[path] = map_slab(Path(path))
            return known

    def _forget_unlinked(self) -> None:
        """Unmaps slabs whose file is gone: their memory is given back with the last mapping."""
        with self._mapping:
            for path in [path for path in self._maps if not Path(path).exists()]:
                del self._maps[path]

    def _release(self, hold_id: int, loaded: dict[Tier, list[int]], corrupt: list[int]) -> None:
        try:
            self._reader.release(
                hold_id, loaded=loaded, corrupt=corrupt, timeout_seconds=_RELEASE_SECONDS
            )
        except AgentmemError as error:
            # The hold ends with the connection, if the agent did not hear this.
            self._reader.close()
            logger.warning("a read hold was not released in order: %s", error)
            self._count("release_failed")


def _page_buffers(buffers: Buffers) -> PageBuffers:
    if isinstance(buffers, PageBuffers):
        return buffers
    return PageBuffers.of_views(buffers)
