"""What the disk tier knows of each of its pages in memory: 80 bytes a page and 6 to 12 to find it.

Rows of fixed size lie in one bytearray; which row a key has is found in open-addressed tables of
row numbers (linear probing, no tombstones). There are many such tables, each for a share of all
keys, so that one that grows costs a moment and not a stall. No object exists per page.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Sequence
from heapq import nsmallest
from typing import NamedTuple

from agentmem.core import FINGERPRINT_DIGEST_BYTES, PAGE_KEY_BYTES, PageKey
from agentmem.pages.record import ALIGN_BYTES
from agentmem.store.index import Extent

# key, pack, offset in blocks, payload bytes, position, last used, data key number, sequence
_ROW = struct.Struct(f"<{PAGE_KEY_BYTES}sIIIIIIQ")
_ROW_BYTES = _ROW.size
_PLACE = struct.Struct("<II")
_PLACE_AT = PAGE_KEY_BYTES
_LAST_USED = struct.Struct("<I")
_LAST_USED_AT = PAGE_KEY_BYTES + 16
_HASH = struct.Struct("<Q")
_HASH_AT = FINGERPRINT_DIGEST_BYTES
_HASH_END = _HASH_AT + _HASH.size

_SHARD_BITS = 10
_SHARDS = 1 << _SHARD_BITS
_SHARD_MASK = _SHARDS - 1
_SLOTS_MIN = 8
_CHUNK_ROWS = 1024


class PageUse(NamedTuple):
    """What choosing pages to evict looks at. `last_used` is in seconds since the epoch."""

    key: PageKey
    payload_bytes: int
    position: int
    last_used: int


class PageTable:
    """Extents by page key. `page_bytes` is the sum of their payloads."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self.page_bytes = 0
        self._pages = 0
        self._rows = bytearray(_ROW_BYTES)  # row 0 is no row: a slot that holds 0 is empty
        self._free = array("I")
        self._shards = [array("I", bytes(4 * _SLOTS_MIN)) for _ in range(_SHARDS)]
        self._used = array("I", bytes(4 * _SHARDS))
        # Data keys by number, from 1 on: there are as many as tenants, not as pages.
        self._key_ids = [b""]
        self._key_numbers = {b"": 0}

    def __len__(self) -> int:
        return self._pages

    def __contains__(self, key: PageKey) -> bool:
        return self._row_of(key) != 0

    def get(self, key: PageKey) -> Extent | None:
        """Where the page lies, None when it is not here."""
        row = self._row_of(key)
        return self._extent(row) if row else None

    def prefix(self, keys: Sequence[PageKey]) -> int:
        """How many keys, counted from the first, are here without a gap."""
        for count, key in enumerate(keys):
            if not self._row_of(key):
                return count
        return len(keys)

    def reserve(self, pages: int) -> None:
        """Makes room for so many pages, before they are put into an empty table."""
        slots = _SLOTS_MIN
        while 4 * pages > 2 * slots * _SHARDS:
            slots *= 2
        self._shards = [array("I", bytes(4 * slots)) for _ in range(_SHARDS)]

    def add(self, extent: Extent, last_used: int) -> None:
        """Adds a page, or replaces what is known of it."""
        self.pop(extent.key)
        self.put(extent, last_used)

    def put(self, extent: Extent, last_used: int) -> None:
        """Adds a page that is not here."""
        key, pack, offset, payload_bytes, sequence, position, key_id = extent
        number = self._key_numbers.get(key_id)
        if number is None:
            number = self._key_numbers[key_id] = len(self._key_ids)
            self._key_ids.append(key_id)
        block = offset // ALIGN_BYTES
        packed = _ROW.pack(key, pack, block, payload_bytes, position, last_used, number, sequence)
        if self._free:
            row = self._free.pop()
            self._rows[row * _ROW_BYTES : (row + 1) * _ROW_BYTES] = packed
        else:
            row = len(self._rows) // _ROW_BYTES
            self._rows += packed
        self._pages += 1
        self.page_bytes += payload_bytes
        digest = int.from_bytes(key[_HASH_AT:_HASH_END], "little")
        shard = digest & _SHARD_MASK
        used = self._used[shard] = self._used[shard] + 1
        slots = self._shards[shard]
        if 4 * used > 3 * len(slots):
            slots = self._grow(shard)
        _put(slots, digest >> _SHARD_BITS, row)

    def pop(self, key: PageKey) -> Extent | None:
        """Takes a page out. Returns where it lay, None when it was not here."""
        row = self._row_of(key)
        if not row:
            return None
        extent = self._extent(row)
        self._take_out(extent.key, row)
        self._rows[row * _ROW_BYTES : (row + 1) * _ROW_BYTES] = bytes(_ROW_BYTES)
        self._free.append(row)
        self._pages -= 1
        self.page_bytes -= extent.payload_bytes
        return extent

    def move(self, key: PageKey, pack: int, offset: int) -> None:
        """The page's record lies elsewhere now. Raises KeyError for a page that is not here."""
        row = self._row_of(key)
        if not row:
            raise KeyError(key)
        _PLACE.pack_into(self._rows, row * _ROW_BYTES + _PLACE_AT, pack, offset // ALIGN_BYTES)

    def touch(self, key: PageKey, now: int) -> None:
        """Notes that the page was used, at `now` seconds since the epoch."""
        row = self._row_of(key)
        if row:
            _LAST_USED.pack_into(self._rows, row * _ROW_BYTES + _LAST_USED_AT, now)

    def uses(self) -> Iterator[PageUse]:
        """All pages, in no order that means anything.

        Pages may come and go while it runs: those that were there all the time are in it.
        """
        end = len(self._rows)  # of now: whoever adds pages meanwhile must not keep it going
        step = _CHUNK_ROWS * _ROW_BYTES
        for at in range(_ROW_BYTES, end, step):
            chunk = bytes(self._rows[at : min(at + step, end)])
            for key, _pack, block, payload_bytes, position, last_used, _, _ in _ROW.iter_unpack(
                chunk
            ):
                if block:  # a pack's first block is its header: a row with 0 is free
                    yield PageUse(PageKey(key), payload_bytes, position, last_used)

    def least_used(self, pages: int) -> list[PageKey]:
        """So many keys, those used longest ago first; of one second's, the last of a log first."""
        found = nsmallest(pages, self.uses(), key=lambda use: (use.last_used, -use.position))
        return [use.key for use in found]

    def extents(self) -> Iterator[Extent]:
        """All pages' extents, as `uses`."""
        rows = len(self._rows) // _ROW_BYTES
        for first in range(1, rows, _CHUNK_ROWS):
            chunk = [self._extent(row) for row in range(first, min(first + _CHUNK_ROWS, rows))]
            yield from (extent for extent in chunk if extent.offset)

    def _row_of(self, key: PageKey) -> int:
        digest = int.from_bytes(key[_HASH_AT:_HASH_END], "little")
        slots = self._shards[digest & _SHARD_MASK]
        mask = len(slots) - 1
        at = (digest >> _SHARD_BITS) & mask
        rows = self._rows
        row = slots[at]
        while row and not rows.startswith(key, row * _ROW_BYTES):
            at = (at + 1) & mask
            row = slots[at]
        return row

    def _extent(self, row: int) -> Extent:
        key, pack, block, payload_bytes, position, _, number, sequence = _ROW.unpack_from(
            self._rows, row * _ROW_BYTES
        )
        return Extent(
            PageKey(key),
            pack,
            block * ALIGN_BYTES,
            payload_bytes,
            sequence,
            position,
            self._key_ids[number],
        )

    def _grow(self, shard: int) -> array[int]:
        old = self._shards[shard]
        slots = self._shards[shard] = array("I", bytes(8 * len(old)))
        for row in old:
            if row:
                _put(slots, self._digest(row) >> _SHARD_BITS, row)
        return slots

    def _take_out(self, key: PageKey, row: int) -> None:
        """Empties the row's slot; rows that were put further on for its sake move up."""
        digest = int.from_bytes(key[_HASH_AT:_HASH_END], "little")
        shard = digest & _SHARD_MASK
        self._used[shard] -= 1
        slots = self._shards[shard]
        mask = len(slots) - 1
        gap = (digest >> _SHARD_BITS) & mask
        while slots[gap] != row:
            gap = (gap + 1) & mask
        at = gap
        while True:
            at = (at + 1) & mask
            other = slots[at]
            if not other:
                break
            home = (self._digest(other) >> _SHARD_BITS) & mask
            if (at - home) & mask >= (at - gap) & mask:
                slots[gap] = other
                gap = at
        slots[gap] = 0

    def _digest(self, row: int) -> int:
        (digest,) = _HASH.unpack_from(self._rows, row * _ROW_BYTES + _HASH_AT)
        return int(digest)


def _put(slots: array[int], digest: int, row: int) -> None:
    mask = len(slots) - 1
    at = digest & mask
    while slots[at]:
        at = (at + 1) & mask
    slots[at] = row
