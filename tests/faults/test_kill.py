"""kill -9 at any instant: what was acknowledged is there, nothing half-written is ever seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.engines import kill_engines_repeatedly
from tests.faults.scenarios import (
    kill_repeatedly,
    kill_while_demoting,
    lose_power_repeatedly,
)


@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_is_lost_to_kills(tmp_path: Path, seed: int) -> None:
    assert kill_repeatedly(tmp_path, seed, kills=12)["kills"] == 12


@pytest.mark.parametrize("seed", [2, 3])
def test_nothing_is_lost_to_kills_on_the_way_to_and_from_an_object_store(
    tmp_path: Path, seed: int
) -> None:
    totals = kill_while_demoting(tmp_path, seed, kills=20)
    assert totals["kills"] == 20
    assert min(totals["demoted_pages"], totals["lapsed_pages"]) > 0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_nothing_synced_is_lost_with_the_power(tmp_path: Path, seed: int) -> None:
    assert lose_power_repeatedly(tmp_path, seed, losses=6)["losses"] == 6


def test_an_engine_that_is_killed_leaves_whole_pages_only(tmp_path: Path) -> None:
    totals = kill_engines_repeatedly(tmp_path, 1, kills=5)
    assert totals["accepted_pages"] > 0
