"""The embedded index (LMDB): which page lies where, what must still be destroyed; claims beside it.

Used from one thread at a time (the disk tier's index thread). Every method is one transaction.

    about    "format"                -> version of what these tables hold
    pages    key                     -> pack, offset, payload bytes, position, sequence, data key id
    packs    pack                    -> committed end, sealed
    punches  pack, offset            -> size of a record that is deleted and may still lie there
    doomed   key                     -> records of this key up to that sequence are deleted
    claim_*, loss*, leftover*        see the modules of `store` of these names
"""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lmdb

from agentmem.core import PageKey
from agentmem.pages.record import ALIGN_BYTES, record_bytes
from agentmem.store.claims import TABLES as CLAIM_TABLES
from agentmem.store.claims import ClaimTable
from agentmem.store.leftovers import TABLES as LEFTOVER_TABLES
from agentmem.store.leftovers import Leftover, LeftoverTable
from agentmem.store.losses import TABLES as LOSS_TABLES
from agentmem.store.losses import LossTable
from agentmem.store.pack import sync_directory

_TABLES = 5 + CLAIM_TABLES + LOSS_TABLES + LEFTOVER_TABLES
_FORMAT = b"2"
# Address space that the file may fill: doubled when it does, up to the bound.
_MAP_BYTES = 1 << 30
_MAP_BYTES_MAX = 256 << 30
# pack, offset in blocks, payload bytes, position, sequence; a sealed record's data key id follows
_PAGE = struct.Struct("<IIIIQ")
_PACK = struct.Struct("<QB")
_PACK_KEY = struct.Struct(">I")
_PUNCH_KEY = struct.Struct(">IQ")
_U64 = struct.Struct("<Q")


class Extent(NamedTuple):
    """Where a page's record lies in the packs.

    `position` is the page's place in its session's log, in pages; `key_id` names the data key
    that a sealed record was sealed with, and is empty for a plain one.
    """

    key: PageKey
    pack: int
    offset: int
    payload_bytes: int
    sequence: int
    position: int = 0
    key_id: bytes = b""


class PackState(NamedTuple):
    """Up to where a pack's bytes are indexed; nothing is appended to a sealed one."""

    committed_end: int
    sealed: bool


class Unclaimed(NamedTuple):
    """Result of `unclaim`: keys that nothing claims any more, and the extents they had.

    Records of these keys with a sequence up to `sequence` are deleted wherever they lie.
    """

    keys: list[PageKey]
    extents: list[Extent]
    sequence: int


class PageIndex:
    """One LMDB environment. Raises lmdb.Error when it cannot be opened, read or written."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = path
        self._open()
        # LMDB makes its file without ever making its name durable.
        sync_directory(path)
        sync_directory(path.parent)

    def _open(self) -> None:
        self._env = lmdb.open(str(self._path), map_size=_MAP_BYTES, max_dbs=_TABLES, mode=0o600)
        try:
            self._check_format()
        except lmdb.Error:
            self._env.close()
            raise
        self._pages = self._env.open_db(b"pages")
        self._packs = self._env.open_db(b"packs", integerkey=False)
        self._punches = self._env.open_db(b"punches")
        self._doomed = self._env.open_db(b"doomed")
        self.claims = ClaimTable(self._env)
        self.losses = LossTable(self._env, self.claims)
        self.leftover_table = LeftoverTable(self._env)

    def close(self) -> None:
        """Closes the environment; nothing is pending, every method committed what it did."""
        self._env.close()

    def reopen(self) -> None:
        """Opens the environment again, after a failed write left it unusable. Raises lmdb.Error."""
        self._env.close()
        self._open()

    def grow(self) -> bool:
        """Gives the file room to grow. False when it has reached its bound already."""
        size = self._env.info()["map_size"]
        if size >= _MAP_BYTES_MAX:
            return False
        self._env.set_mapsize(min(2 * size, _MAP_BYTES_MAX))
        return True

    def file_bytes(self) -> int:
        """Bytes that the index itself takes on the medium."""
        try:
            return (self._path / "data.mdb").stat().st_blocks * 512
        except OSError:  # the medium went away: that is told elsewhere
            return 0

    def pages(self) -> int:
        """How many pages there are."""
        with self._env.begin() as tx:
            return int(tx.stat(self._pages)["entries"])

    def extents(self) -> Iterator[Extent]:
        """All pages, in the order of their keys. Nothing may be written meanwhile."""
        with self._env.begin(db=self._pages) as tx:
            for key, value in tx.cursor():
                yield _extent(PageKey(key), value)

    def keys_after(self, after: bytes, pages_max: int) -> list[PageKey]:
        """The next keys of pages after `after` (empty: from the first), in order."""
        with self._env.begin(db=self._pages) as tx:
            cursor = tx.cursor()
            there = cursor.set_range(after) if after else cursor.first()
            if there and after and cursor.key() == after:
                there = cursor.next()
            keys = cursor.iternext(keys=True, values=False) if there else ()
            return [PageKey(bytes(key)) for key in itertools.islice(keys, pages_max)]

    def packs(self) -> dict[int, PackState]:
        """All packs that the index knows."""
        with self._env.begin(db=self._packs) as tx:
            return {_PACK_KEY.unpack(k)[0]: _pack_state(v) for k, v in tx.cursor()}

    def punches(self) -> list[tuple[int, int, int]]:
        """(pack, offset, bytes) of what must still be punched."""
        with self._env.begin(db=self._punches) as tx:
            return [(*_PUNCH_KEY.unpack(k), _U64.unpack(v)[0]) for k, v in tx.cursor()]

    def doomed(self) -> dict[PageKey, int]:
        """Keys whose records up to a sequence are deleted, though copies may still lie in dram."""
        with self._env.begin(db=self._doomed) as tx:
            return {PageKey(bytes(k)): _U64.unpack(v)[0] for k, v in tx.cursor()}

    def commit(
        self, extents: Sequence[Extent], packs: dict[int, PackState], over: Container[int] = ()
    ) -> list[Extent]:
        """Makes written records visible and durable as pages, in place of those in packs `over`.

        Returns those that did not become pages (deleted meanwhile, or there already), to be punched
        """
        refused = []
        with self._env.begin(write=True) as tx:
            for extent in extents:
                doomed = tx.get(extent.key, db=self._doomed)
                deleted = doomed is not None and _U64.unpack(doomed)[0] >= extent.sequence
                before = tx.get(extent.key, db=self._pages)
                if deleted or (before and _extent(extent.key, before).pack not in over):
                    refused.append(extent)
                    self._list_punch(tx, extent)
                    continue
                tx.put(extent.key, _page(extent), db=self._pages)
            self._put_packs(tx, packs)
        return refused

    def take_back(self, undone: Iterable[tuple[Extent, Extent | None]]) -> None:
        """Makes sure that commits which failed are not there, whatever the medium kept of them.

        Each is the extent that was to be committed, and where the page lies really, if anywhere.
        """
        with self._env.begin(write=True) as tx:
            for extent, before in undone:
                tx.delete(_PUNCH_KEY.pack(extent.pack, extent.offset), db=self._punches)
                if tx.get(extent.key, db=self._pages) != _page(extent):
                    continue
                if before is None:
                    tx.delete(extent.key, db=self._pages)
                else:
                    tx.put(extent.key, _page(before), db=self._pages)
                    tx.delete(_PUNCH_KEY.pack(before.pack, before.offset), db=self._punches)

    def move(
        self, moves: Sequence[tuple[Extent, Extent]], packs: dict[int, PackState]
    ) -> list[tuple[Extent, Extent]]:
        """Makes pages lie where a copy of their record was written: (old, new) extent each.

        Returns the moves that were made: a page that was deleted, or moved, meanwhile stays what
        it is. The extents given up, old or new, are listed for punching.
        """
        moved = []
        with self._env.begin(write=True) as tx:
            for old, new in moves:
                if tx.get(old.key, db=self._pages) == _page(old):
                    tx.put(old.key, _page(new), db=self._pages)
                    self._list_punch(tx, old)
                    moved.append((old, new))
                else:
                    self._list_punch(tx, new)
            self._put_packs(tx, packs)
        return moved

    def remove(self, keys: Sequence[PageKey], up_to: int | None = None) -> list[Extent]:
        """Removes pages; their bytes are listed for punching. Returns what was there.

        `up_to`: only records of a sequence up to that; such that come late are no pages either.
        """
        with self._env.begin(write=True) as tx:
            for key in keys if up_to is not None else ():
                tx.put(key, _U64.pack(up_to), db=self._doomed)
            return [extent for key in keys if (extent := self._pop(tx, key, up_to)) is not None]

    def forget(self, extents: Iterable[Extent], packs: Iterable[int]) -> None:
        """Drops pages and packs whose files are gone, without anything left to punch."""
        with self._env.begin(write=True) as tx:
            for extent in extents:
                tx.delete(extent.key, db=self._pages)
                self.leftover_table.remove(tx, extent.key)
            for number in packs:
                tx.delete(_PACK_KEY.pack(number), db=self._packs)
                cursor = tx.cursor(db=self._punches)
                prefix = _PACK_KEY.pack(number)
                while cursor.set_range(prefix) and cursor.key().startswith(prefix):
                    cursor.delete()

    def finish(self, punched: Iterable[tuple[int, int]], doomed: Iterable[PageKey]) -> None:
        """Notes that bytes at (pack, offset) and dram copies of deleted keys are destroyed."""
        with self._env.begin(write=True) as tx:
            for pack, offset in punched:
                tx.delete(_PUNCH_KEY.pack(pack, offset), db=self._punches)
            for key in doomed:
                tx.delete(key, db=self._doomed)

    def unclaim(self, claim_id: bytes, keys: Iterable[PageKey], now_us: int) -> Unclaimed:
        """Ends a claim. Pages left without an unexpired claim are deleted, atomically with it.

        They are doomed as well: neither a crash nor a late copy can bring them back.
        """
        sequence = time.time_ns()  # in the index thread: every record committed so far is older
        result = Unclaimed([], [], sequence)
        keys = list(keys)
        with self.claims.counting() as (tx, change):
            self.claims.unclaim(tx, claim_id, keys, change)
            for key in keys:
                if self.claims.is_claimed(tx, key, now_us):
                    continue
                self.claims.drop_expired(tx, key, now_us, change)
                tx.put(key, _U64.pack(sequence), db=self._doomed)
                result.keys.append(key)
                if (extent := self._pop(tx, key)) is not None:
                    result.extents.append(extent)
        return result

    def evict_unpromised(
        self, candidates: Iterable[PageKey], size_bytes: int, now_us: int
    ) -> list[Extent]:
        """Removes pages that nothing promises, in the order given, until `size_bytes` are found."""
        evicted: list[Extent] = []
        with self._env.begin(write=True) as tx:
            for key in candidates:
                if size_bytes <= 0:
                    break
                if self.claims.is_promised(tx, key, now_us):
                    continue
                if (extent := self._pop(tx, key)) is not None:
                    evicted.append(extent)
                    size_bytes -= record_bytes(extent.payload_bytes)
        return evicted

    def prune_claims(self, now_us: int, rows_max: int) -> tuple[int, bool]:
        """Drops claims that have expired, `rows_max` pages of them at the most.

        Returns how many pages' claims were dropped, and whether more have expired. What is on
        disk of them is left over.
        """
        with self.claims.counting() as (tx, change):
            dropped, more = self.claims.prune(tx, now_us, rows_max, change)
            for page in dropped:
                if tx.get(page.key, db=self._pages) is not None:
                    self.leftover_table.add(tx, Leftover(*page))
        return len(dropped), more

    def leftovers(self, pages_max: int, now_us: int) -> list[tuple[Leftover, Extent]]:
        """Pages that no claim names any more, those left over first first."""
        found: list[tuple[Leftover, Extent]] = []
        stale: list[PageKey] = []
        with self._env.begin(write=True) as tx:
            for page in self.leftover_table.oldest(tx):
                value = tx.get(page.key, db=self._pages)
                if value is None or self.claims.is_claimed(tx, page.key, now_us):
                    stale.append(page.key)
                    continue
                found.append((page, _extent(page.key, value)))
                if len(found) == pages_max:
                    break
            for key in stale:
                self.leftover_table.remove(tx, key)
        return found

    def payload_bytes_by_fingerprint(self) -> dict[bytes, int]:
        """Payload bytes of a page of each fingerprint that is promised and that is here."""
        sizes = {}
        with self._env.begin(db=self._pages) as tx:
            cursor = tx.cursor()
            for digest in {digest for _, digest in self.claims.promised}:
                if cursor.set_range(digest) and cursor.key().startswith(digest):
                    sizes[digest] = _extent(PageKey(cursor.key()), cursor.value()).payload_bytes
        return sizes

    def tenants_after(
        self, after: bytes, pages_max: int
    ) -> tuple[dict[bytes, tuple[int, int]], bytes]:
        """(pages, payload bytes) per tenant tag of the next pages, and the key to go on after.

        The key is empty at the end; the tag is zeros where nobody is known to own a page.
        """
        uses: dict[bytes, tuple[int, int]] = {}
        with self._env.begin(db=self._pages) as tx:
            cursor = tx.cursor()
            positioned = cursor.set_range(after + b"\x00") if after else cursor.first()
            for _ in range(pages_max):
                if not positioned:
                    return uses, b""
                after = bytes(cursor.key())
                extent = _extent(PageKey(after), cursor.value())
                claims = self.claims.of_page_in(tx, extent.key)
                tenant = claims[0].tenant if claims else self.leftover_table.tenant(tx, extent.key)
                pages, page_bytes = uses.get(tenant, (0, 0))
                uses[tenant] = pages + 1, page_bytes + extent.payload_bytes
                positioned = cursor.next()
        return uses, after

    def _pop(self, tx: Any, key: PageKey, up_to: int | None = None) -> Extent | None:
        value = tx.get(key, db=self._pages)
        extent = None if value is None else _extent(key, value)
        if extent is None or (up_to is not None and extent.sequence > up_to):
            return None
        tx.delete(key, db=self._pages)
        self.leftover_table.remove(tx, key)
        self._list_punch(tx, extent)
        return extent

    def _check_format(self) -> None:
        file = self._path / "data.mdb"
        if file.stat().st_size < (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]:
            # LMDB maps the file: reading beyond its end would end the process.
            raise lmdb.CorruptedError("the index file is shorter than it says")
        about = self._env.open_db(b"about")
        with self._env.begin(write=True, db=about) as tx:
            version = tx.get(b"format")
            if version is None and not tx.stat(self._env.open_db(None, txn=tx))["entries"] > 1:
                tx.put(b"format", _FORMAT)
            elif version != _FORMAT:
                raise lmdb.VersionMismatchError(f"an index of format {version!r}, not {_FORMAT!r}")

    def _put_packs(self, tx: Any, packs: dict[int, PackState]) -> None:
        for number, state in packs.items():
            value = _PACK.pack(state.committed_end, state.sealed)
            tx.put(_PACK_KEY.pack(number), value, db=self._packs)

    def _list_punch(self, tx: Any, extent: Extent) -> None:
        size = _U64.pack(record_bytes(extent.payload_bytes))
        tx.put(_PUNCH_KEY.pack(extent.pack, extent.offset), size, db=self._punches)


def _page(extent: Extent) -> bytes:
    _key, pack, offset, payload_bytes, sequence, position, key_id = extent
    return _PAGE.pack(pack, offset // ALIGN_BYTES, payload_bytes, position, sequence) + key_id


def _extent(key: PageKey, value: bytes) -> Extent:
    pack, block, payload_bytes, position, sequence = _PAGE.unpack_from(value)
    key_id = value[_PAGE.size :]
    return Extent(key, pack, block * ALIGN_BYTES, payload_bytes, sequence, position, key_id)


def _pack_state(value: bytes) -> PackState:
    end, sealed = _PACK.unpack(value)
    return PackState(end, bool(sealed))
