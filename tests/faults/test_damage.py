"""Flipped bits, swapped records, files cut off: no wrong byte served, all found, all healed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.scenarios import damage_objects_repeatedly, damage_repeatedly


@pytest.mark.parametrize("seed", [1, 2])
def test_damage_is_found_counted_and_healed(tmp_path: Path, seed: int) -> None:
    totals = damage_repeatedly(tmp_path, seed, damages=100)
    assert totals["damages"] >= 100
    assert totals["missing_pages"] >= 40


@pytest.mark.parametrize("seed", [1, 2])
def test_damage_in_an_object_store_is_found_counted_and_healed(tmp_path: Path, seed: int) -> None:
    totals = damage_objects_repeatedly(tmp_path, seed, damages=60)
    assert totals["damages"] >= 60
    assert totals["missing_pages"] >= 30
    assert totals["quarantined_pages"] > 0
