"""What lies in the packs, by pack: the accounting of the disk tier, and which pack to rewrite."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(slots=True)
class _Pack:
    records: int = 0  # whose bytes are not destroyed yet, deleted ones included
    live_bytes: int = 0  # of records that are pages
    written_bytes: int = 0  # of all records that were ever put here
    stale_bytes: int = 0  # destroyed, but given back with the whole file only


class PackSpace:
    """Bytes of records in packs. `reserved_bytes` is what they take on the medium.

    Event loop only.
    """

    def __init__(self) -> None:
        self.reserved_bytes = 0
        self._packs: dict[int, _Pack] = {}

    def clear(self) -> None:
        """Forgets everything."""
        self.reserved_bytes = 0
        self._packs.clear()

    def put(self, pack: int, size_bytes: int) -> None:
        """A live record lies there now."""
        entry = self._packs.get(pack)
        if entry is None:
            entry = self._packs[pack] = _Pack()
        entry.records += 1
        entry.live_bytes += size_bytes
        entry.written_bytes += size_bytes
        self.reserved_bytes += size_bytes

    def note_written(self, pack: int, size_bytes: int) -> None:
        """So much was ever written there, whatever is left of it."""
        entry = self._packs.get(pack)
        if entry is not None:
            entry.written_bytes = max(size_bytes, entry.written_bytes)

    def die(self, pack: int, size_bytes: int) -> None:
        """A record there is no page any more; its bytes are still there."""
        self._packs[pack].live_bytes -= size_bytes

    def destroyed(self, pack: int, size_bytes: int, *, given_back: bool) -> None:
        """The bytes of a dead record are destroyed; `given_back`: to the file system as well."""
        entry = self._packs[pack]
        entry.records -= 1
        if given_back:
            self.reserved_bytes -= size_bytes
        else:
            entry.stale_bytes += size_bytes

    def unlinked(self, pack: int) -> None:
        """The file is gone."""
        entry = self._packs.pop(pack, None)
        if entry is not None:
            self.reserved_bytes -= entry.stale_bytes

    def is_empty(self, pack: int) -> bool:
        """Whether every record there is destroyed."""
        entry = self._packs.get(pack)
        return entry is None or entry.records == 0

    def live_bytes(self, pack: int) -> int:
        """Bytes of the pages there."""
        entry = self._packs.get(pack)
        return 0 if entry is None else entry.live_bytes

    def sparsest(self, share_max: float, but: Collection[int]) -> int | None:
        """The pack with the smallest live share of what was written, if that is below `share_max`.

        Packs without live records need no rewriting: they go by themselves. None without one.
        """
        best, best_share = None, share_max
        for number, entry in self._packs.items():
            if not entry.live_bytes or number in but:
                continue
            share = entry.live_bytes / entry.written_bytes
            if share < best_share:
                best, best_share = number, share
        return best
