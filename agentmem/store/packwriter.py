"""Appends batches of records to packs. Used from one thread (the disk tier's writer thread).

A batch is written and synced while the index still commits the one before: batches that are
synced, but not known to the index yet, are pending. Files are not preallocated: beside direct
writes in large pieces that was seen to save nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from agentmem.core import PageKey
from agentmem.store.index import Extent, PackState
from agentmem.store.pack import PACK_HEADER_BYTES, create_pack, pack_name, write_records

logger = logging.getLogger(__name__)


class Record(NamedTuple):
    """A record to write: `view` is the whole of it, padding included, and stays as it is.

    `position` and `key_id` as in `Extent`.
    """

    key: PageKey
    view: memoryview
    payload_bytes: int
    sequence: int
    position: int = 0
    key_id: bytes = b""


@dataclass(slots=True, eq=False)
class _OpenPack:
    number: int
    fd: int
    end: int


@dataclass(slots=True, eq=False)
class Batch:
    """Records that are written and synced: where they lie, and the packs' new states.

    `epoch` is that of the writer when they were written.
    """

    epoch: int
    extents: list[Extent] = field(default_factory=list)
    states: dict[int, PackState] = field(default_factory=dict)
    # What taking it back goes back to: number and end of the pack begun before, packs made since.
    before: tuple[int, int] | None = None
    created: list[int] = field(default_factory=list)


class PackWriter:
    """Writes at the end of the newest pack, and begins another when it is full.

    `epoch` counts how often pending batches were taken back: one of an older epoch is gone.
    """

    def __init__(self, directory: Path, node_id: str, pack_bytes: int) -> None:
        self.epoch = 0
        self._directory = directory
        self._node_id = node_id
        self._pack_bytes = pack_bytes
        self._current: _OpenPack | None = None
        self._next_number = 0
        self._pending: list[Batch] = []
        self._uncut: dict[int, int] = {}
        self._in_use: frozenset[int] = frozenset()

    @property
    def in_use(self) -> frozenset[int]:
        """Packs that are written to, or hold records of pending batches; for any thread."""
        return self._in_use

    def resume(self, states: dict[int, PackState]) -> None:
        """Goes on after the packs that are there. Raises OSError."""
        if not states:
            return
        newest = max(states)
        self._next_number = newest + 1
        if not states[newest].sealed:
            fd = os.open(self._directory / pack_name(newest), os.O_RDWR | os.O_CLOEXEC)
            self._current = _OpenPack(newest, fd, states[newest].committed_end)
            self._note_use()

    def write(self, records: Sequence[Record]) -> Batch:
        """Writes and syncs all records. They are pending from then on.

        Raises OSError after taking these back. The caller must call `keep` once the index knows
        the batch, or `undo`.
        """
        self._cut_rest()
        batch = Batch(self.epoch)
        if self._current is not None:
            batch.before = self._current.number, self._current.end
        try:
            rest: Sequence[Record] = records
            while rest:
                pack = self._pack_for(len(rest[0].view), batch)
                taken = self._take(pack, rest)
                at = pack.end
                for record in taken:
                    key, view, payload_bytes, sequence, position, key_id = record
                    batch.extents.append(
                        Extent(key, pack.number, at, payload_bytes, sequence, position, key_id)
                    )
                    at += len(view)
                pack.end = write_records(pack.fd, [record.view for record in taken], pack.end)
                batch.states[pack.number] = PackState(pack.end, sealed=False)
                rest = rest[len(taken) :]
        except OSError:
            self._take_back(batch)
            self._note_use()
            raise
        self._pending.append(batch)
        self._note_use()
        return batch

    def keep(self, batch: Batch) -> None:
        """The index knows this batch."""
        self._pending.remove(batch)
        self._note_use()

    def undo(self) -> None:
        """Takes back all pending batches. Raises nothing: what cannot be cut off now is later.

        Their packs are not written to again.
        """
        for batch in reversed(self._pending):
            self._take_back(batch)
        self._pending.clear()
        self.epoch += 1
        self._note_use()

    def close(self) -> None:
        """Closes the newest pack."""
        self._close_current()
        self._cut_rest()

    def _take_back(self, batch: Batch) -> None:
        """After a failed write or sync nothing says what the medium has: the pack is left."""
        self._close_current()
        for number in batch.created:
            self._cut(number, 0)
        if batch.before is not None:
            self._cut(*batch.before)

    def _cut(self, number: int, end: int) -> None:
        path = self._directory / pack_name(number)
        try:
            if end:
                os.truncate(path, end)
            else:
                path.unlink(missing_ok=True)
            self._uncut.pop(number, None)
        except OSError as error:
            # Nothing refers to these bytes; the next start would cut them off, too.
            if number not in self._uncut:
                logger.error("pack %d: bytes after %d stay for now: %s", number, end, error)
            self._uncut[number] = end

    def _cut_rest(self) -> None:
        for number, end in list(self._uncut.items()):
            self._cut(number, end)

    def _close_current(self) -> None:
        if self._current is not None:
            os.close(self._current.fd)
            self._current = None

    def _pack_for(self, size_bytes: int, batch: Batch) -> _OpenPack:
        current = self._current
        if current is not None:
            if current.end + size_bytes <= self._pack_bytes or current.end == PACK_HEADER_BYTES:
                return current
            batch.states[current.number] = PackState(current.end, sealed=True)
            self._close_current()
        # A number is used once, even where making its file fails half-way.
        number, self._next_number = self._next_number, self._next_number + 1
        fd = create_pack(self._directory / pack_name(number), self._node_id, number)
        batch.created.append(number)
        self._current = _OpenPack(number, fd, PACK_HEADER_BYTES)
        self._in_use |= {number}
        return self._current

    def _take(self, pack: _OpenPack, records: Sequence[Record]) -> Sequence[Record]:
        """The records that still fit the pack: at least one, so that a large one has a pack too."""
        end = pack.end + len(records[0].view)
        count = 1
        while count < len(records) and end + len(records[count].view) <= self._pack_bytes:
            end += len(records[count].view)
            count += 1
        return records[:count]

    def _note_use(self) -> None:
        used = {number for batch in self._pending for number in batch.states}
        if self._current is not None:
            used.add(self._current.number)
        self._in_use = frozenset(used)
