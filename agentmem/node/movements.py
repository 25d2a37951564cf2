"""What moved where: a numbered feed for operators, and each page's last load for attribution."""

from __future__ import annotations

import itertools
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from agentmem.core import PageKey, Tier

LOADS_MAX = 262_144
MOVEMENTS_MAX = 65_536


class Movement(NamedTuple):
    """One page's step from a place to another; None is outside of all tiers.

    (None, dram) is a store, (disk, hbm) a load, (dram, disk) a copy that became durable,
    (dram, None) one that was dropped. `at_us` is microseconds since the epoch.
    """

    seq: int
    key: PageKey
    source: Tier | None
    target: Tier | None
    payload_bytes: int
    at_us: int


class MovementLog:
    """The newest movements and the last load of each page, numbered by one sequence.

    Both are bounded: the oldest are forgotten, and a reader of the feed that fell so far behind is
    told.
    """

    def __init__(self, movements_max: int = MOVEMENTS_MAX, loads_max: int = LOADS_MAX) -> None:
        # From the clock, so that a number taken before a restart of the agent stays comparable.
        self.seq = time.time_ns() // 1000
        self._loads_max = loads_max
        self._loads: OrderedDict[PageKey, tuple[int, Tier]] = OrderedDict()
        self._moves: deque[Movement] = deque(maxlen=movements_max)

    def record(
        self, key: PageKey, source: Tier | None, target: Tier | None, payload_bytes: int
    ) -> None:
        """A page moved, or a copy of it was made or dropped."""
        self.seq += 1
        at_us = time.time_ns() // 1000
        self._moves.append(Movement(self.seq, key, source, target, payload_bytes, at_us))

    def loaded(self, key: PageKey, tier: Tier, payload_bytes: int) -> None:
        """An engine read this page from `tier`."""
        self.record(key, tier, Tier.HBM, payload_bytes)
        self._loads[key] = (self.seq, tier)
        self._loads.move_to_end(key)
        if len(self._loads) > self._loads_max:
            self._loads.popitem(last=False)

    def loaded_since(self, keys: Sequence[PageKey], seq: int) -> list[Tier | None]:
        """Per key the tier of its last load, None when that is not after `seq`."""
        found = (self._loads.get(key) for key in keys)
        return [entry[1] if entry and entry[0] > seq else None for entry in found]

    def since(self, seq: int, limit: int) -> tuple[list[Movement], bool]:
        """Up to `limit` movements after `seq`, oldest first; and whether others that came after
        `seq` are not known any more, or were of an earlier run of the agent."""
        first = self._moves[0].seq if self._moves else self.seq + 1
        start = max(0, seq + 1 - first)
        moves: Iterable[Movement] = itertools.islice(self._moves, start, start + limit)
        return list(moves), seq + 1 < first
