"""The engine's own slabs: which of their slots are free, and which pages the agent has not
acknowledged yet. This is where pages wait while the agent is slow, stopped or dead.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from agentmem.core import PageKey
from agentmem.errors import PageCorrupt
from agentmem.native.datapath import populate
from agentmem.native.jobs import address_of
from agentmem.pages.slab import (
    SLAB_HEADER_BYTES,
    SlabHeader,
    decode_slab_header,
    note_clean,
    slot_is_dirty,
    slot_is_free,
    slot_offset,
)


@dataclass(slots=True, eq=False)
class OwnSlab:
    """A slab granted to this process. `taken`: free in the file, but about to be written.

    `closing`: it will be given back, no slot of it is given out any more.
    """

    name: str
    header: SlabHeader
    view: memoryview
    address: int
    identity: tuple[int, int]
    free: deque[int] = field(default_factory=deque)
    taken: set[int] = field(default_factory=set)
    closing: bool = False


class Slot(NamedTuple):
    """One slot that this process may write."""

    slab: OwnSlab
    number: int

    @property
    def offset(self) -> int:
        """Offset of its record in the slab."""
        return slot_offset(self.slab.header.slot_bytes, self.number)

    @property
    def address(self) -> int:
        """Address of its record in this process."""
        return self.slab.address + self.offset


class MappedSlab(NamedTuple):
    """A slab in this process's memory. `identity` is (device, inode) of its file."""

    header: SlabHeader
    view: memoryview
    address: int
    identity: tuple[int, int]


def map_slab(path: Path) -> MappedSlab:
    """Maps a slab, with all its pages present. Raises OSError or PageCorrupt."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        header = decode_slab_header(os.pread(fd, SLAB_HEADER_BYTES, 0))
        if status.st_size != header.file_bytes:
            raise PageCorrupt(f"{path.name} has another length than its header says")
        view = memoryview(mmap.mmap(fd, status.st_size, flags=mmap.MAP_SHARED))
    finally:
        os.close(fd)
    address = address_of(view)
    # Now and without the interpreter lock, so that the data path meets no page fault.
    populate(address, view.nbytes)
    return MappedSlab(header, view, address, (status.st_dev, status.st_ino))


class Spool:
    """Slots and unacknowledged pages of one engine. Thread-safe; never waits for the agent."""

    def __init__(self) -> None:
        self._slabs: dict[str, OwnSlab] = {}
        self._unacknowledged: dict[PageKey, Slot] = {}
        self._changed = threading.Condition()
        self._closed = False
        self.waiters = 0

    def add(self, path: Path) -> None:
        """Takes a granted slab into use. Raises OSError or PageCorrupt."""
        mapped = map_slab(path)
        with self._changed:
            self._slabs[path.name] = OwnSlab(path.name, *mapped)
            self._rescan()
            self._changed.notify_all()

    def drop(self, name: str) -> int:
        """The agent does not know this slab (any more). Returns the pages that are lost with it."""
        with self._changed:
            self._slabs.pop(name, None)
            lost = [k for k, slot in self._unacknowledged.items() if slot.slab.name == name]
            for key in lost:
                del self._unacknowledged[key]
            return len(lost)

    def mapped(self, name: str, identity: tuple[int, int]) -> MappedSlab | None:
        """One of our own slabs, None when the file is none of them."""
        with self._changed:
            slab = self._slabs.get(name)
            if slab is None or slab.identity != identity:
                return None
            return MappedSlab(slab.header, slab.view, slab.address, slab.identity)

    def let_go(self, name: str, deadline: float) -> bool:
        """Gives out no slot of this slab any more, and waits for the writes under way to end.

        False when they did not by `deadline`; the slab is then in use as before.
        """
        with self._changed:
            slab = self._slabs.get(name)
            if slab is None:
                return True
            slab.closing = True
            while slab.taken:
                remaining = deadline - time.monotonic()
                if remaining <= 0 or not self._changed.wait(remaining):
                    slab.closing = False
                    return False
            return True

    def closing(self) -> list[str]:
        """Slabs that were let go of, but that the agent may not have yet."""
        with self._changed:
            return [slab.name for slab in self._slabs.values() if slab.closing]

    def close(self) -> list[str]:
        """Gives out no slot any more. Returns the names of the slabs that were in use."""
        with self._changed:
            self._closed = True
            names = list(self._slabs)
            self._slabs.clear()
            self._changed.notify_all()
            return names

    def take(self, count: int, deadline: float, hopeless: Callable[[], bool]) -> list[Slot]:
        """Up to `count` free slots; waits for at least one until `deadline` (monotonic clock),

        or until `hopeless` says that none will come.
        """
        with self._changed:
            self.waiters += 1
            try:
                while not self._closed:
                    slots = self._take_now(count)
                    remaining = deadline - time.monotonic()
                    if slots or remaining <= 0 or hopeless():
                        return slots
                    # The agent frees slots without telling: look again now and then.
                    self._changed.wait(min(remaining, 0.02))
                return []
            finally:
                self.waiters -= 1

    def take_now(self, count: int) -> list[Slot]:
        """Up to `count` free slots, without waiting."""
        with self._changed:
            return self._take_now(count)

    def put_back(self, slots: Sequence[Slot]) -> None:
        """These were not written."""
        with self._changed:
            for slot in slots:
                slot.slab.taken.discard(slot.number)
                slot.slab.free.append(slot.number)
            self._changed.notify_all()

    def take_dirty(self, count: int) -> list[Slot]:
        """Up to `count` free slots with bytes of evicted pages, to be zeroed and `cleaned`."""
        slots: list[Slot] = []
        with self._changed:
            if self.waiters:
                return []
            for slab in self._slabs.values():
                for number in list(slab.free) if not slab.closing else ():
                    if len(slots) == count:
                        break
                    if slot_is_dirty(slab.view, slot_offset(slab.header.slot_bytes, number)):
                        slab.free.remove(number)
                        slab.taken.add(number)
                        slots.append(Slot(slab, number))
        return slots

    def cleaned(self, slots: Sequence[Slot]) -> None:
        """These were zeroed, and are free again."""
        for slot in slots:
            note_clean(slot.slab.view, slot.offset)
        self.put_back(slots)

    def committed(self, slots: Sequence[Slot], keys: Sequence[PageKey]) -> None:
        """These hold pages now, which the agent must be told."""
        with self._changed:
            for slot, key in zip(slots, keys, strict=True):
                slot.slab.taken.discard(slot.number)
                self._unacknowledged[key] = slot
            self._changed.notify_all()

    def holds(self, key: PageKey) -> bool:
        """Whether the page lies in a slot that the agent has not acknowledged yet."""
        with self._changed:
            return key in self._unacknowledged

    def unacknowledged(self) -> dict[str, list[tuple[int, PageKey]]]:
        """(slot, key) per slab of all pages that the agent must be told."""
        found: dict[str, list[tuple[int, PageKey]]] = {}
        with self._changed:
            for key, slot in self._unacknowledged.items():
                found.setdefault(slot.slab.name, []).append((slot.number, key))
        return found

    def acknowledge(self, slab: str, announced: Sequence[tuple[int, PageKey]]) -> None:
        """The agent has answered for these."""
        with self._changed:
            for number, key in announced:
                slot = self._unacknowledged.get(key)
                if slot is not None and slot.number == number and slot.slab.name == slab:
                    del self._unacknowledged[key]

    def counts(self) -> tuple[int, int, int]:
        """(free slots, slots in all, unacknowledged pages)."""
        with self._changed:
            usable = [slab for slab in self._slabs.values() if not slab.closing]
            free = sum(len(slab.free) for slab in usable)
            total = sum(slab.header.slots for slab in usable)
            return free, total, len(self._unacknowledged)

    def rescan(self) -> int:
        """Looks for slots that the agent has freed. Returns the free slots."""
        with self._changed:
            self._rescan()
            return sum(len(slab.free) for slab in self._slabs.values() if not slab.closing)

    def _take_now(self, count: int) -> list[Slot]:
        if sum(len(slab.free) for slab in self._slabs.values()) < count:
            self._rescan()
        slots: list[Slot] = []
        for slab in self._slabs.values():
            while not slab.closing and slab.free and len(slots) < count:
                number = slab.free.popleft()
                slab.taken.add(number)
                slots.append(Slot(slab, number))
        return slots

    def _rescan(self) -> None:
        """Finds the slots that the agent has freed. A free slot stays free: only we write it."""
        for slab in self._slabs.values():
            known = slab.taken.union(slab.free)
            step = slab.header.slot_bytes
            for number in range(slab.header.slots):
                if number not in known and slot_is_free(slab.view, slot_offset(step, number)):
                    slab.free.append(number)
