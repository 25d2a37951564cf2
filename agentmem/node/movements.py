"""Which tier pages were last loaded from: what the gateway attributes cached tokens with."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from agentmem.core import PageKey, Tier

MOVEMENTS_MAX = 262_144


class MovementLog:
    """The last load of each page, numbered by one sequence. The oldest are forgotten."""

    def __init__(self, movements_max: int = MOVEMENTS_MAX) -> None:
        # From the clock, so that a number taken before a restart of the agent stays comparable.
        self.seq = time.time_ns() // 1000
        self._movements_max = movements_max
        self._last: OrderedDict[PageKey, tuple[int, Tier]] = OrderedDict()

    def note(self, keys: Iterable[PageKey], tier: Tier) -> None:
        """These pages were read from `tier`, under the next number."""
        self.seq += 1
        for key in keys:
            self._last[key] = (self.seq, tier)
            self._last.move_to_end(key)
        while len(self._last) > self._movements_max:
            self._last.popitem(last=False)

    def since(self, keys: Sequence[PageKey], seq: int) -> list[Tier | None]:
        """Per key the tier of its last load, None when that is not after `seq`."""
        found = (self._last.get(key) for key in keys)
        return [entry[1] if entry and entry[0] > seq else None for entry in found]
