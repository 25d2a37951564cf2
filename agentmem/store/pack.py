"""Packs: append-only files `pack-XXXXXXXX.agm` of records, and what is done to their bytes.

    [0, 4096)   pack header: magic, version, node id, pack number, CRC-32
    then        records back to back, each a multiple of 4096 bytes; deleted ones are holes

Blocking file operations; the disk tier runs them in threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from agentmem.errors import PageCorrupt
from agentmem.native.datapath import write_ranges
from agentmem.native.jobs import address_of
from agentmem.pages.record import (
    ALIGN_BYTES,
    HEADER_BYTES,
    MAGIC,
    RecordHeader,
    decode_header,
    record_bytes,
    verify_record,
)

PACK_MAGIC = b"AGMPACK1"
PACK_VERSION = 1
PACK_HEADER_BYTES = 4096
PACK_BYTES = 64 << 20

_FIELDS = struct.Struct("<8sH16sI")
_CRC = struct.Struct("<I")
_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class Found(NamedTuple):
    """A whole record found by scanning a pack."""

    offset: int
    header: RecordHeader


def pack_name(number: int) -> str:
    """File name of a pack."""
    return f"pack-{number:08x}.agm"


def pack_number(path: Path) -> int | None:
    """Number of a pack by its file name; None for any other file."""
    name = path.name
    if not (name.startswith("pack-") and name.endswith(".agm") and len(name) == 17):
        return None
    try:
        return int(name[5:13], 16)
    except ValueError:
        return None


def create_pack(path: Path, node_id: str, number: int) -> int:
    """Makes a pack, durable by name, and returns its descriptor. Raises OSError."""
    fields = _FIELDS.pack(PACK_MAGIC, PACK_VERSION, node_id.encode("ascii"), number)
    block = fields.ljust(PACK_HEADER_BYTES - 4, b"\x00")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(fd, block + _CRC.pack(zlib.crc32(block)), 0)
        os.fsync(fd)
        sync_directory(path.parent)
    except OSError:
        os.close(fd)
        path.unlink(missing_ok=True)
        raise
    return fd


def check_pack(fd: int, number: int) -> None:
    """Raises PageCorrupt unless the file starts with the header of this pack."""
    block = os.pread(fd, PACK_HEADER_BYTES, 0)
    if len(block) < PACK_HEADER_BYTES:
        raise PageCorrupt(f"{pack_name(number)} has no whole header")
    magic, version, _node_id, found = _FIELDS.unpack_from(block)
    (crc,) = _CRC.unpack_from(block, PACK_HEADER_BYTES - 4)
    if magic != PACK_MAGIC or zlib.crc32(block[: PACK_HEADER_BYTES - 4]) != crc:
        raise PageCorrupt(f"{pack_name(number)} does not start with a pack header")
    if version != PACK_VERSION or found != number:
        raise PageCorrupt(f"{pack_name(number)} says version {version}, number {found}")


def write_records(fd: int, records: Sequence[memoryview], offset: int) -> int:
    """Appends records at `offset` in large writes and syncs them. Returns the new end.

    Past the page cache where the records' memory is aligned: that of slabs is. Raises OSError;
    bytes may then lie beyond `offset`, which the caller must not count on.
    """
    ranges = [(address_of(record), record.nbytes) for record in records]
    _set_direct(fd, wanted=all(address % ALIGN_BYTES == 0 for address, _ in ranges))
    write_ranges(fd, ranges, offset)
    os.fdatasync(fd)
    return offset + sum(size for _, size in ranges)


def _set_direct(fd: int, *, wanted: bool) -> None:
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    changed = flags | os.O_DIRECT if wanted else flags & ~os.O_DIRECT
    if changed != flags:
        # A file system without O_DIRECT refuses the flag: the page cache it is, then.
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETFL, changed)


def read_record(path: str, offset: int, size_bytes: int) -> memoryview:
    """Reads bytes of a pack; fewer at its end. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return memoryview(os.pread(fd, size_bytes, offset))
    finally:
        os.close(fd)


def punch(fd: int, offset: int, size_bytes: int) -> bool:
    """Makes the bytes a hole: they read as zeros and are given back to the file system.

    Where the file system has no holes, zeros are written over them, and it returns False: their
    space goes back with the file. Raises OSError.
    """
    mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
    if _libc.fallocate(fd, mode, offset, size_bytes) == 0:
        return True
    code = ctypes.get_errno()
    if code not in (errno.EOPNOTSUPP, errno.ENOSYS):
        raise OSError(code, os.strerror(code))
    zeros = bytes(1 << 20)
    for at in range(offset, offset + size_bytes, len(zeros)):
        os.pwrite(fd, zeros[: min(len(zeros), offset + size_bytes - at)], at)
    return False


def scan_records(fd: int, start: int, end: int | None = None) -> list[Found]:
    """Whole, valid records from `start` on, up to `end` or the file's. Raises OSError.

    After bytes that are no valid record (a hole, a torn write) it goes on at the next 4096-byte
    boundary that starts with a record's magic: a batch may have reached the medium out of order.
    """
    size = os.fstat(fd).st_size
    if end is not None:
        size = min(size, end)
    found: list[Found] = []
    at = start
    while at + HEADER_BYTES <= size:
        block = os.pread(fd, HEADER_BYTES, at)
        if block[:8] != MAGIC:
            at = _next_data(fd, at + ALIGN_BYTES)
            continue
        try:
            header = decode_header(block)
            verify_record(os.pread(fd, min(record_bytes(header.payload_bytes), size - at), at))
        except PageCorrupt:
            at += ALIGN_BYTES
            continue
        found.append(Found(at, header))
        at += record_bytes(header.payload_bytes)
    return found


def _next_data(fd: int, offset: int) -> int:
    """Skips holes: the next 4096-byte boundary at or after `offset` that may hold data."""
    try:
        data = os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:  # nothing but a hole up to the end
            return os.fstat(fd).st_size
        raise
    return max(offset, data // ALIGN_BYTES * ALIGN_BYTES)


def sync_directory(directory: Path) -> None:
    """Makes names in a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
