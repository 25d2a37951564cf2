"""The queue of pages to be written."""

from __future__ import annotations

import pytest

from agentmem.node.writequeue import WriteQueue
from tests.unit.store.records import key_of


def drained(queue: WriteQueue) -> list[tuple[object, int]]:
    return [queue.pop() for _ in range(len(queue))]


def test_ranks_then_age() -> None:
    queue = WriteQueue()
    for number, rank in ((0, 2), (1, 1), (2, 2), (3, 1)):
        queue.put(key_of(number), number, rank)
    queue.put(key_of(4), 4, 2, first=True)
    assert queue.oldest_ns() == 1
    assert [since for _, since in drained(queue)] == [1, 3, 4, 0, 2]
    assert queue.oldest_ns() is None
    with pytest.raises(IndexError):
        queue.pop()


def test_a_page_is_in_it_once_and_keeps_its_age_when_it_moves() -> None:
    queue = WriteQueue()
    queue.put(key_of(0), 5, 1)
    queue.put(key_of(1), 6, 1)
    queue.put(key_of(0), 5, 3)
    queue.move(key_of(0), 0)
    queue.move(key_of(7), 0)  # not in it: nothing happens
    assert len(queue) == 2
    assert key_of(7) not in queue
    queue.drop(key_of(1))
    assert drained(queue) == [(key_of(0), 5)]
