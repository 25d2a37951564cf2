"""How the dram budget is shared by engines: pure decisions, on bytes of slabs per owner."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple


class Owner(NamedTuple):
    """An engine's process, as the kernel names it."""

    engine_id: str
    pid: int
    start_ticks: int


def fair_share_bytes(budget_bytes: int, owners: int) -> int:
    """What each of the owners may have while another one lacks slabs."""
    return budget_bytes // max(1, owners)


def may_grow(
    owner: Owner,
    slab_bytes: int,
    sizes: Mapping[Owner, int],
    starved: Collection[Owner],
    budget_bytes: int,
) -> bool:
    """Whether `owner` may have another slab: always, unless that is more than its share while
    others are starved. One slab everyone may have.
    """
    if not set(starved) - {owner}:
        return True
    share = fair_share_bytes(budget_bytes, len({owner, *sizes, *starved}))
    return sizes.get(owner, 0) + slab_bytes <= max(share, slab_bytes)


def donor_for(
    owner: Owner, slab_bytes: int, sizes: Mapping[Owner, int], budget_bytes: int
) -> Owner | None:
    """Who should give a slab back for `owner`, which was refused one; None: nobody.

    It is the one that has most, if `owner` is below its share and the giver does not end up with
    less than `owner` then has: else slabs would go to and fro.
    """
    share = fair_share_bytes(budget_bytes, len({owner, *sizes}))
    mine = sizes.get(owner, 0)
    others = {other: size for other, size in sizes.items() if other != owner}
    if not others or mine >= share:
        return None
    richest = max(others, key=lambda other: others[other])
    return richest if mine + slab_bytes <= others[richest] - slab_bytes else None
