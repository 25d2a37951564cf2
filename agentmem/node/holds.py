"""Read holds: while one lasts, the bytes of its pages stay where its reader was told they are."""

from __future__ import annotations

from dataclasses import dataclass, field

from agentmem.core import PageKey, Tier
from agentmem.store.copies import DiskCopy
from agentmem.store.disk import DiskTier
from agentmem.store.dram import DramTier
from agentmem.store.slab import DramCopy

Copy = DramCopy | DiskCopy


@dataclass(slots=True, eq=False)
class Hold:
    """Pages held for one reader, in the order of its keys."""

    hold_id: int
    copies: list[Copy] = field(default_factory=list)

    def keys(self) -> list[PageKey]:
        """Keys of the held pages."""
        return [copy.key for copy in self.copies]


class HoldTable:
    """All read holds of all connections."""

    def __init__(self, dram: DramTier, disk: DiskTier) -> None:
        self._dram = dram
        self._disk = disk
        self._holds: dict[int, Hold] = {}
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._holds)

    def take(self, copies: list[Copy]) -> Hold:
        """Holds these copies until `end`."""
        self._last_id += 1
        hold = Hold(self._last_id, copies)
        self._holds[hold.hold_id] = hold
        for copy in reversed(copies):  # of one log, the beginning is used last of all
            if isinstance(copy, DramCopy):
                self._dram.hold(copy)
            else:
                self._disk.hold(copy)
        return hold

    def get(self, hold_id: int) -> Hold | None:
        """The hold, None when it has ended."""
        return self._holds.get(hold_id)

    def end(self, hold_id: int) -> None:
        """Ends a hold; pages deleted meanwhile are destroyed now. An ended one is let pass."""
        hold = self._holds.pop(hold_id, None)
        if hold is None:
            return
        for copy in hold.copies:
            if isinstance(copy, DramCopy):
                self._dram.unhold(copy)
            else:
                self._disk.unhold(copy)


def tier_of(copy: Copy) -> Tier:
    """The tier that a copy lies in."""
    return Tier.DRAM if isinstance(copy, DramCopy) else Tier.DISK
