"""The engine's thread towards the agent: keeps slots granted, announces pages, notices silence."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable

from agentmem.core import PageKey
from agentmem.errors import AgentmemError, NodeUnavailable, NotFound, PageCorrupt
from agentmem.native.datapath import zero
from agentmem.node.client import NodeClient
from agentmem.node.spool import Spool
from agentmem.pages.record import HEADER_BYTES

logger = logging.getLogger(__name__)

_PING_SECONDS = 0.5
_GRANT_SECONDS = 10.0
_ANNOUNCE_SECONDS = 2.0
_ANNOUNCE_SLOTS_MAX = 4096
_IDLE_SECONDS = 1.0
_RETRY_SECONDS = 0.2
_WAITED_FOR_SECONDS = 0.02
_LET_GO_SECONDS = 0.5
_STOP_SECONDS = 1.0
_SPOOL_SHARE = 8
_SPOOL_BYTES_MAX = 2 << 30
_CLEAN_SLOTS = 8


class Feeder:
    """Runs one thread. `silent`: the agent did not answer lately; nobody should wait for it.

    `count(name, amount)` adds to the engine's counters; `tidy` is called about every second.
    """

    def __init__(
        self,
        client: NodeClient,
        spool: Spool,
        *,
        slot_bytes: int,
        slots: int,
        spool_slabs_min: int,
        count: Callable[[str, int], None],
        tidy: Callable[[], None],
    ) -> None:
        self._client = client
        self._spool = spool
        self._slot_bytes = slot_bytes
        self._slots = slots
        self._spool_slots_min = spool_slabs_min * slots
        self._budget_slots: int | None = None
        self._count = count
        self._tidy = tidy
        self._silent = threading.Event()
        self._unreachable = threading.Event()
        self._wanted = threading.Event()
        self._stopped = threading.Event()
        self._announcing = threading.Lock()
        # Once a slab was refused for lack of room, free slots come from evicting durable pages:
        # keep fewer of them, so that half of our slabs stays a cache.
        self._granted_out = False
        self._thread = threading.Thread(target=self._run, name="agentmem-feeder", daemon=True)

    @property
    def silent(self) -> bool:
        """Whether the agent did not answer lately."""
        return self._silent.is_set()

    @property
    def unreachable(self) -> bool:
        """Whether it did not answer a ping since it fell silent: it will grant nothing soon."""
        return self._unreachable.is_set()

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, announces what is left and hands the slabs over, in about a second."""
        self._stopped.set()
        self._wanted.set()
        self._thread.join(_STOP_SECONDS)
        try:
            if not self.silent:
                self.announce(self._client, timeout_seconds=_STOP_SECONDS)
                names = self._spool.close()
                self._client.give_back(names, timeout_seconds=_STOP_SECONDS)
        except AgentmemError as error:
            logger.warning("slabs stay until this process ends: %s", error)
        self._spool.close()
        self._client.close()

    def note_taken(self) -> None:
        """Slots were taken: asks for more when few are left."""
        free, total, _ = self._spool.counts()
        if free < self._enough(total) or not total:
            self._wanted.set()

    def wake(self) -> None:
        """There is something to do."""
        self._wanted.set()

    def note_silence(self, error: NodeUnavailable) -> None:
        """A call was not answered: misses from now on, until the agent answers a ping."""
        if not self._silent.is_set():
            logger.warning("the node agent is silent: %s", error)
            self._count("agent_silences", 1)
            self._silent.set()
        self._wanted.set()

    def announce(self, client: NodeClient, *, timeout_seconds: float) -> set[PageKey]:
        """Tells the agent of all pages that it has not acknowledged; several times is harmless.

        Returns those that it did not take. Raises NodeUnavailable.
        """
        deadline = time.monotonic() + timeout_seconds
        if not self._announcing.acquire(timeout=max(0.0, timeout_seconds)):
            return set()  # another thread is at it, with these pages among its own
        lost: set[PageKey] = set()
        try:
            for slab, pages in self._spool.unacknowledged().items():
                for start in range(0, len(pages), _ANNOUNCE_SLOTS_MAX):
                    batch = pages[start : start + _ANNOUNCE_SLOTS_MAX]
                    seconds = deadline - time.monotonic()
                    lost |= self._announce_batch(client, slab, batch, seconds)
        finally:
            self._announcing.release()
        self._count("lost_pages", len(lost))
        return lost

    def _announce_batch(
        self, client: NodeClient, slab: str, batch: list[tuple[int, PageKey]], seconds: float
    ) -> set[PageKey]:
        slots, keys = [slot for slot, _ in batch], [key for _, key in batch]
        try:
            outcomes = client.stored(slab, slots, keys, timeout_seconds=seconds)
        except NodeUnavailable:
            raise
        except NotFound:
            logger.error("the agent does not know %s: its pages are lost", slab)
            self._count("slabs_lost", 1)
            self._spool.drop(slab)
            return set(keys)
        except AgentmemError as error:
            logger.error("the agent does not take pages of %s: %s", slab, error)
            outcomes = ["refused"] * len(batch)
        self._spool.acknowledge(slab, batch)
        return {
            key
            for key, outcome in zip(keys, outcomes, strict=True)
            if outcome not in ("accepted", "duplicate")
        }

    def _run(self) -> None:
        while not self._stopped.is_set():
            pause = _RETRY_SECONDS
            try:
                pause = self._turn()
            except NodeUnavailable as error:
                self.note_silence(error)
                self._wanted.clear()
            except Exception:  # loop edge: the engine has no other way to reach the agent again
                logger.exception("the feeder failed; it goes on")
                self._count("feeder_failed", 1)
            self._wanted.wait(pause)
            self._wanted.clear()

    def _turn(self) -> float:
        """One round of work. Returns the seconds to wait for more. Raises NodeUnavailable."""
        if self.silent:
            self._ping()
        self._tidy()
        if self._budget_slots is None:
            budget_bytes = self._client.stats(timeout_seconds=_PING_SECONDS)["dram_budget_bytes"]
            self._budget_slots = budget_bytes // _SPOOL_SHARE // self._slot_bytes
        wanted = self._client.wanted(timeout_seconds=_PING_SECONDS)
        # What was let go of stays so: the agent may have it though its reply was lost.
        for name in {*wanted, *self._spool.closing()}:
            self._give_back(name)
        free, total, unacknowledged = self._spool.counts()
        if unacknowledged:
            self.announce(self._client, timeout_seconds=_ANNOUNCE_SECONDS)
        enough = self._enough(total)
        if free < enough:
            free = self._spool.rescan()
        self._clean()
        if free >= enough and not (self._spool.waiters and free == 0):
            return _IDLE_SECONDS
        return self._ask_for_slots(enough - free)

    def _ping(self) -> None:
        """Ends the silence, if the agent answers. Raises NodeUnavailable."""
        try:
            self._client.ping(timeout_seconds=_PING_SECONDS)
        except NodeUnavailable:
            self._unreachable.set()
            raise
        logger.warning("the node agent answers again")
        self._silent.clear()
        self._unreachable.clear()

    def _clean(self) -> None:
        """Zeroes free slots that evicted pages left bytes in, as long as nothing else is wanted."""
        while not self._wanted.is_set():
            slots = self._spool.take_dirty(_CLEAN_SLOTS)
            if not slots:
                return
            for slot in slots:
                zero(slot.address + HEADER_BYTES, slot.slab.header.slot_bytes - HEADER_BYTES)
            self._spool.cleaned(slots)

    def _give_back(self, name: str) -> None:
        """Hands over a slab that the agent needs for another engine."""
        if self._spool.let_go(name, time.monotonic() + _LET_GO_SECONDS):
            self.announce(self._client, timeout_seconds=_ANNOUNCE_SECONDS)
            # It may be the agent's already.
            with contextlib.suppress(NotFound):
                self._client.give_back([name], timeout_seconds=_ANNOUNCE_SECONDS)
            self._spool.drop(name)
            self._granted_out = True
            self._count("slabs_given_back", 1)

    def _enough(self, total_slots: int) -> int:
        """Free slots that need no more to be asked for.

        A long prompt's pages come all at once, faster than slabs are made: an eighth of the dram
        tier (up to 2 GiB) is kept ready for them.
        """
        spare = min(self._budget_slots or 0, _SPOOL_BYTES_MAX // self._slot_bytes)
        enough = max(self._spool_slots_min, spare)
        if not self._granted_out:
            return enough
        return max(1, min(enough, total_slots // 2))

    def _ask_for_slots(self, missing: int) -> float:
        granted = self._client.grant(
            self._slot_bytes, self._slots, evict_slots=missing, timeout_seconds=_GRANT_SECONDS
        )
        if granted.path is not None:
            self._granted_out = False
            try:
                self._spool.add(granted.path)
            except (OSError, PageCorrupt) as error:
                logger.error("the granted slab cannot be used: %s", error)
                self._count("slabs_unusable", 1)
                self._client.give_back([granted.path.name], timeout_seconds=_PING_SECONDS)
                return _RETRY_SECONDS
            return 0.0
        self._granted_out = True
        if granted.freed_slots:
            return 0.0
        return _WAITED_FOR_SECONDS if self._spool.waiters else _RETRY_SECONDS
