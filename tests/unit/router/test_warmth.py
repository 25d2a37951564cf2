from __future__ import annotations

from agentmem.core import SessionId
from agentmem.router.warmth import WarmSessions

A, B, C = (SessionId(f"ses_{name}") for name in "abc")


def test_the_longest_unused_are_evicted() -> None:
    warm = WarmSessions(100)
    warm.touch(A, 40)
    warm.touch(B, 40)
    warm.touch(A, 50)
    assert A in warm
    assert B in warm
    warm.touch(C, 30)
    assert B not in warm
    assert A in warm
    assert C in warm


def test_growing_counts_once() -> None:
    warm = WarmSessions(100)
    for tokens in (60, 80, 100):
        warm.touch(A, tokens)
    assert A in warm
    warm.touch(A, 101)
    assert A not in warm
    warm.touch(B, 100)
    assert B in warm


def test_forgetting_makes_room() -> None:
    warm = WarmSessions(100)
    warm.touch(A, 60)
    warm.forget(A)
    warm.forget(A)
    assert A not in warm
    warm.touch(B, 60)
    warm.touch(C, 40)
    assert B in warm
    assert C in warm
