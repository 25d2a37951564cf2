from __future__ import annotations

import pytest

from agentmem.core import WorkerId
from agentmem.router.placement import choose_worker, is_ready
from tests.unit.catalog.conftest import make_worker

A, B, C = (make_worker(id=WorkerId(name)) for name in "abc")


class TestChoose:
    def test_the_last_one_if_it_is_ready(self) -> None:
        assert choose_worker([A, B], last=B.id, running={B.id: 9}) == B

    def test_else_the_least_loaded(self) -> None:
        assert choose_worker([A, B, C], last=None, running={A.id: 2, B.id: 1, C.id: 3}) == B
        assert choose_worker([A, B], last=C.id, running={A.id: 1}) == B

    def test_equals_by_id_whatever_their_order(self) -> None:
        assert choose_worker([C, B, A], last=None, running={}) == A

    def test_none(self) -> None:
        assert choose_worker([], last=A.id, running={}) is None


@pytest.mark.parametrize("state", ["starting", "draining", "dead"])
def test_only_ready_is_ready(state: str) -> None:
    worker = make_worker(state=state, heartbeat_at=1_000_000)
    assert not is_ready(worker, now_us=1_000_000, silence_seconds_max=10)


def test_silence() -> None:
    worker = make_worker(heartbeat_at=1_000_000)
    assert is_ready(worker, now_us=11_000_000, silence_seconds_max=10)
    assert not is_ready(worker, now_us=11_000_001, silence_seconds_max=10)
