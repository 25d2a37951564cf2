"""The slab: one shared-memory file of equal slots, each a record or free.

    [0, 4096)                           slab header
    [4096 + i * slot_bytes, + slot_bytes)  slot i, a record; its first 8 bytes are zero when free

Protocol. A slab granted to an engine is written by that engine's plugin alone: it picks slots whose
first 8 bytes are zero, writes payload and header, and the 8 bytes of the magic last, so a crash
leaves a whole page or a free slot. Only the agent turns a committed slot back into a free one.
So storing needs no call to the agent, and goes on while the agent is dead; the agent finds what
was stored by reading the slot headers.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import NamedTuple

from agentmem.errors import PageCorrupt
from agentmem.pages.record import ALIGN_BYTES, FREE_MARK, HEADER_BYTES, MAGIC

SLAB_MAGIC = b"AGMSLAB1"
SLAB_VERSION = 1
SLAB_HEADER_BYTES = 4096
ENGINE_ID_BYTES_MAX = 128
SLAB_BYTES_MAX = 4 << 30
NODE_ID_HEX_DIGITS = 16
DIRTY_MARK = b"AGMDIRTY"
AGENT_OWNER = ""
"""Owner engine id of slabs that the agent itself fills or has adopted."""

# magic, version, node id (hex text), slot bytes, slots, owner pid, owner start ticks,
# length of the owner's engine id, that id
_FIELDS = struct.Struct(f"<8sH{NODE_ID_HEX_DIGITS}sQIIQH{ENGINE_ID_BYTES_MAX}s")
_CRC = struct.Struct("<I")


class SlabHeader(NamedTuple):
    """Shape and owner of a slab.

    The owner is the process `owner_pid` that started `owner_start_ticks` after boot (field 22 of
    /proc/<pid>/stat, in clock ticks): a reused pid has another start.
    """

    node_id: str
    slot_bytes: int
    slots: int
    owner_engine_id: str
    owner_pid: int
    owner_start_ticks: int

    @property
    def file_bytes(self) -> int:
        """Length of the slab file."""
        return SLAB_HEADER_BYTES + self.slot_bytes * self.slots


def slot_offset(slot_bytes: int, slot: int) -> int:
    """Offset of a slot's record in the slab file."""
    return SLAB_HEADER_BYTES + slot_bytes * slot


def check_shape(slot_bytes: int, slots: int) -> None:
    """Raises ValueError for a slab that cannot be laid out."""
    if slot_bytes < HEADER_BYTES + ALIGN_BYTES or slot_bytes % ALIGN_BYTES:
        raise ValueError(f"slots of {slot_bytes} bytes: need a multiple of {ALIGN_BYTES}")
    if slots < 1 or SLAB_HEADER_BYTES + slot_bytes * slots > SLAB_BYTES_MAX:
        raise ValueError(f"{slots} slots of {slot_bytes} bytes: a slab has 1 slot to 4 GiB")


def encode_slab_header(header: SlabHeader) -> bytes:
    """The slab's 4096-byte header. Raises ValueError for a shape or name that does not fit."""
    check_shape(header.slot_bytes, header.slots)
    engine_id = header.owner_engine_id.encode()
    if len(engine_id) > ENGINE_ID_BYTES_MAX:
        raise ValueError(f"an engine id has at most {ENGINE_ID_BYTES_MAX} bytes")
    fields = _FIELDS.pack(
        SLAB_MAGIC,
        SLAB_VERSION,
        header.node_id.encode("ascii"),
        header.slot_bytes,
        header.slots,
        header.owner_pid,
        header.owner_start_ticks,
        len(engine_id),
        engine_id,
    )
    block = fields.ljust(SLAB_HEADER_BYTES - 4, b"\x00")
    return block + _CRC.pack(zlib.crc32(block))


def decode_slab_header(block: bytes | memoryview) -> SlabHeader:
    """Reads a slab header. Raises PageCorrupt saying which check failed."""
    if len(block) < SLAB_HEADER_BYTES:
        raise PageCorrupt(f"a slab header has {SLAB_HEADER_BYTES} bytes, not {len(block)}")
    magic, version, node_id, slot_bytes, slots, pid, ticks, id_bytes, engine_id = (
        _FIELDS.unpack_from(block)
    )
    if magic != SLAB_MAGIC or version != SLAB_VERSION:
        raise PageCorrupt(
            f"not a slab of version {SLAB_VERSION}: magic {magic!r} version {version}"
        )
    (crc,) = _CRC.unpack_from(block, SLAB_HEADER_BYTES - 4)
    if zlib.crc32(memoryview(block)[: SLAB_HEADER_BYTES - 4]) != crc:
        raise PageCorrupt("the slab header's checksum does not match")
    try:
        check_shape(slot_bytes, slots)
        owner = engine_id[:id_bytes].decode()
        return SlabHeader(node_id.decode("ascii"), slot_bytes, slots, owner, pid, ticks)
    except ValueError as error:
        raise PageCorrupt(f"slab header: {error}") from error


def slot_is_free(slab: memoryview, offset: int) -> bool:
    """Whether the slot whose record starts at `offset` holds no committed record."""
    return slab[offset : offset + 8] == FREE_MARK


def commit_slot(slab: memoryview, offset: int, header_block: bytes) -> None:
    """Makes the slot's payload a page: the magic goes last, so that no torn record is visible."""
    slab[offset + 8 : offset + HEADER_BYTES] = header_block[8:]
    slab[offset : offset + 8] = MAGIC


def free_slot(slab: memoryview, offset: int, *, dirty: bool = False) -> None:
    """Turns a slot back into a free one (agent only). `dirty`: bytes of its page are still there.

    The magic goes last: the owner may write into the slot as soon as its first 8 bytes are zero.
    """
    rest = (DIRTY_MARK if dirty else FREE_MARK) + bytes(HEADER_BYTES - 16)
    slab[offset + 8 : offset + HEADER_BYTES] = rest
    slab[offset : offset + 8] = FREE_MARK


def slot_is_dirty(slab: memoryview, offset: int) -> bool:
    """Whether a free slot still holds bytes of the page that was in it."""
    return slab[offset + 8 : offset + 16] == DIRTY_MARK


def note_clean(slab: memoryview, offset: int) -> None:
    """The owner of a slab has zeroed the payload of one of its free slots."""
    slab[offset + 8 : offset + 16] = FREE_MARK


def process_start_ticks(pid: int) -> int | None:
    """Start time of a live process (clock ticks after boot); None for a dead one or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name may hold spaces and parentheses: the fields go on after the last one.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def owner_is_alive(header: SlabHeader) -> bool:
    """Whether the very process that owns the slab still runs."""
    return process_start_ticks(header.owner_pid) == header.owner_start_ticks
