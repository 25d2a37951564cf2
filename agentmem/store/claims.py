"""Claims (LMDB tables beside the page index): who wants which pages kept, until when, how surely.

    claim_heads     claim number               -> expiry, tenant, retention, flags, claim id
    claim_ids       claim id                   -> claim number
    claim_pages     page key                   -> claim number, position, promised; one per claim
    claim_keys      claim number, position     -> page keys (several after a log was re-based)
    claim_expiries  expiry, claim number       -> nothing; the order in which claims end
    claim_promises  tenant, fingerprint digest -> promised pages, each counted once

A claim keeps its pages from deletion by others; what is *promised* of it is also kept from
eviction. A term is the whole claim's: renewing any page of it renews all. Used from one thread at a
time (the disk tier's index thread); methods that take `tx` are part of the caller's transaction.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from agentmem.core import FINGERPRINT_DIGEST_BYTES, PageKey

CLAIM_ID_BYTES_MIN = 1
CLAIM_ID_BYTES_MAX = 64
TENANT_BYTES = 16
TABLES = 6

# How a claim's pages are kept, weakest first. `scratch` is a helper's: losing it breaks no promise.
RETENTIONS = ("scratch", "ephemeral", "standard", "persistent", "archive")

_HEAD = struct.Struct(f"<Q{TENANT_BYTES}sBB")
_NUMBER = struct.Struct(">Q")
_PLACE = struct.Struct(">QI")  # claim number, position
_ROW = struct.Struct(">QIB")  # claim number, position, promised
_EXPIRY = struct.Struct(">QQ")
_U64 = struct.Struct("<Q")
_ENCRYPTED = 1


class Terms(NamedTuple):
    """What a claim says of its pages.

    `tenant`: an opaque tag of 16 bytes, or none. `start`: position of the first key in its log.
    """

    expires_at_us: int
    tenant: bytes = b""
    retention: str = "standard"
    encrypted: bool = False
    start: int = 0


class Claim(NamedTuple):
    """One claim on a page. `promised`: the page must not be evicted until the claim's expiry."""

    claim_id: bytes
    expires_at_us: int
    tenant: bytes
    retention: str
    encrypted: bool
    position: int
    promised: bool


class Ended(NamedTuple):
    """A page whose claim has expired; `parent` is the page before it in the claim's log."""

    key: PageKey
    parent: PageKey | None
    position: int
    tenant: bytes
    retention: str
    expired_us: int


Holder = tuple[bytes, bytes]
"""Whose promises are counted together: tenant tag (16 bytes), fingerprint digest."""

Admit = Callable[[Holder, int, Counter[Holder]], int]
"""How many of so many more pages of a holder may be promised beside what is promised already."""


def admit_all(_holder: Holder, pages: int, _promised: Counter[Holder]) -> int:
    """Promises everything."""
    return pages


class _Head(NamedTuple):
    number: int
    expires_at_us: int
    tenant: bytes
    retention: int
    flags: int
    claim_id: bytes


class ClaimTable:
    """The claims in one LMDB environment. Raises lmdb.Error when it cannot be read or written.

    `promised` counts promised pages per holder; claims that have expired count until `prune`.
    """

    def __init__(self, env: Any) -> None:
        self._env = env
        self._heads = env.open_db(b"claim_heads")
        self._ids = env.open_db(b"claim_ids")
        self._pages = env.open_db(b"claim_pages", dupsort=True, dupfixed=True)
        self._keys = env.open_db(b"claim_keys", dupsort=True, dupfixed=True)
        self._expiries = env.open_db(b"claim_expiries")
        self._promises = env.open_db(b"claim_promises")
        self.promised: Counter[Holder] = self._read_promised()

    def claim(
        self,
        claim_id: bytes,
        keys: Sequence[PageKey],
        terms: Terms,
        admit: Admit = admit_all,
    ) -> int:
        """Registers or renews a claim on pages, whether or not they are stored already.

        Returns how many, from the first key on, are promised: a page is worthless without those
        before it, so where `admit` ends, the promise ends. Pages promised before stay promised.
        """
        with self.counting() as (tx, change):
            head = self._renew(tx, claim_id, terms)
            wanted = self._unpromised_by(tx, keys)
            promising = self._promised_before(tx, head.number, terms.start)
            room = {
                holder: admit(holder, pages, self.promised) if promising else 0
                for holder, pages in Counter(_holder(head, key) for key in wanted).items()
            }
            promised = 0
            for position, key in enumerate(keys, terms.start):
                if key in wanted:
                    holder = _holder(head, key)
                    promising = promising and room[holder] > 0
                    if promising:
                        room[holder] -= 1
                        wanted.discard(key)
                self._put_row(tx, (head.number, position), key, change, promised=promising)
                promised += promising
        return promised

    def unclaim(
        self, tx: Any, claim_id: bytes, keys: Iterable[PageKey], change: Counter[Holder]
    ) -> None:
        """Ends a claim on these pages, inside `counting`."""
        found = tx.get(claim_id, db=self._ids)
        if found is None:
            return
        head = self._head(tx, _NUMBER.unpack(found)[0])
        for key in keys:
            self._drop_row(tx, head.number, key, change)
        self._drop_if_empty(tx, head)

    @contextmanager
    def counting(self) -> Iterator[tuple[Any, Counter[Holder]]]:
        """A write transaction, and what the methods that take `change` note promises in."""
        change: Counter[Holder] = Counter()
        with self._env.begin(write=True) as tx:
            yield tx, change
            self._count(tx, change)
        self.promised.update(change)

    def drop_expired(self, tx: Any, key: PageKey, now_us: int, change: Counter[Holder]) -> None:
        """Drops the claims on a page that have expired."""
        for head, _position, _promised in list(self._rows(tx, key)):
            if head.expires_at_us <= now_us:
                self._drop_row(tx, head.number, key, change)
                self._drop_if_empty(tx, head)

    def is_claimed(self, tx: Any, key: PageKey, now_us: int) -> bool:
        """Whether an unexpired claim names the page."""
        return any(head.expires_at_us > now_us for head, _, _ in self._rows(tx, key))

    def is_promised(self, tx: Any, key: PageKey, now_us: int) -> bool:
        """Whether an unexpired claim promises the page."""
        return any(kept and head.expires_at_us > now_us for head, _, kept in self._rows(tx, key))

    def claimed(self, keys: Iterable[PageKey], now_us: int) -> set[PageKey]:
        """Those of the keys that an unexpired claim names."""
        with self._env.begin() as tx:
            return {key for key in keys if self.is_claimed(tx, key, now_us)}

    def of_pages(self, keys: Iterable[PageKey], now_us: int) -> dict[PageKey, list[Claim]]:
        """The unexpired claims on these pages; a page without one is not in it."""
        found: dict[PageKey, list[Claim]] = {}
        with self._env.begin() as tx:
            for key in keys:
                live = [c for c in self.of_page_in(tx, key) if c.expires_at_us > now_us]
                if live:
                    found[key] = live
        return found

    def of_page(self, key: PageKey) -> list[Claim]:
        """All claims on a page, expired ones included."""
        with self._env.begin() as tx:
            return self.of_page_in(tx, key)

    def of_page_in(self, tx: Any, key: PageKey) -> list[Claim]:
        """As `of_page`, inside a transaction."""
        return [
            Claim(
                head.claim_id,
                head.expires_at_us,
                head.tenant,
                RETENTIONS[head.retention],
                bool(head.flags & _ENCRYPTED),
                position,
                promised,
            )
            for head, position, promised in self._rows(tx, key)
        ]

    def prune(
        self, tx: Any, now_us: int, rows_max: int, change: Counter[Holder]
    ) -> tuple[list[Ended], bool]:
        """Drops up to `rows_max` pages of expired claims, those that expired first first.

        Returns the pages, each with the claim that ended, and whether more have expired.
        """
        dropped: list[Ended] = []
        cursor = tx.cursor(db=self._expiries)
        while cursor.first():
            expires_at_us, number = _EXPIRY.unpack(cursor.key())
            if expires_at_us > now_us:
                return dropped, False
            head = self._head(tx, number)
            # From the end of the log on: the page before is there to be named.
            for key, position in list(self._last_keys(tx, number, rows_max - len(dropped))):
                parent = (
                    tx.get(_PLACE.pack(number, position - 1), db=self._keys) if position else None
                )
                self._drop_row(tx, number, key, change)
                dropped.append(
                    Ended(
                        key,
                        parent and PageKey(bytes(parent)),
                        position,
                        head.tenant,
                        RETENTIONS[head.retention],
                        expires_at_us,
                    )
                )
            self._drop_if_empty(tx, head)
            if len(dropped) >= rows_max:
                return dropped, True
        return dropped, False

    def _renew(self, tx: Any, claim_id: bytes, terms: Terms) -> _Head:
        tenant = terms.tenant.ljust(TENANT_BYTES, b"\x00")
        retention = RETENTIONS.index(terms.retention)
        flags = _ENCRYPTED if terms.encrypted else 0
        found = tx.get(claim_id, db=self._ids)
        if found is None:
            cursor = tx.cursor(db=self._heads)
            number = _NUMBER.unpack(cursor.key())[0] + 1 if cursor.last() else 1
            tx.put(claim_id, _NUMBER.pack(number), db=self._ids)
        else:
            number = _NUMBER.unpack(found)[0]
            before = self._head(tx, number)
            tenant = before.tenant  # promises are counted under it
            tx.delete(_EXPIRY.pack(before.expires_at_us, number), db=self._expiries)
        head = _Head(number, terms.expires_at_us, tenant, retention, flags, claim_id)
        tx.put(_NUMBER.pack(number), _HEAD.pack(*head[1:5]) + claim_id, db=self._heads)
        tx.put(_EXPIRY.pack(terms.expires_at_us, number), b"", db=self._expiries)
        return head

    def _head(self, tx: Any, number: int) -> _Head:
        value = tx.get(_NUMBER.pack(number), db=self._heads)
        if value is None:  # bits of the index flipped: a claim of which nothing is known has ended
            return _Head(number, 0, bytes(TENANT_BYTES), 0, 0, b"")
        expires_at_us, tenant, retention, flags = _HEAD.unpack_from(value)
        return _Head(number, expires_at_us, tenant, retention, flags, bytes(value[_HEAD.size :]))

    def _rows(self, tx: Any, key: PageKey) -> Iterator[tuple[_Head, int, bool]]:
        cursor = tx.cursor(db=self._pages)
        if cursor.set_key(key):
            for value in cursor.iternext_dup():
                number, position, promised = _ROW.unpack(value)
                yield self._head(tx, number), position, bool(promised)

    def _unpromised_by(self, tx: Any, keys: Sequence[PageKey]) -> set[PageKey]:
        """Those of the keys that no claim, expired ones included, promises."""
        cursor = tx.cursor(db=self._pages)
        return {
            key
            for key in keys
            if not (cursor.set_key(key) and any(value[-1] for value in cursor.iternext_dup()))
        }

    def _promised_before(self, tx: Any, number: int, start: int) -> bool:
        """Whether nothing speaks against promising what comes at position `start`."""
        if start == 0:
            return True
        cursor = tx.cursor(db=self._keys)
        if not cursor.set_key(_PLACE.pack(number, start - 1)):
            return True  # claimed from there on only: what comes before is its owner's affair
        return any(
            self._row(tx, key, number)[-1:] == b"\x01" for key in list(cursor.iternext_dup())
        )

    def _row(self, tx: Any, key: PageKey, number: int) -> bytes:
        """The page's row of this claim, empty without one."""
        cursor = tx.cursor(db=self._pages)
        prefix = _NUMBER.pack(number)
        if cursor.set_range_dup(key, prefix) and cursor.value().startswith(prefix):
            return bytes(cursor.value())
        return b""

    def _put_row(
        self,
        tx: Any,
        place: tuple[int, int],
        key: PageKey,
        change: Counter[Holder],
        *,
        promised: bool,
    ) -> None:
        before = self._row(tx, key, place[0])
        row = _ROW.pack(*place, promised or before[-1:] == b"\x01")
        if before == row:
            return
        holder = self._promiser(tx, key)
        if before:
            self._delete_row(tx, key, before)
        tx.put(key, row, dupdata=True, db=self._pages)
        tx.put(row[: _PLACE.size], key, dupdata=True, db=self._keys)
        _move(change, holder, self._promiser(tx, key))

    def _drop_row(self, tx: Any, number: int, key: PageKey, change: Counter[Holder]) -> None:
        row = self._row(tx, key, number)
        if row:
            holder = self._promiser(tx, key)
            self._delete_row(tx, key, row)
            _move(change, holder, self._promiser(tx, key))

    def _delete_row(self, tx: Any, key: PageKey, row: bytes) -> None:
        tx.delete(key, row, db=self._pages)
        tx.delete(row[: _PLACE.size], key, db=self._keys)

    def _promiser(self, tx: Any, key: PageKey) -> Holder | None:
        """Under whom the page's promise is counted: the oldest claim that promises it."""
        cursor = tx.cursor(db=self._pages)
        if cursor.set_key(key):
            for value in cursor.iternext_dup():
                if value[-1]:
                    return _holder(self._head(tx, _ROW.unpack(value)[0]), key)
        return None

    def _last_keys(self, tx: Any, number: int, keys_max: int) -> Iterator[tuple[PageKey, int]]:
        """Keys of a claim and their positions, last first."""
        cursor = tx.cursor(db=self._keys)
        positioned = cursor.prev() if cursor.set_range(_NUMBER.pack(number + 1)) else cursor.last()
        for _ in range(keys_max):
            if not positioned or not cursor.key().startswith(_NUMBER.pack(number)):
                return
            yield PageKey(bytes(cursor.value())), _PLACE.unpack(cursor.key())[1]
            positioned = cursor.prev()

    def _drop_if_empty(self, tx: Any, head: _Head) -> None:
        if next(self._last_keys(tx, head.number, 1), None) is None:
            tx.delete(_NUMBER.pack(head.number), db=self._heads)
            tx.delete(head.claim_id, db=self._ids)
            tx.delete(_EXPIRY.pack(head.expires_at_us, head.number), db=self._expiries)

    def _count(self, tx: Any, change: Counter[Holder]) -> None:
        for holder, pages in change.items():
            count = self.promised[holder] + pages
            key = b"".join(holder)
            if count > 0:
                tx.put(key, _U64.pack(count), db=self._promises)
            else:
                tx.delete(key, db=self._promises)

    def _read_promised(self) -> Counter[Holder]:
        with self._env.begin(db=self._promises) as tx:
            return Counter(
                {
                    (bytes(key[:TENANT_BYTES]), bytes(key[TENANT_BYTES:])): _U64.unpack(value)[0]
                    for key, value in tx.cursor()
                }
            )


def _holder(head: _Head, key: PageKey) -> Holder:
    return head.tenant, bytes(key[:FINGERPRINT_DIGEST_BYTES])


def _move(change: Counter[Holder], before: Holder | None, after: Holder | None) -> None:
    if before != after:
        if before is not None:
            change[before] -= 1
        if after is not None:
            change[after] += 1
