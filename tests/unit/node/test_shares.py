"""Sharing the dram budget: everyone gets slabs, and slabs do not go to and fro."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from agentmem.node.shares import Owner, donor_for, may_grow

A, B, C = (Owner(name, 1, 1) for name in "abc")


def test_alone_an_engine_may_have_everything() -> None:
    assert may_grow(A, 10, {A: 90}, [], 100)
    assert may_grow(A, 10, {A: 90}, [A], 100)
    assert donor_for(A, 10, {A: 90}, 100) is None


def test_while_another_starves_none_grows_beyond_its_share() -> None:
    assert not may_grow(A, 10, {A: 45, B: 10}, [B], 100)
    assert may_grow(A, 10, {A: 40, B: 10}, [B], 100)
    assert may_grow(B, 10, {A: 90}, [B], 100)
    assert may_grow(B, 60, {A: 90}, [C], 100)  # one slab everyone may have


def test_the_richest_gives() -> None:
    assert donor_for(C, 10, {A: 60, B: 40}, 100) == A
    assert donor_for(C, 10, {A: 60, B: 10, C: 35}, 100) is None  # it has its share


@given(st.integers(2, 40), st.integers(1, 10), st.integers(2, 4))
@settings(max_examples=100)
def test_giving_ends_and_leaves_nobody_far_below_the_others(
    slabs: int, slab_bytes: int, engines: int
) -> None:
    """One engine has all slabs; the others ask by turns."""
    owners = [Owner(str(n), 1, 1) for n in range(engines)]
    budget_bytes = slabs * slab_bytes
    sizes = {owners[0]: budget_bytes}
    moves = 0
    moved = True
    while moved:
        moved = False
        for owner in owners:
            donor = donor_for(owner, slab_bytes, sizes, budget_bytes)
            if donor is not None:
                sizes[donor] -= slab_bytes
                sizes[owner] = sizes.get(owner, 0) + slab_bytes
                moved = True
                moves += 1
        assert moves <= slabs * engines
    held = [sizes.get(owner, 0) // slab_bytes for owner in owners]
    assert max(held) - min(held) <= 1 or min(held) >= slabs // engines
