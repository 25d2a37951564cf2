"""What must stay and what must go: claims, deletion, quarantine."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from agentmem.core import ClaimTerms, PageKey, Tier
from agentmem.errors import PageCorrupt
from agentmem.node.holds import Copy
from agentmem.node.ownership import Ownership
from agentmem.node.promises import Promises
from agentmem.node.writebehind import WriteBehind
from agentmem.pages.record import verify_record
from agentmem.store.base import PageOwner
from agentmem.store.claims import TENANT_BYTES
from agentmem.store.disk import DiskTier
from agentmem.store.dram import DramTier
from agentmem.store.index import Unclaimed
from agentmem.store.object import ObjectTier
from agentmem.store.policy import Admission
from agentmem.store.slab import DramCopy

logger = logging.getLogger(__name__)

# How long a deleted key is remembered, so that an older record of it, still on its way from an
# engine's spool, is destroyed when it is announced.
DOOMED_SECONDS = 600.0
DOOMED_MAX = 1 << 20
_SCRUB_CHUNK_PAGES = 8


class Retention:
    """Claims and deletion over all tiers."""

    def __init__(
        self,
        *,
        ownership: Ownership,
        dram: DramTier,
        disk: DiskTier,
        write_behind: WriteBehind,
        promises: Promises,
        executor: Executor,
        objects: ObjectTier | None = None,
    ) -> None:
        self._ownership = ownership
        self._write_behind = write_behind
        self._dram = dram
        self._disk = disk
        self._promises = promises
        self._executor = executor
        self._objects = objects
        # Told of pages that are to lie in the object tier only.
        self.on_archived: Callable[[Sequence[PageKey]], None] = lambda keys: None
        # Told of pages before a claim on them is registered, and of those that are deleted.
        self.on_claim: Callable[[Sequence[PageKey]], None] = lambda keys: None
        self.on_deleted: Callable[[Sequence[PageKey]], None] = lambda keys: None
        self._doomed_order: deque[tuple[float, PageKey]] = deque()

    async def open(self) -> None:
        """Finishes deletions that a crash interrupted: to be called after the slabs are read."""
        self._remember_doomed(await self._disk.doomed())
        self._ownership.take_in(list(self._dram.pages()))

    async def claim(
        self,
        claim_id: str,
        keys: Sequence[PageKey],
        expires_at: float,
        terms: ClaimTerms | None = None,
    ) -> Admission:
        """Registers interest in pages, stored already or not, until `expires_at` (epoch).

        Those in dram become durable from now on. Returns how many are promised.
        """
        terms = terms or ClaimTerms()
        admission = Admission(len(keys))
        self.on_claim(keys)
        try:
            admission = await self._promises.claim(claim_id.encode(), keys, expires_at, terms)
            return admission
        finally:
            # Also when the caller went away: the index may have the claim by then.
            self._note_owner(keys, terms, admission.pages)
            if terms.retention == "archive":
                self.on_archived(keys)
            self._write_behind.note_claimed(keys)

    def _note_owner(self, keys: Sequence[PageKey], terms: ClaimTerms, promised: int) -> None:
        """A claim is a use of its pages, and tells what eviction weighs them by."""
        tenant = terms.tenant.ljust(TENANT_BYTES, b"\x00")
        parent: PageKey | None = None
        copies = []
        for count, key in enumerate(keys):
            copy = self._dram.get(key)
            if copy is not None:
                position = terms.start + count
                owner = PageOwner(tenant, terms.retention, position, parent, count < promised)
                self._dram.own(copy, owner)
                copies.append(copy)
            parent = key
        self._dram.touch(copies)

    async def unclaim(self, claim_id: str, keys: Sequence[PageKey]) -> tuple[int, int]:
        """Ends a claim; pages that nothing else claims are deleted from every tier.

        They are invisible and their bytes destroyed on return; where a page is being read its
        bytes go with the last read hold. Returns pages deleted and their payload bytes.
        """
        unclaimed = await self._disk.unclaim(claim_id.encode(), keys)
        sizes = {extent.key: extent.payload_bytes for extent in unclaimed.extents}
        movements = self._ownership.movements
        for key, size in sizes.items():
            movements.record(key, Tier.DISK, None, size)
        self._remember_doomed(dict.fromkeys(unclaimed.keys, unclaimed.sequence))
        self.on_deleted(unclaimed.keys)
        for count, key in enumerate(unclaimed.keys):
            copy = self._dram.get(key)
            if copy is None or copy.sequence > unclaimed.sequence:
                continue  # stored again since
            sizes[key] = copy.payload_bytes
            self._dram.remove(copy)
            movements.record(key, Tier.DRAM, None, copy.payload_bytes)
            if count % _SCRUB_CHUNK_PAGES == 0:
                await asyncio.sleep(0)  # zeroing takes time: let other connections have a turn
        await self._delete_objects(unclaimed, sizes)
        await self._write_behind.batch_ended()  # it holds pages, too
        await self._disk.reclaim()
        self._ownership.counters["deleted_pages"] += len(sizes)
        return len(sizes), sum(sizes.values())

    async def _delete_objects(self, unclaimed: Unclaimed, sizes: dict[PageKey, int]) -> None:
        """Makes pages of the object tier invisible; the sweep rewrites the packs they are in."""
        if self._objects is None:
            return
        for extent in await self._objects.remove(unclaimed.keys, up_to=unclaimed.sequence):
            sizes[extent.key] = extent.payload_bytes
            self._ownership.movements.record(extent.key, Tier.OBJECT, None, extent.payload_bytes)

    async def judge(self, suspects: Sequence[Copy]) -> None:
        """Reads pages that a reader found corrupt, and quarantines those that are.

        The caller holds them. A page that checks here stays: the reader's own memory, or a read
        that failed once, is not the page's fault.
        """
        loop = asyncio.get_running_loop()
        for copy in suspects:
            read = self._ownership.reader(copy)
            fault = await loop.run_in_executor(self._executor, fault_of, read, copy.key)
            if fault is None or copy.gone:
                continue
            logger.error("page is quarantined: %s", fault)
            if isinstance(copy, DramCopy):
                self._ownership.counters["quarantined_dram_pages"] += 1
                self._dram.remove(copy)
            else:
                self._ownership.counters["quarantined_disk_pages"] += 1
                await self._disk.remove([copy.key])
            self._ownership.on_lost([copy.key], "quarantined")

    async def sweep(self) -> None:
        """Forgets what need not be remembered: expired claims, deletions long done."""
        horizon = time.monotonic() - DOOMED_SECONDS
        old = []
        order = self._doomed_order
        while order and (order[0][0] <= horizon or len(order) > DOOMED_MAX):
            old.append(order.popleft()[1])
        if old:
            again = {key for _, key in order}
            old = [key for key in old if key not in again]
            for key in old:
                self._ownership.doomed.pop(key, None)
            await self._disk.forget_doomed(old)
        while await self._disk.prune_claims():
            pass
        await self._promises.sweep()
        await self._ownership.eviction.relieve_disk()

    def _remember_doomed(self, doomed: dict[PageKey, int]) -> None:
        now = time.monotonic()
        self._ownership.doomed.update(doomed)
        self._doomed_order.extend((now, key) for key in doomed)


def fault_of(read: Callable[[], memoryview], key: PageKey) -> str | None:
    """What is wrong with a record, None when it checks. Blocks for as long as reading takes."""
    try:
        verify_record(read(), key)
    except (OSError, PageCorrupt) as error:
        return str(error)
    return None
