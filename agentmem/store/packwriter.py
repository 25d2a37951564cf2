"""Appends batches of records to packs. Used from one thread (the disk tier's writer thread)."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from agentmem.core import PageKey
from agentmem.store.index import Extent, PackState
from agentmem.store.pack import PACK_HEADER_BYTES, create_pack, pack_name, write_records

logger = logging.getLogger(__name__)


class Record(NamedTuple):
    """A record to write: `view` is the whole of it, padding included, and stays as it is."""

    key: PageKey
    view: memoryview
    payload_bytes: int
    sequence: int


class _OpenPack(NamedTuple):
    number: int
    fd: int
    end: int


class PackWriter:
    """Writes at the end of the newest pack, and begins another when it is full."""

    def __init__(self, directory: Path, node_id: str, pack_bytes: int) -> None:
        self._directory = directory
        self._node_id = node_id
        self._pack_bytes = pack_bytes
        self._current: _OpenPack | None = None
        self._next_number = 0
        # What `undo` goes back to: the pack that was open, and the packs made since.
        self._before: _OpenPack | None = None
        self._created: list[_OpenPack] = []

    @property
    def current_number(self) -> int | None:
        """The pack that the next record goes to; every other pack is never written again."""
        current = self._current
        return None if current is None else current.number

    def resume(self, states: dict[int, PackState]) -> None:
        """Goes on after the packs that are there."""
        if not states:
            return
        newest = max(states)
        self._next_number = newest + 1
        if not states[newest].sealed:
            fd = os.open(self._directory / pack_name(newest), os.O_RDWR | os.O_CLOEXEC)
            self._current = _OpenPack(newest, fd, states[newest].committed_end)

    def write(self, records: Sequence[Record]) -> tuple[list[Extent], dict[int, PackState]]:
        """Writes and syncs all records. Returns where they lie, and the packs' new states.

        Raises OSError after taking everything back. The caller must call `keep` once the index
        knows the records, or `undo`.
        """
        self._before = self._current
        self._created = []
        extents: list[Extent] = []
        states: dict[int, PackState] = {}
        try:
            rest = list(records)
            while rest:
                pack = self._pack_for(len(rest[0].view), states)
                taken = self._take(pack, rest)
                offset = pack.end
                for record in taken:
                    extents.append(
                        Extent(
                            record.key, pack.number, offset, record.payload_bytes, record.sequence
                        )
                    )
                    offset += len(record.view)
                end = write_records(pack.fd, [record.view for record in taken], pack.end)
                self._current = pack._replace(end=end)
                states[pack.number] = PackState(end, sealed=False)
                rest = rest[len(taken) :]
        except OSError:
            self.undo()
            raise
        return extents, states

    def keep(self) -> None:
        """The index knows what `write` wrote."""
        packs = [self._before, *self._created]
        for pack in packs:
            if pack is not None and (self._current is None or pack.number != self._current.number):
                os.close(pack.fd)
        self._before = None
        self._created = []

    def undo(self) -> None:
        """Takes back what `write` wrote. Raises nothing: recovery would cut it off at start.

        The pack is not written to again: after a failed sync nothing says what the medium has.
        """
        for pack in self._created:
            os.close(pack.fd)
            try:
                (self._directory / pack_name(pack.number)).unlink(missing_ok=True)
            except OSError as error:
                logger.error("pack %d: stays, unused: %s", pack.number, error)
        if self._before is not None:
            try:
                os.ftruncate(self._before.fd, self._before.end)
            except OSError as error:
                logger.error(
                    "pack %d: torn bytes stay behind its end: %s", self._before.number, error
                )
            finally:
                os.close(self._before.fd)
        self._current = None
        self._before = None
        self._created = []

    def close(self) -> None:
        """Closes the newest pack."""
        if self._current is not None:
            os.close(self._current.fd)
            self._current = None

    def _pack_for(self, size_bytes: int, states: dict[int, PackState]) -> _OpenPack:
        current = self._current
        if current is not None:
            if current.end + size_bytes <= self._pack_bytes or current.end == PACK_HEADER_BYTES:
                return current
            states[current.number] = PackState(current.end, sealed=True)
        # A number is used once, even where making its file fails half-way.
        number, self._next_number = self._next_number, self._next_number + 1
        fd = create_pack(self._directory / pack_name(number), self._node_id, number)
        pack = _OpenPack(number, fd, PACK_HEADER_BYTES)
        self._created.append(pack)
        self._current = pack
        return pack

    def _take(self, pack: _OpenPack, records: Sequence[Record]) -> list[Record]:
        """The records that still fit the pack: at least one, so that a large one has a pack too."""
        taken: list[Record] = []
        end = pack.end
        for record in records:
            if taken and end + len(record.view) > self._pack_bytes:
                break
            taken.append(record)
            end += len(record.view)
        return taken
