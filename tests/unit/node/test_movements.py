"""Movements: the feed of all, and the last load of a page, after a number."""

from __future__ import annotations

from agentmem.core import PageKey, Tier
from agentmem.node.movements import MovementLog

A, B, C = (PageKey(bytes([n]) * 48) for n in range(3))


def load(log: MovementLog, *keys: PageKey, tier: Tier) -> None:
    for key in keys:
        log.loaded(key, tier, 100)


def test_only_loads_after_the_number_count_and_the_last_one_wins() -> None:
    log = MovementLog()
    load(log, A, B, tier=Tier.DISK)
    before = log.seq
    load(log, B, tier=Tier.DRAM)
    assert log.loaded_since([A, B, C], before) == [None, Tier.DRAM, None]
    assert log.loaded_since([A, B, C], 0) == [Tier.DISK, Tier.DRAM, None]


def test_a_restarted_log_goes_on_after_the_numbers_of_the_old_one() -> None:
    old = MovementLog()
    load(old, A, tier=Tier.DISK)
    new = MovementLog()
    load(new, A, tier=Tier.DRAM)
    assert new.loaded_since([A], old.seq) == [Tier.DRAM]


def test_the_oldest_movements_are_forgotten() -> None:
    log = MovementLog(loads_max=2)
    load(log, A, tier=Tier.DISK)
    load(log, B, tier=Tier.DISK)
    load(log, A, tier=Tier.DRAM)
    load(log, C, tier=Tier.DISK)
    assert log.loaded_since([A, B, C], 0) == [Tier.DRAM, None, Tier.DISK]


def test_the_feed_tells_what_moved_in_order_and_piece_by_piece() -> None:
    log = MovementLog()
    start = log.seq
    log.record(A, None, Tier.DRAM, 10)
    log.record(A, Tier.DRAM, Tier.DISK, 10)
    log.loaded(A, Tier.DISK, 10)
    log.record(A, Tier.DISK, None, 10)
    first, missed = log.since(start, 3)
    assert not missed
    assert [(m.source, m.target) for m in first] == [
        (None, Tier.DRAM),
        (Tier.DRAM, Tier.DISK),
        (Tier.DISK, Tier.HBM),
    ]
    rest, missed = log.since(first[-1].seq, 3)
    assert [(m.source, m.target, m.seq) for m in rest] == [(Tier.DISK, None, log.seq)]
    assert not missed
    assert log.since(log.seq, 3) == ([], False)


def test_a_reader_that_fell_behind_is_told() -> None:
    log = MovementLog(movements_max=2)
    start = log.seq
    for key in (A, B, C):
        log.record(key, None, Tier.DRAM, 1)
    moves, missed = log.since(start, 10)
    assert (missed, [m.key for m in moves]) == (True, [B, C])
    assert log.since(start + 1, 10)[1] is False


def test_what_an_earlier_agent_moved_is_not_known() -> None:
    before = MovementLog().seq
    log = MovementLog()
    log.record(A, None, Tier.DRAM, 1)
    assert log.since(before, 10)[1] or log.seq == before + 1
    assert log.since(0, 10)[1]
