"""What is promised, to whom, and what became of it: admission of claims, losses, use by tenant."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from functools import partial

import lmdb

from agentmem.core import FINGERPRINT_DIGEST_BYTES, ClaimTerms, PageKey
from agentmem.node.ownership import Ownership
from agentmem.node.promise_messages import TenantUse
from agentmem.node.protocol import DURABLE_BIT
from agentmem.node.writebehind import WriteBehind
from agentmem.pages.record import record_bytes
from agentmem.store.claims import Holder
from agentmem.store.disk import DiskTier
from agentmem.store.dram import DramTier
from agentmem.store.index import PageIndex
from agentmem.store.losses import Loss, Why
from agentmem.store.policy import Admission, admit

logger = logging.getLogger(__name__)

# The rest of the disk tier is for cache, and for what is written before what is deleted is gone.
PROMISED_SHARE = 0.9
_SWEEP_KEYS = 4096
_SCAN_PAGES = 4096
_RETRY_SECONDS = 1.0


class Promises:
    """Answers claims against the capacity, and keeps the record of promises that were broken.

    `capacity_bytes` bounds what is promised in all, `tenant_quota_bytes` (0: nothing) what is
    promised to one tenant; a claim may bring a smaller quota of its tenant.
    """

    def __init__(
        self,
        dram: DramTier,
        disk: DiskTier,
        ownership: Ownership,
        *,
        write_behind: WriteBehind | None = None,
        tenant_quota_bytes: int = 0,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.capacity_bytes = int(PROMISED_SHARE * disk.usage().budget_bytes)
        self.tenant_quota_bytes = tenant_quota_bytes
        self._dram = dram
        self._disk = disk
        self._ownership = ownership
        self._record_bytes: dict[bytes, int] = {}  # by fingerprint digest
        self._promised: Counter[Holder] = Counter()
        self._lost: list[tuple[Why, list[PageKey]]] = []
        self._lost_some = asyncio.Event()
        self._recording = asyncio.Lock()
        ownership.on_lost = self.note_lost
        if write_behind is not None:
            write_behind.on_lost = self.note_lost

    async def open(self) -> None:
        """Reads what is promised. Raises lmdb.Error."""
        sizes = await self._disk.in_index(lambda index, _: index.payload_bytes_by_fingerprint())
        self._record_bytes = {digest: record_bytes(size) for digest, size in sizes.items()}
        await self._take_stock()

    @property
    def promised_bytes(self) -> int:
        """What all promised pages take of the disk, those not stored yet included."""
        return self._bytes_of(self._promised)

    async def claim(
        self, claim_id: bytes, keys: Sequence[PageKey], expires_at: float, terms: ClaimTerms
    ) -> Admission:
        """Registers a claim, and promises as much of it as there is room for. Raises lmdb.Error.

        The pages that are not promised are kept as cache: written when nothing promised waits, and
        the first to be evicted.
        """
        self._note_sizes(keys)
        reasons: list[str] = []

        def decide(holder: Holder, pages: int, promised: Counter[Holder]) -> int:
            # In the index thread; reads only what the loop replaces as a whole.
            admission = self._admit(holder, pages, promised, terms.quota_bytes)
            if admission.reason:
                reasons.append(admission.reason)
            return admission.pages

        promised = await self._disk.claim(claim_id, keys, expires_at, terms, decide)
        await self._take_stock()
        if promised == len(keys):
            return Admission(promised)
        reason = reasons[0] if reasons else "gap"
        self.counters[f"promises_refused_{reason}"] += 1
        return Admission(promised, reason)

    def note_lost(self, keys: Sequence[PageKey], why: Why) -> None:
        """These pages are gone from a tier: where they were promised and no tier has them, it is a
        breach. Recorded by `run`."""
        missing = self._ownership.missing(keys)
        gone = [key for key, is_missing in zip(keys, missing, strict=True) if is_missing]
        if gone:
            self._lost.append((why, gone))
            self._lost_some.set()

    async def run(self) -> None:
        """Records losses until cancelled."""
        while True:
            await self._lost_some.wait()
            try:
                await self.record_lost()
            except lmdb.Error:
                logger.exception("losses could not be recorded; it is tried again")
                await asyncio.sleep(_RETRY_SECONDS)

    async def record_lost(self) -> None:
        """Records what was lost up to now. Raises lmdb.Error, and keeps it, when it cannot."""
        async with self._recording:  # none twice
            while self._lost:
                why, keys = self._lost[0]
                added = await self._disk.in_index(partial(_add, keys, why))
                self._lost.pop(0)
                self.counters[f"breaches_{why}"] += added
                if added:
                    logger.error("%d promised pages are gone: %s", added, why)
            self._lost_some.clear()

    async def sweep(self) -> None:
        """Notes which lost pages are durable again, and which nobody wants any more."""
        keys = await self._disk.in_index(lambda index, _: list(index.losses.open_keys))
        for start in range(0, len(keys), _SWEEP_KEYS):
            chunk = keys[start : start + _SWEEP_KEYS]
            flags = self._ownership.residency(chunk)
            back = [key for key, bits in zip(chunk, flags, strict=True) if bits & DURABLE_BIT]
            claimed = await self._disk.claims(chunk)
            given_up = [key for key in chunk if key not in claimed and key not in back]
            for some, is_back in ((back, True), (given_up, False)):
                if some:
                    await self._disk.in_index(partial(_close, some, is_back))
            self.counters["losses_back"] += len(back)
        await self._take_stock()

    async def losses(self, after: int, limit: int, *, gone: bool) -> list[Loss]:
        """Breaches with a higher number, oldest first; `gone`: those whose page is not back."""
        return await self._disk.in_index(
            lambda index, _: index.losses.after(after, limit, gone=gone)
        )

    async def tenants(self, limit: int) -> list[TenantUse]:
        """The tenants that have most, by promised and stored bytes. Looks at every page."""
        promised: dict[bytes, Counter[Holder]] = {}
        for holder, pages in self._promised.items():
            promised.setdefault(holder[0], Counter())[holder] = pages
        disk: dict[bytes, list[int]] = {}
        after = b""
        while True:
            chunk, after = await self._disk.in_index(partial(_tenants_after, after))
            for tenant, (pages, page_bytes) in chunk.items():
                use = disk.setdefault(tenant, [0, 0])
                use[0] += pages
                use[1] += page_bytes
            if not after:
                break
        dram_pages, dram_bytes = self._dram.tenant_pages, self._dram.tenant_bytes
        uses = [
            TenantUse(
                tenant,
                promised.get(tenant, Counter()).total(),
                self._bytes_of(promised.get(tenant, Counter())),
                dram_pages[tenant],
                dram_bytes[tenant],
                *disk.get(tenant, (0, 0)),
            )
            for tenant in {*promised, *disk, *dram_pages}
        ]
        uses = [use for use in uses if any(use[1:])]
        uses.sort(key=lambda use: (-use.promised_bytes - use.disk_page_bytes, use.tenant))
        return uses[:limit]

    def stats(self) -> dict[str, int]:
        """Gauges."""
        return {
            "promised_pages": self._promised.total(),
            "promised_bytes": self.promised_bytes,
            "promised_capacity_bytes": self.capacity_bytes,
        }

    def _admit(
        self, holder: Holder, pages: int, promised: Counter[Holder], quota_bytes: int | None
    ) -> Admission:
        tenant = {other: n for other, n in promised.items() if other[0] == holder[0]}
        return admit(
            pages,
            self._record_bytes.get(holder[1], 0),
            promised_bytes=self._bytes_of(promised),
            capacity_bytes=self.capacity_bytes,
            tenant_promised_bytes=self._bytes_of(Counter(tenant)),
            tenant_quota_bytes=self._quota(quota_bytes),
        )

    def _quota(self, plans_bytes: int | None) -> int | None:
        """The smaller of what the tenant's plan and what this node allows; None: neither does."""
        quotas = [self.tenant_quota_bytes or None, plans_bytes]
        return min((one for one in quotas if one is not None), default=None)

    def _bytes_of(self, promised: Counter[Holder]) -> int:
        sizes = self._record_bytes
        return sum(pages * sizes.get(digest, 0) for (_, digest), pages in promised.items())

    def _note_sizes(self, keys: Sequence[PageKey]) -> None:
        """All pages of one fingerprint have one size; it is learned from the first one stored."""
        for key in keys:
            digest = bytes(key[:FINGERPRINT_DIGEST_BYTES])
            if digest not in self._record_bytes:
                copy = self._ownership.best_copy(key)
                if copy is not None:
                    size = record_bytes(copy.payload_bytes)
                    self._record_bytes = {**self._record_bytes, digest: size}

    async def _take_stock(self) -> None:
        self._promised = await self._disk.in_index(lambda index, _: +index.claims.promised)


def _add(keys: Sequence[PageKey], why: Why, index: PageIndex, now_us: int) -> int:
    return index.losses.add(keys, why, now_us)


def _close(keys: Sequence[PageKey], back: bool, index: PageIndex, now_us: int) -> int:
    return index.losses.close(keys, now_us, back=back)


def _tenants_after(
    after: bytes, index: PageIndex, _now_us: int
) -> tuple[dict[bytes, tuple[int, int]], bytes]:
    return index.tenants_after(after, _SCAN_PAGES)
