"""Promised pages that are gone from every tier, in LMDB tables beside the page index.

    losses       number   -> page key, tenant, retention, why, when, when it was back, claim id
    losses_open  page key -> number, while the page is not back

Each loss is the breach of a promise, and stays listed when the page has been made again. Those that
are open are what should be stored again. Used from the disk tier's index thread.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, get_args

from agentmem.core import PAGE_KEY_BYTES, PageKey
from agentmem.store.claims import RETENTIONS, TENANT_BYTES, ClaimTable

TABLES = 2
LOSSES_MAX = 262_144
OPEN_MAX = 65_536

Why = Literal["evicted", "quarantined", "lost"]
_WHYS: tuple[Why, ...] = get_args(Why)
_NUMBER = struct.Struct(">Q")
_ROW = struct.Struct(f"<{PAGE_KEY_BYTES}s{TENANT_BYTES}sBBQQ")


class Loss(NamedTuple):
    """A page that was gone before its promised time.

    `why`: evicted (dropped before the disk took it), quarantined (its bytes were wrong), lost (with
    its medium). Times are microseconds since the epoch; `back_us` is 0 while the page is gone.
    """

    number: int
    key: PageKey
    claim_id: bytes
    tenant: bytes
    retention: str
    why: Why
    lost_us: int
    back_us: int


class LossTable:
    """The losses in one LMDB environment; the oldest are forgotten beyond `LOSSES_MAX`.

    `open_keys` are the pages that are not back. Raises lmdb.Error.
    """

    def __init__(self, env: Any, claims: ClaimTable) -> None:
        self._env = env
        self._claims = claims
        self._losses = env.open_db(b"losses")
        self._open = env.open_db(b"losses_open")
        with env.begin(db=self._open) as tx:
            self.open_keys = {PageKey(bytes(key)) for key, _ in tx.cursor()}

    def add(self, keys: Iterable[PageKey], why: Why, now_us: int) -> int:
        """Lists those of the pages that a live claim promises. Returns how many.

        A helper's pages, and those whose claim has expired, are no loss; nor is a page listed twice
        while it is gone.
        """
        added: set[PageKey] = set()
        with self._env.begin(write=True) as tx:
            cursor = tx.cursor(db=self._losses)
            number = _NUMBER.unpack(cursor.key())[0] + 1 if cursor.last() else 1
            for key in keys:
                if tx.get(key, db=self._open) is not None:
                    continue
                promises = [
                    claim
                    for claim in self._claims.of_page_in(tx, key)
                    if claim.promised
                    and claim.expires_at_us > now_us
                    and claim.retention != "scratch"
                ]
                if not promises:
                    continue
                claim = max(promises, key=lambda claim: RETENTIONS.index(claim.retention))
                row = _ROW.pack(
                    key,
                    claim.tenant,
                    RETENTIONS.index(claim.retention),
                    _WHYS.index(why),
                    now_us,
                    0,
                )
                tx.put(_NUMBER.pack(number), row + claim.claim_id, db=self._losses)
                if len(self.open_keys) + len(added) < OPEN_MAX:
                    tx.put(key, _NUMBER.pack(number), db=self._open)
                    added.add(key)
                number += 1
            forgotten = self._forget_oldest(tx)
        self.open_keys = (self.open_keys | added) - forgotten
        return len(added)

    def close(self, keys: Iterable[PageKey], now_us: int, *, back: bool) -> int:
        """These pages are back, or nobody wants them any more. Returns how many were open."""
        closed: set[PageKey] = set()
        with self._env.begin(write=True) as tx:
            for key in keys:
                number = tx.pop(key, db=self._open)
                if number is None:
                    continue
                closed.add(key)
                value = tx.get(number, db=self._losses)
                if back and value is not None:
                    fields = list(_ROW.unpack_from(value))
                    fields[-1] = now_us
                    row = _ROW.pack(*fields) + value[_ROW.size :]
                    tx.put(number, row, db=self._losses)
        self.open_keys -= closed
        return len(closed)

    def after(self, number: int, limit: int, *, gone: bool = False) -> list[Loss]:
        """Up to `limit` losses with a higher number, oldest first; `gone`: those still open."""
        found: list[Loss] = []
        with self._env.begin(db=self._losses) as tx:
            cursor = tx.cursor()
            positioned = cursor.set_range(_NUMBER.pack(number + 1))
            while positioned and len(found) < limit:
                loss = _loss(cursor.key(), cursor.value())
                if not gone or tx.get(loss.key, db=self._open) == cursor.key():
                    found.append(loss)
                positioned = cursor.next()
        return found

    def _forget_oldest(self, tx: Any) -> set[PageKey]:
        """Returns the pages that are not open any more."""
        closed = set()
        cursor = tx.cursor(db=self._losses)
        for _ in range(tx.stat(self._losses)["entries"] - LOSSES_MAX):
            cursor.first()
            key = _loss(cursor.key(), cursor.value()).key
            if tx.get(key, db=self._open) == cursor.key():
                tx.delete(key, db=self._open)
                closed.add(key)
            cursor.delete()
        return closed


def _loss(number: bytes, value: bytes) -> Loss:
    key, tenant, retention, why, lost_us, back_us = _ROW.unpack_from(value)
    return Loss(
        _NUMBER.unpack(number)[0],
        PageKey(key),
        bytes(value[_ROW.size :]),
        tenant,
        RETENTIONS[retention],
        _WHYS[why],
        lost_us,
        back_us,
    )
