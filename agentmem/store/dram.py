"""The dram tier: pages in shared-memory slabs (see `pages.slab` for who may write what).

Everything here runs on the agent's event loop, but for the creation of slab files.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path

from agentmem.core import PageKey, Tier
from agentmem.errors import PageCorrupt, StoreRefused
from agentmem.pages.record import HEADER_BYTES, RecordHeader, decode_header, record_bytes
from agentmem.pages.slab import (
    AGENT_OWNER,
    SLAB_HEADER_BYTES,
    SlabHeader,
    encode_slab_header,
    free_slot,
    owner_is_alive,
    slot_is_dirty,
    slot_is_free,
)
from agentmem.store.base import Location, PageOwner, TierUsage
from agentmem.store.slab import DramCopy, Slab, map_slab, scrub, scrub_slots

logger = logging.getLogger(__name__)


class Acceptance(StrEnum):
    """What became of an announced slot."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"  # the page was held already: the bytes committed first win
    STALE = "stale"  # the slot holds another page by now, or none
    CORRUPT = "corrupt"  # the header does not check; the slot was freed


class DramTier:
    """Slabs below one directory, up to `budget_bytes` of them, and the index of their pages."""

    tier = Tier.DRAM

    def __init__(self, directory: Path, node_id: str, budget_bytes: int) -> None:
        self.slabs: dict[str, Slab] = {}
        self.corrupt_headers = 0
        self.tenant_pages: Counter[bytes] = Counter()  # as far as claims have told
        self.tenant_bytes: Counter[bytes] = Counter()
        self._directory = directory
        self._node_id = node_id
        self._budget_bytes = budget_bytes
        self._reserved_bytes = 0
        self._page_bytes = 0
        self._next_number = 0
        # Least recently used first.
        self._pages: OrderedDict[PageKey, DramCopy] = OrderedDict()

    def __contains__(self, key: PageKey) -> bool:
        """Whether the page is here."""
        return key in self._pages

    def get(self, key: PageKey) -> DramCopy | None:
        """The page's copy, or None. Changes nothing."""
        return self._pages.get(key)

    def location(self, copy: DramCopy) -> Location:
        """The slab file and the slot's offset in it."""
        offset = copy.slab.offset(copy.slot)
        return Location(Tier.DRAM, str(copy.slab.path), offset, copy.payload_bytes)

    def hold(self, copy: DramCopy) -> None:
        """Takes a read hold, and makes the page the most recently used."""
        copy.holds += 1
        if not copy.gone:
            self.touch([copy])

    def touch(self, copies: Sequence[DramCopy]) -> None:
        """Makes pages of one log the most recently used, and each more so than what follows it."""
        now = time.monotonic()
        for copy in reversed(copies):
            copy.used_at = now
            self._pages.move_to_end(copy.key)

    def own(self, copy: DramCopy, owner: PageOwner) -> None:
        """A claim tells whose page it is."""
        self._count(copy, -1)
        copy.owner = owner
        self._count(copy, 1)

    def _count(self, copy: DramCopy, sign: int) -> None:
        tenant = copy.owner.tenant
        self.tenant_pages[tenant] += sign
        self.tenant_bytes[tenant] += sign * copy.payload_bytes
        if not self.tenant_pages[tenant]:
            del self.tenant_pages[tenant], self.tenant_bytes[tenant]

    def unhold(self, copy: DramCopy) -> None:
        """Ends a read hold; the last one of a copy that is gone frees its slot."""
        copy.holds -= 1
        if copy.gone and copy.holds == 0:
            self._free(copy)

    def usage(self) -> TierUsage:
        """Pages held, and bytes of all slabs against the budget."""
        return TierUsage(
            len(self._pages), self._page_bytes, self._reserved_bytes, self._budget_bytes
        )

    def pages(self) -> Iterator[DramCopy]:
        """All pages, least recently used first."""
        return iter(self._pages.values())

    def open(self) -> None:
        """Maps the slabs that are there and reads their slot headers."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in sorted(self._directory.iterdir()):
            if not path.name.startswith("slab-") or path.suffix:
                path.unlink()  # left by an agent that died while making a slab
                continue
            self._next_number = max(self._next_number, int(path.name[5:]) + 1)
            try:
                slab = map_slab(path)
            except (PageCorrupt, OSError, ValueError) as error:
                self.corrupt_headers += 1
                logger.warning("slab %s cannot be used and is removed: %s", path.name, error)
                path.unlink()
                continue
            self.slabs[slab.name] = slab
            self._reserved_bytes += slab.header.file_bytes
            self.scan(slab)
            if slab.is_agents:  # the agent may have died while it zeroed them
                self.end_scrub(slab, scrub_slots(slab, self.begin_scrub(slab)))

    def close(self) -> None:
        """Leaves the slabs to the next agent; without any, their directory goes."""
        for path in self._directory.iterdir():
            if path.name not in self.slabs:
                path.unlink()  # made for someone who has gone
        if not self.slabs:
            self._directory.rmdir()

    def room_for(self, file_bytes: int) -> bool:
        """Whether a slab of this size fits the budget now."""
        return self._reserved_bytes + file_bytes <= self._budget_bytes

    def reserve(self, header: SlabHeader) -> Path:
        """Reserves budget for a slab and names its file; `create_slab` makes it, `add` adds it.

        Raises StoreRefused without room in the budget.
        """
        if not self.room_for(header.file_bytes):
            raise StoreRefused("the dram tier's budget is used up", reason="dram_budget")
        self._reserved_bytes += header.file_bytes
        self._next_number += 1
        return self._directory / f"slab-{self._next_number - 1:06d}"

    def unreserve(self, header: SlabHeader) -> None:
        """Gives back what `reserve` took, when the file could not be made."""
        self._reserved_bytes -= header.file_bytes

    def discard(self, path: Path, header: SlabHeader) -> None:
        """Deletes a slab that was made but that nobody wants any more."""
        path.unlink(missing_ok=True)
        self.unreserve(header)

    def add(self, path: Path) -> Slab:
        """Maps a slab that `create_slab` made."""
        slab = map_slab(path)
        self.slabs[slab.name] = slab
        return slab

    def accept(self, slab: Slab, slot: int, key: PageKey | None, *, held: bool) -> Acceptance:
        """Takes a committed slot into the index.

        `key` is what the writer announced, None for a slot found by scanning. `held` says that
        the page is in another tier: this slot is then a duplicate.
        """
        offset = slab.offset(slot)
        known = slab.copies.get(slot)
        if known is not None:
            same = known.key == key and not known.gone
            return Acceptance.ACCEPTED if same else Acceptance.STALE
        if slot_is_free(slab.view, offset) or slot in slab.writing:
            return Acceptance.STALE
        try:
            header = self._read_header(slab, offset)
        except PageCorrupt as error:
            self.corrupt_headers += 1
            logger.warning("slot %d of %s is freed: %s", slot, slab.name, error)
            scrub(slab, offset, slab.header.slot_bytes)
            return Acceptance.CORRUPT
        if key is not None and header.key != key:
            return Acceptance.STALE
        other = self._pages.get(header.key)
        # Of two slots found by scanning, the one committed first wins; once a page has been
        # given to readers or to a pack, its bytes stay what they are.
        may_replace = other is not None and key is None and not other.holds
        if other is not None and may_replace and header.sequence < other.sequence:
            self.remove(other)
            other = None
        if held or other is not None:
            self._let_go(slab, offset, record_bytes(header.payload_bytes), dirty=True)
            return Acceptance.DUPLICATE
        copy = DramCopy(
            header.key, header.payload_bytes, slab=slab, slot=slot, sequence=header.sequence
        )
        slab.copies[slot] = copy
        self._pages[copy.key] = copy
        self._page_bytes += copy.payload_bytes
        copy.used_at = time.monotonic()
        self._count(copy, 1)
        return Acceptance.ACCEPTED

    def scan(self, slab: Slab) -> list[DramCopy]:
        """Finds committed slots that nobody announced: at start, and when an engine has died."""
        found = []
        for slot in range(slab.header.slots):
            if slot in slab.copies or slot_is_free(slab.view, slab.offset(slot)):
                continue
            if self.accept(slab, slot, None, held=False) is Acceptance.ACCEPTED:
                found.append(slab.copies[slot])
        return found

    def remove(self, copy: DramCopy, *, dirty: bool = False) -> None:
        """The page is no longer found from now on; its slot is freed when no hold is left.

        `dirty`: its bytes may stay until the slab's owner, an engine, is idle.
        """
        if copy.gone:
            return
        copy.gone = True
        copy.dirty = dirty
        del self._pages[copy.key]
        self._page_bytes -= copy.payload_bytes
        self._count(copy, -1)
        if copy.holds == 0:
            self._free(copy)

    def adopt(self, slab: Slab) -> list[DramCopy]:
        """Makes a dead engine's slab the agent's; returns pages that were not announced.

        Half a page may lie in its free slots: they are dirty until `begin_scrub` .. `end_scrub`.
        """
        found = self.scan(slab)
        for slot in range(slab.header.slots):
            if slot not in slab.copies:
                free_slot(slab.view, slab.offset(slot), dirty=True)
        slab.header = slab.header._replace(
            owner_engine_id=AGENT_OWNER, owner_pid=0, owner_start_ticks=0
        )
        slab.view[:SLAB_HEADER_BYTES] = encode_slab_header(slab.header)
        return found

    def begin_scrub(self, slab: Slab) -> list[int]:
        """Reserves the dirty free slots of an agent's slab, for `scrub_slots` in a thread.

        None of a slab without pages: it is deleted whole.
        """
        if not slab.copies:
            return []
        slots = [
            slot
            for slot in range(slab.header.slots)
            if slot not in slab.copies
            and slot not in slab.writing
            and slot_is_dirty(slab.view, slab.offset(slot))
        ]
        slab.writing.update(slots)
        return slots

    def end_scrub(self, slab: Slab, slots: Iterable[int]) -> None:
        """These slots may be used again."""
        slab.writing.difference_update(slots)

    def orphans(self) -> list[Slab]:
        """Slabs whose owner process is dead."""
        return [s for s in self.slabs.values() if not s.is_agents and not owner_is_alive(s.header)]

    def agents_slabs(self) -> list[Slab]:
        """Slabs that the agent made for itself or adopted."""
        return [slab for slab in self.slabs.values() if slab.is_agents]

    def take_slot(self, payload_bytes: int) -> tuple[Slab, int] | None:
        """Reserves a free slot of an agent's slab that fits the payload; None without one.

        The caller writes it, then calls `end_writing` and, if it was committed, `accept`.
        """
        for slab in self.agents_slabs():
            if slab.header.slot_bytes < record_bytes(payload_bytes):
                continue
            for slot in range(slab.header.slots):
                taken = slot in slab.copies or slot in slab.writing
                if not taken and slot_is_free(slab.view, slab.offset(slot)):
                    slab.writing.add(slot)
                    return slab, slot
        return None

    def end_writing(self, slab: Slab, slot: int) -> None:
        """Ends the reservation of `take_slot`, whether or not the slot was committed."""
        slab.writing.discard(slot)

    def unlink_empty(self) -> int:
        """Deletes the agent's slabs that hold nothing. Returns how many."""
        empty = [s for s in self.agents_slabs() if not s.copies and not s.writing]
        for slab in empty:
            del self.slabs[slab.name]
            self._reserved_bytes -= slab.header.file_bytes
            slab.path.unlink(missing_ok=True)
        return len(empty)

    def _free(self, copy: DramCopy) -> None:
        offset = copy.slab.offset(copy.slot)
        self._let_go(copy.slab, offset, record_bytes(copy.payload_bytes), dirty=copy.dirty)
        del copy.slab.copies[copy.slot]

    def _let_go(self, slab: Slab, offset: int, size_bytes: int, *, dirty: bool) -> None:
        """Frees a slot. An engine's may stay `dirty`: the engine zeroes it when it is idle."""
        if dirty and not slab.is_agents:
            free_slot(slab.view, offset, dirty=True)
        else:
            scrub(slab, offset, size_bytes)

    def _read_header(self, slab: Slab, offset: int) -> RecordHeader:
        header = decode_header(bytes(slab.view[offset : offset + HEADER_BYTES]))
        if record_bytes(header.payload_bytes) > slab.header.slot_bytes:
            raise PageCorrupt(f"a payload of {header.payload_bytes} bytes does not fit its slot")
        return header
