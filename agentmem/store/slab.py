"""A slab as the agent has it: its file mapped, and the pages in its slots."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agentmem.errors import PageCorrupt
from agentmem.native.datapath import zero
from agentmem.native.jobs import address_of
from agentmem.pages.record import HEADER_BYTES, record_bytes
from agentmem.pages.slab import (
    AGENT_OWNER,
    SLAB_HEADER_BYTES,
    SlabHeader,
    decode_slab_header,
    encode_slab_header,
    free_slot,
    note_clean,
    slot_offset,
)
from agentmem.store.base import NOBODY, PageCopy, PageOwner


@dataclass(slots=True, eq=False)
class Slab:
    """A mapped slab. `copies` has every slot that may not be reused yet, gone pages included."""

    name: str
    path: Path
    header: SlabHeader
    view: memoryview
    address: int
    copies: dict[int, DramCopy] = field(default_factory=dict)
    writing: set[int] = field(default_factory=set)

    @property
    def is_agents(self) -> bool:
        """Whether the agent owns it: made for itself, or adopted from a dead engine."""
        return self.header.owner_engine_id == AGENT_OWNER

    def offset(self, slot: int) -> int:
        """Offset of a slot's record."""
        return slot_offset(self.header.slot_bytes, slot)


@dataclass(slots=True, eq=False, kw_only=True)
class DramCopy(PageCopy):
    """A page in a slot."""

    slab: Slab
    slot: int
    sequence: int
    dirty: bool = False
    owner: PageOwner = NOBODY
    used_at: float = 0.0

    @property
    def address(self) -> int:
        """Address of the record in this process."""
        return self.slab.address + self.slab.offset(self.slot)

    @property
    def record(self) -> memoryview:
        """The whole record, padding included, as it goes into a pack."""
        start = self.slab.offset(self.slot)
        return self.slab.view[start : start + record_bytes(self.payload_bytes)]


def scrub(slab: Slab, offset: int, size_bytes: int) -> None:
    """Frees a slot and zeros what lay in it: once its page is deleted nobody looks here again."""
    zero(slab.address + offset + HEADER_BYTES, size_bytes - HEADER_BYTES)
    free_slot(slab.view, offset)


def scrub_slots(slab: Slab, slots: Sequence[int]) -> Sequence[int]:
    """Zeroes free slots that nobody else uses meanwhile; takes time. Returns them."""
    for slot in slots:
        offset = slab.offset(slot)
        zero(slab.address + offset + HEADER_BYTES, slab.header.slot_bytes - HEADER_BYTES)
        note_clean(slab.view, offset)
    return slots


def create_slab(path: Path, header: SlabHeader) -> None:
    """Makes a slab file with all its memory allocated. Raises OSError when there is none left.

    Allocating here keeps page faults off the hot path, and turns a full /dev/shm into an error
    now instead of a SIGBUS in the engine later.
    """
    temporary = path.with_suffix(".new")
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, header.file_bytes)
        os.pwrite(fd, encode_slab_header(header), 0)
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def map_slab(path: Path) -> Slab:
    """Maps a slab file. Raises OSError, or PageCorrupt for one that is no slab."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        header = decode_slab_header(os.pread(fd, SLAB_HEADER_BYTES, 0))
        if os.fstat(fd).st_size != header.file_bytes:
            raise PageCorrupt(f"{path.name} has another length than its header says")
        mapped = mmap.mmap(fd, header.file_bytes)
    finally:
        os.close(fd)
    view = memoryview(mapped)
    return Slab(path.name, path, header, view, address_of(view))
