"""What the methods of `client.NodeClient` return, and the checks of what the agent answered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from agentmem.core import Tier
from agentmem.errors import (
    ProtocolError,
)
from agentmem.node.movements import Movement

T = TypeVar("T")


class Granted(NamedTuple):
    """`path` of a new slab; None when `freed_slots` of the engine's slots were emptied instead."""

    path: Path | None
    freed_slots: int


class PageLocation(NamedTuple):
    """Where a held page's record lies; `offset` is that of its header block.

    `secret` opens a sealed record; None for a plain one.
    """

    tier: Tier
    path: str
    offset: int
    payload_bytes: int
    secret: bytes | None = None


class Located(NamedTuple):
    """Locations of the longest prefix found, valid until `release(hold_id, ...)`.

    `more`: the page after it can be had, for a wait.
    """

    hold_id: int
    pages: list[PageLocation]
    more: bool


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


def picked(items: Sequence[T], index: int) -> T:
    """One of the items. Raises ProtocolError for a number that there is none of."""
    if not 0 <= index < len(items):
        raise ProtocolError(f"the agent's reply names number {index} of {len(items)}")
    return items[index]


def check_length(reply: bytes, expected: int) -> None:
    """Raises ProtocolError unless there is one answer for each key."""
    if len(reply) != expected:
        raise ProtocolError(f"the agent answered for {len(reply)} of {expected} keys")
