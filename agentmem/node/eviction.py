"""Applies `store.policy` to the tiers: which pages go when a tier needs room."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from agentmem.core import PageKey
from agentmem.pages.record import record_bytes
from agentmem.store.base import NOBODY
from agentmem.store.disk import DiskTier
from agentmem.store.dram import DramTier
from agentmem.store.index import Extent
from agentmem.store.leftovers import Leftover
from agentmem.store.policy import Page, Watermarks, fair_shares, plan_eviction
from agentmem.store.slab import DramCopy, Slab

# Of the pages least recently used, so many are weighed against each other, and at least this many
# times what is wanted: a page is used whenever one that follows it is, so what follows the pages
# looked at is among them.
WINDOW_PAGES = 512
_WINDOW_FACTOR = 4


class Eviction:
    """Chooses among the pages that may go. It removes nothing itself."""

    def __init__(self, dram: DramTier, disk: DiskTier, watermarks: Watermarks | None = None):
        self._dram = dram
        self._disk = disk
        self._watermarks = watermarks or Watermarks()
        disk.evictor.choose = self.choose_leftovers

    def choose_dram(
        self,
        pages_max: int,
        may_go: Callable[[DramCopy], bool],
        slabs: Iterable[Slab] | None = None,
    ) -> list[DramCopy]:
        """Up to `pages_max` dram copies, of these slabs only, that nobody reads and `may_go`."""
        within = None if slabs is None else {slab.name for slab in slabs}
        window: dict[bytes, tuple[Page, DramCopy]] = {}
        wanted = max(WINDOW_PAGES, _WINDOW_FACTOR * pages_max)
        for copy in self._dram.pages():
            if wanted <= 0:
                break
            goes = not copy.holds and may_go(copy)
            goes = goes and (within is None or copy.slab.name in within)
            wanted -= goes
            is_below = copy.key in self._disk
            window[copy.key] = (_page_of(copy, kept=not goes, is_below=is_below), copy)
        used = dict(self._dram.tenant_bytes)
        shares = fair_shares(self._dram.usage().budget_bytes, used)
        # Whose an unclaimed page is shows when its turn ends: until then it is over nobody's share.
        shares.pop(NOBODY.tenant, None)
        victims = plan_eviction(
            [page for page, _ in window.values()],
            self._dram.usage().page_bytes,
            time.monotonic(),
            shares=shares,
            used_bytes=used,
            pages_max=pages_max,
        )
        return [window[page.key][1] for page in victims]

    def choose_leftovers(
        self, pages: Sequence[tuple[Leftover, Extent]], size_bytes: int
    ) -> list[PageKey]:
        """Of disk pages that nothing claims any more, those that go for `size_bytes`."""
        now = time.time()
        weighed = [
            Page(
                page.key,
                record_bytes(extent.payload_bytes),
                page.position,
                page.parent,
                min(now, page.since_us / 1e6),
                page.retention,
                page.tenant,
            )
            for page, extent in pages
        ]
        used: dict[bytes, int] = {}
        for page in weighed:
            used[page.tenant] = used.get(page.tenant, 0) + page.size_bytes
        # What all leave over is shared evenly: who left most over gives first.
        shares = fair_shares(max(0, sum(used.values()) - size_bytes), used)
        victims = plan_eviction(weighed, size_bytes, now, shares=shares)
        return [PageKey(page.key) for page in victims]

    async def relieve_disk(self) -> int:
        """Makes room above the high watermark, before a write has to wait. Returns bytes freed."""
        usage = self._disk.usage()
        surplus = self._watermarks.surplus_bytes(usage.reserved_bytes, usage.budget_bytes)
        if not surplus:
            return 0
        freed = await self._disk.evictor.leftovers(surplus)
        await self._disk.reclaim()
        return freed


def _page_of(copy: DramCopy, *, kept: bool, is_below: bool) -> Page:
    owner = copy.owner
    return Page(
        copy.key,
        copy.payload_bytes,
        owner.position,
        owner.parent,
        copy.used_at,
        owner.retention,
        owner.tenant,
        kept,
        is_below,
    )
