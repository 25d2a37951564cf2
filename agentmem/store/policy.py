"""What is kept and what goes: pure functions, without I/O and without a clock of their own.

The node agent applies them to its tiers, the simulator to traces. A page can be loaded only when
all pages before it can (its ancestors), so nothing goes while something that follows it stays.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

# Strongest last, as in `store.claims.RETENTIONS`; "" is a page that nothing claims, or not yet: one
# of a turn that still runs.
_WEIGHTS = {
    "": 1.0,
    "scratch": 0.25,
    "ephemeral": 1.0,
    "standard": 2.0,
    "persistent": 4.0,
    "archive": 4.0,
}
_HALF_LIVES_SECONDS = {
    "": 600.0,
    "scratch": 60.0,
    "ephemeral": 900.0,
    "standard": 6 * 3600.0,
    "persistent": 7 * 86_400.0,
    "archive": 30 * 86_400.0,
}


# What bringing a page back from a lower tier is taken to cost, of the seconds to recompute it.
_BELOW_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class PrefillCost:
    """Seconds that an engine computes for a token: `token_seconds`, and `attention_seconds` more
    for every token before it. Only their ratio matters to the order of eviction."""

    page_tokens: int = 64
    token_seconds: float = 3e-5
    attention_seconds: float = 6e-10

    def page_seconds(self, position: int) -> float:
        """To compute the page at `position` (in pages) again, all before it being there."""
        first = position * self.page_tokens
        mean_before = first + (self.page_tokens - 1) / 2
        return self.page_tokens * (self.token_seconds + self.attention_seconds * mean_before)


@dataclass(frozen=True, slots=True)
class Returns:
    """How much a page is worth by its retention class, and how soon it is expected back.

    The expectation halves with each `half_lives_seconds` since the last use. Where
    `learned_seconds` has a tenant, its sessions' median pause replaces the class's default.
    """

    weights: Mapping[str, float] = field(default_factory=lambda: _WEIGHTS)
    half_lives_seconds: Mapping[str, float] = field(default_factory=lambda: _HALF_LIVES_SECONDS)
    learned_seconds: Mapping[bytes, float] = field(default_factory=dict)

    def expectation(self, page: Page, now: float) -> float:
        """Between 0 and 1: how much of its worth the page still has."""
        half_life = self.learned_seconds.get(page.tenant)
        if half_life is None:
            half_life = self.half_lives_seconds[page.retention]
        idle_seconds = max(0.0, now - page.last_used)
        return float(2.0 ** (-min(idle_seconds / half_life, 1000.0)))


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a tier, as eviction sees it.

    `parent` is the page before it, None where that is unknown or there is none; `position` counts
    from 0; `last_used` is in the caller's seconds. What is `kept` (promised, or being read) never
    goes. `is_below`: a lower tier has it, too, so that losing it here costs a load and no prefill.
    """

    key: bytes
    size_bytes: int
    position: int = 0
    parent: bytes | None = None
    last_used: float = 0.0
    retention: str = ""
    tenant: bytes = b""
    kept: bool = False
    is_below: bool = False


class Watermarks(NamedTuple):
    """Shares of a budget: eviction begins above `high` and ends at `low`."""

    high: float = 0.95
    low: float = 0.90

    def surplus_bytes(self, used_bytes: int, budget_bytes: int) -> int:
        """How much must go now; 0 up to the high watermark."""
        if used_bytes <= self.high * budget_bytes:
            return 0
        return used_bytes - int(self.low * budget_bytes)


class Admission(NamedTuple):
    """`pages` are promised; `reason` says why no more are, empty when all are."""

    pages: int
    reason: str = ""


class Waiting(NamedTuple):
    """A page that is to become durable: since when (any clock), under which retention class."""

    key: bytes
    since: float
    retention: str = "standard"
    promised: bool = True


def value_per_byte(page: Page, now: float, cost: PrefillCost, returns: Returns) -> float:
    """Seconds of prefill that keeping a byte of the page is expected to save, weighted by class."""
    seconds = cost.page_seconds(page.position) * (_BELOW_SHARE if page.is_below else 1.0)
    worth = seconds * returns.weights[page.retention]
    return worth * returns.expectation(page, now) / max(1, page.size_bytes)


def fair_shares(
    capacity_bytes: int,
    used_bytes: Mapping[bytes, int],
    weights: Mapping[bytes, float] | None = None,
    quota_bytes: int = 0,
) -> dict[bytes, float]:
    """What each tenant may hold: max-min fair by weight, and never more than its quota (0: none).

    Who uses less than its share leaves the rest to the others.
    """
    weights = weights or {}
    limit = quota_bytes or capacity_bytes
    shares: dict[bytes, float] = {}
    left = float(capacity_bytes)
    open_weight = sum(weights.get(tenant, 1.0) for tenant in used_bytes)
    # By use over weight: the first who wants more than an equal part sets everybody's after it.
    for tenant in sorted(used_bytes, key=lambda t: (used_bytes[t] / weights.get(t, 1.0), t)):
        weight = weights.get(tenant, 1.0)
        part = min(left * weight / open_weight, float(limit))
        left -= min(part, used_bytes[tenant])
        open_weight -= weight
        shares[tenant] = part
    return shares


def plan_eviction(
    pages: Sequence[Page],
    need_bytes: int,
    now: float,
    *,
    cost: PrefillCost | None = None,
    returns: Returns | None = None,
    shares: Mapping[bytes, float] | None = None,
    used_bytes: Mapping[bytes, int] | None = None,
    pages_max: int | None = None,
) -> list[Page]:
    """Which pages go, in that order, until `need_bytes` are free or nothing more may go.

    No more than `pages_max` go.

    Prefix-closed: a page goes only after every page of `pages` that follows it. Tenants above
    their share give first, the one that is most above it (relative to the share) before others;
    then whoever holds the least valuable page. `used_bytes` is what each tenant holds of the tier
    (what `pages` shows of it when not given), against `shares`.
    """
    cost, returns = cost or PrefillCost(), returns or Returns()
    values = {page.key: value_per_byte(page, now, cost, returns) for page in pages}
    plan = _Plan(pages, values, used_bytes, shares or {})
    victims: list[Page] = []
    while need_bytes > 0 and len(victims) != pages_max and (page := plan.next()) is not None:
        victims.append(page)
        need_bytes -= page.size_bytes
    return victims


_Leaf = tuple[float, int, bytes]  # value, position counted down, key: cheapest first


class _Plan:
    """Leaves, cheapest first; a page becomes a leaf when all that follow it are gone.

    Leaves of tenants above their share wait in a heap of their tenant, all others in one heap.
    """

    def __init__(
        self,
        pages: Sequence[Page],
        values: Mapping[bytes, float],
        used_bytes: Mapping[bytes, int] | None,
        shares: Mapping[bytes, float],
    ) -> None:
        self._pages = {page.key: page for page in pages}
        self._values = values
        self._shares = shares
        self._used: dict[bytes, int] = defaultdict(int, used_bytes or {})
        self._followers: dict[bytes, int] = defaultdict(int)
        for page in pages:
            if page.parent is not None and page.parent in self._pages:
                self._followers[page.parent] += 1
            if used_bytes is None:
                self._used[page.tenant] += page.size_bytes
        self._leaves_of: dict[bytes, list[_Leaf]] = defaultdict(list)
        self._leaves: list[_Leaf] = []
        self._over: list[tuple[float, bytes]] = []  # tenants with leaves, most above share first
        for page in pages:
            self._offer(page)

    def next(self) -> Page | None:
        """Takes the page that goes next; None when nothing may go."""
        if self._over:
            _excess, tenant = heapq.heappop(self._over)
            leaves = self._leaves_of[tenant]
            page = self._take(leaves)
            excess = self._excess(tenant)
            if excess <= 0:
                for leaf in self._leaves_of.pop(tenant):
                    heapq.heappush(self._leaves, leaf)
            elif leaves:
                heapq.heappush(self._over, (-excess, tenant))
        elif self._leaves:
            page = self._take(self._leaves)
        else:
            return None
        parent = None if page.parent is None else self._pages.get(page.parent)
        if parent is not None:
            self._followers[parent.key] -= 1
            self._offer(parent)
        return page

    def _take(self, leaves: list[_Leaf]) -> Page:
        page = self._pages[heapq.heappop(leaves)[2]]
        self._used[page.tenant] -= page.size_bytes
        return page

    def _offer(self, page: Page) -> None:
        """Queues the page if it may go now."""
        if page.kept or self._followers[page.key]:
            return
        # Of equal pages the one further back goes first: others may be before it, unknown to us.
        leaf = (self._values[page.key], -page.position, page.key)
        excess = self._excess(page.tenant)
        if excess <= 0:
            heapq.heappush(self._leaves, leaf)
            return
        leaves = self._leaves_of[page.tenant]
        heapq.heappush(leaves, leaf)
        if len(leaves) == 1:
            heapq.heappush(self._over, (-excess, page.tenant))

    def _excess(self, tenant: bytes) -> float:
        share = self._shares.get(tenant)
        return 0.0 if share is None else (self._used[tenant] - share) / max(1.0, share)


def admit(
    pages: int,
    page_bytes: int,
    *,
    promised_bytes: int,
    capacity_bytes: int,
    tenant_promised_bytes: int = 0,
    tenant_quota_bytes: int | None = None,
) -> Admission:
    """How many of `pages` more pages may be promised; a quota of None is none.

    Pages of unknown size (0) are promised: what they take is counted once one of them has come.
    """
    if page_bytes <= 0:
        return Admission(pages)
    room = max(0, capacity_bytes - promised_bytes) // page_bytes
    reason = "capacity"
    if tenant_quota_bytes is not None:
        quota_room = max(0, tenant_quota_bytes - tenant_promised_bytes) // page_bytes
        if quota_room < room:
            room, reason = quota_room, "quota"
    return Admission(pages) if room >= pages else Admission(room, reason)


def write_rank(retention: str, retentions: Sequence[str], *, promised: bool) -> int:
    """Who is written first when pages come faster than the disk takes them: lower ranks.

    Promised pages, those of the strongest class first, then the others in the same order.
    `retentions` are the classes, weakest first; any other name is weaker than all.
    """
    known = retentions.index(retention) if retention in retentions else -1
    weakness = len(retentions) - 1 - known
    return weakness if promised else len(retentions) + 1 + weakness


def write_order(waiting: Iterable[Waiting], retentions: Sequence[str]) -> list[Waiting]:
    """All of them by `write_rank`, the oldest first in each."""

    def place(page: Waiting) -> tuple[int, float]:
        return write_rank(page.retention, retentions, promised=page.promised), page.since

    return sorted(waiting, key=place)
