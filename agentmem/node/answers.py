"""What the methods of `client.NodeClient` return."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from agentmem.core import Tier
from agentmem.node.movements import Movement


class Granted(NamedTuple):
    """`path` of a new slab; None when `freed_slots` of the engine's slots were emptied instead."""

    path: Path | None
    freed_slots: int


class PageLocation(NamedTuple):
    """Where a held page's record lies; `offset` is that of its header block."""

    tier: Tier
    path: str
    offset: int
    payload_bytes: int


class Located(NamedTuple):
    """Locations of the longest prefix found, valid until `release(hold_id, ...)`."""

    hold_id: int
    pages: list[PageLocation]


class Deleted(NamedTuple):
    """Pages that are gone, and their payload bytes."""

    pages: int
    page_bytes: int


class Residency(NamedTuple):
    """Which tiers hold a page, and whether it survives a restart of the host."""

    tiers: frozenset[Tier]
    durable: bool


class LoadedFrom(NamedTuple):
    """`seq`: number of the newest movement. `tiers`: per key the tier of its last load after the
    number asked for, None when it was not loaded since."""

    seq: int
    tiers: list[Tier | None]


class Moved(NamedTuple):
    """`seq`: number of the newest movement. `missed`: some that are asked for are forgotten."""

    seq: int
    missed: bool
    moves: list[Movement]


class Promised(NamedTuple):
    """How many pages of a claim, from the first on, are promised; why no more are."""

    pages: int
    reason: str


class NodeStats(NamedTuple):
    """Gauges and counters (since the agent's start) by name, and what is degraded, by part."""

    gauges: dict[str, int]
    counters: dict[str, int]
    degraded: dict[str, str]
