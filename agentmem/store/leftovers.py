"""Pages whose last claim has expired: cache, and the first to go when their tier fills.

    leftovers        page key -> when, position, tenant, retention, page before it
    leftovers_order  when, position counted down, page key -> nothing

LMDB tables beside a page index, used from that index's thread. A page that is claimed
again, or gone, is dropped from here when eviction comes to it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from agentmem.core import PAGE_KEY_BYTES, PageKey
from agentmem.store.claims import RETENTIONS, TENANT_BYTES

TABLES = 2
_POSITION_MAX = 0xFFFFFFFF
_ORDER = struct.Struct(">QI")
_ROW = struct.Struct(f"<QI{TENANT_BYTES}sB{PAGE_KEY_BYTES}s")
_NO_PARENT = bytes(PAGE_KEY_BYTES)


class Leftover(NamedTuple):
    """A page that nothing claims any more; `parent` is the page before it, where that is known."""

    key: PageKey
    parent: PageKey | None
    position: int
    tenant: bytes
    retention: str
    since_us: int


class LeftoverTable:
    """See the module's docstring. Raises lmdb.Error."""

    def __init__(self, env: Any) -> None:
        self._env = env
        self._rows = env.open_db(b"leftovers")
        self._order = env.open_db(b"leftovers_order")

    def add(self, tx: Any, page: Leftover) -> None:
        """Lists a page, once; what is said last counts."""
        self.remove(tx, page.key)
        row = _ROW.pack(
            page.since_us,
            page.position,
            page.tenant,
            RETENTIONS.index(page.retention),
            page.parent or _NO_PARENT,
        )
        tx.put(page.key, row, db=self._rows)
        tx.put(_order(page.since_us, page.position) + page.key, b"", db=self._order)

    def note(self, unclaimed: Iterable[Leftover], claimed: Iterable[PageKey]) -> None:
        """Lists pages that nothing claims, those listed already as they are; unlists others."""
        with self._env.begin(write=True) as tx:
            for page in unclaimed:
                if tx.get(page.key, db=self._rows) is None:
                    self.add(tx, page)
            for key in claimed:
                self.remove(tx, key)

    def pages(self) -> int:
        """How many are listed, those among them that are claimed again or gone included."""
        with self._env.begin() as tx:
            return int(tx.stat(self._rows)["entries"])

    def remove(self, tx: Any, key: PageKey) -> None:
        """The page is gone or claimed again."""
        value = tx.pop(key, db=self._rows)
        if value is not None:
            since_us, position, *_ = _ROW.unpack(value)
            tx.delete(_order(since_us, position) + key, db=self._order)

    def tenant(self, tx: Any, key: PageKey) -> bytes:
        """Whose page it was: zeros for a page that is not listed."""
        value = tx.get(key, db=self._rows)
        return bytes(TENANT_BYTES) if value is None else bytes(_ROW.unpack(value)[2])

    def oldest(self, tx: Any) -> Iterator[Leftover]:
        """All of them, those left over first first, the end of a log before its beginning."""
        for order, _ in tx.cursor(db=self._order):
            key = PageKey(bytes(order[_ORDER.size :]))
            since_us, position, tenant, retention, parent = _ROW.unpack(tx.get(key, db=self._rows))
            known = None if parent == _NO_PARENT else PageKey(parent)
            yield Leftover(key, known, position, tenant, RETENTIONS[retention], since_us)


def _order(since_us: int, position: int) -> bytes:
    return _ORDER.pack(since_us, _POSITION_MAX - position)
