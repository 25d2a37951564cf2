"""The order in which pages are written: by rank, and the oldest first in each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from agentmem.core import PageKey


class WriteQueue:
    """Pages that wait to be written. A page is in it once; lower ranks come first.

    Times are nanoseconds since the epoch.
    """

    def __init__(self) -> None:
        self._ranks: dict[PageKey, int] = {}
        self._queues: dict[int, OrderedDict[PageKey, int]] = {}

    def __len__(self) -> int:
        return len(self._ranks)

    def __contains__(self, key: PageKey) -> bool:
        return key in self._ranks

    def put(self, key: PageKey, since_ns: int, rank: int, *, first: bool = False) -> None:
        """Adds a page at the end of its rank, or at its beginning."""
        self.drop(key)
        self._ranks[key] = rank
        queue = self._queues.setdefault(rank, OrderedDict())
        queue[key] = since_ns
        if first:
            queue.move_to_end(key, last=False)

    def move(self, key: PageKey, rank: int) -> None:
        """Gives a page that waits another rank, at the end of it."""
        before = self._ranks.get(key)
        if before is not None and before != rank:
            self.put(key, self._queues[before][key], rank)

    def drop(self, key: PageKey) -> None:
        """Takes a page out, if it is in."""
        rank = self._ranks.pop(key, None)
        if rank is not None:
            queue = self._queues[rank]
            del queue[key]
            if not queue:
                del self._queues[rank]

    def pop(self) -> tuple[PageKey, int]:
        """Takes the first page out. Raises IndexError when there is none."""
        for queue in self._in_order():
            key, since_ns = next(iter(queue.items()))
            self.drop(key)
            return key, since_ns
        raise IndexError("no page waits")

    def oldest_ns(self) -> int | None:
        """Since when the first of each rank has waited, the earliest of them; None without any."""
        return min((next(iter(queue.values())) for queue in self._queues.values()), default=None)

    def _in_order(self) -> Iterator[OrderedDict[PageKey, int]]:
        for rank in sorted(self._queues):
            yield self._queues[rank]
