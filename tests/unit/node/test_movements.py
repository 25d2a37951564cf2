"""Movements: the last load of a page, after a number."""

from __future__ import annotations

from agentmem.core import PageKey, Tier
from agentmem.node.movements import MovementLog

A, B, C = (PageKey(bytes([n]) * 48) for n in range(3))


def test_only_loads_after_the_number_count_and_the_last_one_wins() -> None:
    log = MovementLog()
    log.note([A, B], Tier.DISK)
    before = log.seq
    log.note([B], Tier.DRAM)
    assert log.since([A, B, C], before) == [None, Tier.DRAM, None]
    assert log.since([A, B, C], 0) == [Tier.DISK, Tier.DRAM, None]


def test_a_restarted_log_goes_on_after_the_numbers_of_the_old_one() -> None:
    old = MovementLog()
    old.note([A], Tier.DISK)
    new = MovementLog()
    new.note([A], Tier.DRAM)
    assert new.since([A], old.seq) == [Tier.DRAM]


def test_the_oldest_movements_are_forgotten() -> None:
    log = MovementLog(movements_max=2)
    log.note([A], Tier.DISK)
    log.note([B], Tier.DISK)
    log.note([A], Tier.DRAM)
    log.note([C], Tier.DISK)
    assert log.since([A, B, C], 0) == [Tier.DRAM, None, Tier.DISK]
