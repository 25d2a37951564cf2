"""An in-memory node agent, and page store of the fake engine: everything but the bytes."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Sequence

from agentmem.core import ClaimTerms, Fingerprint, PageHash, PageKey, Tier
from agentmem.errors import InvalidRequest, NodeUnavailable
from agentmem.pages.keys import keys_of_hashes
from agentmem.sessions.ports import Admitted, Freed, LostPage, NodeStats, PageResidency

_POLL_SECONDS = 0.005


class InMemoryPages:
    """Implements `sessions.ports.Pages` and `engine.fake.PageStore`.

    A page offered is in `dram` at once; one that is claimed, before or after, becomes durable
    (`disk`) after `durable_delay_seconds`. `pages` says when (monotonic clock). Tests set `down`
    to make the agent unreachable, `degraded` to make it ail, `drop` to make it lose what is
    offered next, `has_objects` to give it an object tier.
    """

    def __init__(
        self,
        fingerprint: Fingerprint,
        *,
        page_bytes: int,
        durable_delay_seconds: float = 0.0,
    ) -> None:
        self.fingerprint = fingerprint
        self.page_bytes = page_bytes
        self.durable_delay_seconds = durable_delay_seconds
        self.down = False
        self.degraded: dict[str, str] = {}
        self.losses: list[LostPage] = []
        self.drop = 0
        self.has_objects = False
        self.prefetched: list[list[PageKey]] = []
        self._objects: set[PageKey] = set()
        self.claims: dict[str, set[PageKey]] = {}
        self.terms: dict[str, ClaimTerms] = {}
        self.promise_room: int | None = None
        self._claimants: Counter[PageKey] = Counter()
        self.unclaimed: list[tuple[str, list[PageKey]]] = []
        self.pages: dict[PageKey, float] = {}
        self._loads: list[tuple[PageKey, Tier]] = []

    def offer(self, hashes: Sequence[PageHash]) -> None:
        """See `PageStore.offer`."""
        for key in keys_of_hashes(self.fingerprint, hashes):
            if self.drop > 0:
                self.drop -= 1
            else:
                self.pages.setdefault(key, self._due(key))

    def load(self, hashes: Sequence[PageHash]) -> int:
        """See `PageStore.load`."""
        if self.down:
            return 0
        count = 0
        for key in keys_of_hashes(self.fingerprint, hashes):
            if key not in self.pages:
                break
            tier = Tier.DISK if self._is_durable(key) else Tier.DRAM
            if key in self._objects:
                tier = Tier.OBJECT
            self._loads.append((key, tier))
            count += 1
        return count

    async def claim(
        self,
        claim_id: str,
        keys: Sequence[PageKey],
        expires_at: float,
        *,
        terms: ClaimTerms | None = None,
    ) -> Admitted:
        """See `Pages.claim`; claims here never expire by themselves."""
        self._check()
        assert expires_at > 0, "seconds since the epoch"
        held = self.claims.setdefault(claim_id, set())
        self._claimants.update(set(keys) - held)
        held.update(keys)
        for key in keys:
            if self.pages.get(key) == math.inf:
                self.pages[key] = self._due(key)
        self.terms[claim_id] = terms or ClaimTerms()
        promised = len(keys) if self.promise_room is None else min(len(keys), self.promise_room)
        return Admitted(promised, "" if promised == len(keys) else "capacity")

    async def unclaim(self, claim_id: str, keys: Sequence[PageKey]) -> Freed:
        """See `Pages.unclaim`."""
        self._check()
        self.unclaimed.append((claim_id, list(keys)))
        held = self.claims.get(claim_id, set())
        for key in held.intersection(keys):
            held.discard(key)
            self._claimants[key] -= 1
        if not held:
            self.claims.pop(claim_id, None)
        freed = 0
        for key in keys:
            if not self._claimants[key]:
                del self._claimants[key]
            if key in self.pages and key not in self._claimants:
                del self.pages[key]
                freed += 1
        return Freed(freed, freed * self.page_bytes)

    async def residency(self, keys: Sequence[PageKey]) -> list[PageResidency]:
        """See `Pages.residency`."""
        self._check()
        return [self._residency(key) for key in keys]

    async def copy_page(self, source: PageKey, target: PageKey) -> None:
        """See `Pages.copy_page`."""
        self._check()
        if source not in self.pages:
            raise NodeUnavailable("The node agent refused: no such page.")
        self.pages.setdefault(target, self._due(target))

    async def wait_durable(self, keys: Sequence[PageKey], timeout_seconds: float) -> list[int]:
        """See `Pages.wait_durable`."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            self._check()
            missing = [index for index, key in enumerate(keys) if not self._is_durable(key)]
            if not missing or time.monotonic() >= deadline:
                return missing
            await asyncio.sleep(_POLL_SECONDS)

    def begin_prefetch(self, keys: Sequence[PageKey]) -> None:
        """See `Pages.begin_prefetch`; nothing is ever far away here."""
        self.prefetched.append(list(keys))

    async def demote(self, keys: Sequence[PageKey], timeout_seconds: float) -> list[int]:
        """See `Pages.demote`: durable pages go, where `has_objects`."""
        self._check()
        if not self.has_objects:
            raise InvalidRequest("This deployment has no object tier.", param="tier")
        missing = [index for index, key in enumerate(keys) if not self._is_durable(key)]
        self._objects.update(key for key in keys if self._is_durable(key))
        return missing

    async def sequence(self) -> int:
        """See `Pages.sequence`."""
        self._check()
        return len(self._loads)

    async def loads(self, keys: Sequence[PageKey], since: int) -> dict[Tier, int]:
        """See `Pages.loads`."""
        self._check()
        wanted, counts = set(keys), dict[Tier, int]()
        for key, tier in self._loads[since:]:
            if key in wanted:
                counts[tier] = counts.get(tier, 0) + 1
        return counts

    async def lost(self, after: int) -> list[LostPage]:
        """See `Pages.lost`."""
        self._check()
        return [page for page in self.losses if page.number > after]

    async def stats(self) -> NodeStats:
        """See `Pages.stats`."""
        self._check()
        durable = sum(self._is_durable(key) for key in self.pages)
        return NodeStats(
            {"dram_pages": len(self.pages), "disk_pages": durable},
            {"loaded_dram_pages": len(self._loads)},
            self.degraded,
        )

    async def aclose(self) -> None:
        """See `Pages.aclose`."""

    def _due(self, key: PageKey) -> float:
        claimed = key in self._claimants
        return time.monotonic() + self.durable_delay_seconds if claimed else math.inf

    def _residency(self, key: PageKey) -> PageResidency:
        if key not in self.pages:
            return PageResidency((), durable=False)
        if key in self._objects:
            return PageResidency((Tier.OBJECT,), durable=True)
        durable = self._is_durable(key)
        return PageResidency((Tier.DRAM, Tier.DISK) if durable else (Tier.DRAM,), durable)

    def _is_durable(self, key: PageKey) -> bool:
        due = self.pages.get(key)
        return due is not None and time.monotonic() >= due

    def _check(self) -> None:
        if self.down:
            raise NodeUnavailable("The node agent is down, as the test wants it.")
