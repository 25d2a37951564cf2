"""Copies of pages on disk, as readers hold them: they exist only while someone looks at one."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakValueDictionary

from agentmem.core import PageKey
from agentmem.store.base import PageCopy
from agentmem.store.table import PageTable


@dataclass(slots=True, eq=False, kw_only=True, weakref_slot=True)
class DiskCopy(PageCopy):
    """A page in a pack. `key_id` names the data key of a sealed record, empty for a plain one."""

    pack: int
    offset: int
    sequence: int
    position: int = 0
    key_id: bytes = b""


class DiskCopies:
    """The copies that exist: all who look at a page share one, and with it its read holds."""

    def __init__(self, table: PageTable) -> None:
        self._table = table
        self._copies: WeakValueDictionary[PageKey, DiskCopy] = WeakValueDictionary()

    def get(self, key: PageKey) -> DiskCopy | None:
        """The page's copy, None when it is not in the table."""
        copy = self._copies.get(key)
        if copy is None:
            extent = self._table.get(key)
            if extent is None:
                return None
            copy = self._copies[key] = DiskCopy(
                key,
                extent.payload_bytes,
                pack=extent.pack,
                offset=extent.offset,
                sequence=extent.sequence,
                position=extent.position,
                key_id=extent.key_id,
            )
        return copy

    def held(self, key: PageKey) -> bool:
        """Whether anyone reads the page now."""
        copy = self._copies.get(key)
        return copy is not None and copy.holds > 0

    def leave(self, key: PageKey) -> bool:
        """Nobody finds this copy any more. Returns whether someone still reads it."""
        copy = self._copies.pop(key, None)
        if copy is None:
            return False
        copy.gone = True
        return copy.holds > 0
