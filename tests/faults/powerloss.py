"""What a disk may hold after its power went: made from a journal of everything done to it.

What was synced is there. Of the rest each 4096-byte block of each write is there, is not, or is
there in part, independently of all others; lengths and names likewise: a name that was made,
renamed or removed is so for sure only once its directory was synced.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import NamedTuple

_ENTRY = struct.Struct("<IIQQQQ")
WRITE, WRITTEN_THROUGH, SYNC_BEGIN, SYNC_END, TRUNCATE, PUNCH, CREATE, MKDIR, RENAME, UNLINK = (
    range(1, 11)
)
_NAMES = (CREATE, MKDIR, RENAME, UNLINK)
_BLOCK = 4096
_SECTOR = 512
_DIRECTORY = -1


class Change(NamedTuple):
    """One line of the journal."""

    kind: int
    id: int
    inode: int
    offset: int
    size: int
    name: str
    data: bytes


@dataclass
class _File:
    data: bytearray = field(default_factory=bytearray)
    unsynced: list[Change] = field(default_factory=list)


def read_journal(path: Path) -> list[Change]:
    """Whole lines; the last one may be torn by the end of its process."""
    raw = path.read_bytes()
    changes, at = [], 0
    while at + _ENTRY.size <= len(raw):
        kind, name_bytes, number, inode, offset, size = _ENTRY.unpack_from(raw, at)
        at += _ENTRY.size
        name = raw[at : at + name_bytes].decode()
        at += name_bytes
        data = raw[at : at + size] if kind == WRITE else b""
        at += len(data)
        if len(name.encode()) < name_bytes or (kind == WRITE and len(data) < size):
            break
        changes.append(Change(kind, number, inode, offset, size, name, data))
    return changes


class Disk:
    """What is durable below `root`, and what is not yet."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files: list[_File] = []
        self._current: dict[int, int] = {}  # inode -> file
        self._names: dict[str, int] = {}  # durable: path -> file or _DIRECTORY
        self._unsynced: list[Change] = []  # of names
        self._created: dict[int, int] = {}  # id of a CREATE -> file
        self._begun: dict[int, Change] = {}
        for path in sorted(root.rglob("*")):
            if path.is_dir():
                self._names[str(path)] = _DIRECTORY
            elif path.is_file():
                self._names[str(path)] = self._add(path.stat().st_ino, path.read_bytes())

    def apply(self, changes: list[Change]) -> None:
        """Goes through a journal."""
        for change in changes:
            if change.kind == CREATE:
                self._created[change.id] = self._add(change.inode, b"")
            if change.kind in _NAMES:
                self._unsynced.append(change)
            elif change.kind == SYNC_BEGIN:
                self._begun[change.id] = change
            elif change.kind == SYNC_END:
                self._sync(self._begun.pop(change.offset))
            elif change.inode in self._current:
                file = self._files[self._current[change.inode]]
                if change.kind == WRITTEN_THROUGH:
                    written = [each for each in file.unsynced if each.id == change.offset]
                    file.unsynced = [each for each in file.unsynced if each.id != change.offset]
                    for each in written:
                        _do(file.data, each)
                else:
                    file.unsynced.append(change)

    def lose_power(self, dice: random.Random) -> None:
        """Writes what is left to the root, in place of what is there."""
        kept = dice.choice((0.0, 0.1, 0.5, 0.5, 0.9, 1.0))
        names = dict(self._names)
        for change in self._unsynced:
            if dice.random() < kept:
                self._rename(names, change)
        for file in self._files:
            for change in file.unsynced:
                _do_in_part(file.data, change, kept, dice)
        for path in sorted(self._root.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        for name, number in sorted(names.items()):
            path = Path(name)
            if not path.parent.is_dir():
                continue  # its directory did not survive
            if number == _DIRECTORY:
                path.mkdir(mode=0o700)
            else:
                _write_sparse(path, self._files[number].data)

    def _add(self, inode: int, data: bytes) -> int:
        self._files.append(_File(bytearray(data)))
        self._current[inode] = len(self._files) - 1
        return len(self._files) - 1

    def _sync(self, begun: Change) -> None:
        later = [change for change in self._unsynced if change.id > begun.id]
        for change in self._unsynced:
            if change.id <= begun.id:
                if str(PurePath(change.name.split("\n")[-1]).parent) == begun.name:
                    self._rename(self._names, change)
                else:
                    later.append(change)
        self._unsynced = sorted(later, key=lambda change: change.id)
        if begun.inode in self._current:
            file = self._files[self._current[begun.inode]]
            for change in file.unsynced:
                if change.id < begun.id:
                    _do(file.data, change)
            file.unsynced = [change for change in file.unsynced if change.id > begun.id]

    def _rename(self, names: dict[str, int], change: Change) -> None:
        if change.kind == CREATE:
            names[change.name] = self._created[change.id]
        elif change.kind == MKDIR:
            names[change.name] = _DIRECTORY
        elif change.kind == UNLINK:
            names.pop(change.name, None)
        else:
            source, target = change.name.split("\n")
            if source not in names:
                return
            names[target] = names.pop(source)
            for name in [name for name in names if name.startswith(f"{source}/")]:
                names[target + name[len(source) :]] = names.pop(name)


def _do(data: bytearray, change: Change) -> None:
    if change.kind == TRUNCATE:
        del data[change.offset :]
        data.extend(bytes(change.offset - len(data)))
    elif change.kind == WRITE:
        _put(data, change.offset, change.data)
    else:
        end = min(len(data), change.offset + change.size)
        if end > change.offset:
            data[change.offset : end] = bytes(end - change.offset)


def _do_in_part(data: bytearray, change: Change, kept: float, dice: random.Random) -> None:
    if change.kind == TRUNCATE:
        if dice.random() < kept:
            _do(data, change)
        return
    for at in range(change.offset, change.offset + change.size, _BLOCK):
        size = min(_BLOCK, change.offset + change.size - at)
        if dice.random() >= kept:
            continue
        if dice.random() < 0.1:
            size = min(size, _SECTOR * dice.randrange(_BLOCK // _SECTOR))
        start = at - change.offset
        part = change.data[start : start + size] if change.kind == WRITE else b""
        _do(data, change._replace(offset=at, size=size, data=part))


def _put(data: bytearray, offset: int, part: bytes) -> None:
    if offset > len(data):
        data.extend(bytes(offset - len(data)))
    data[offset : offset + len(part)] = part


def _write_sparse(path: Path, data: bytearray) -> None:
    """What was punched is a hole again."""
    with path.open("wb") as file:
        file.truncate(len(data))
        for at in range(0, len(data), _BLOCK):
            block = data[at : at + _BLOCK]
            if any(block):
                file.seek(at)
                file.write(block)
