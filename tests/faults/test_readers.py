"""Engines that read while everything is evicted and compacted around them."""

from __future__ import annotations

from pathlib import Path

from tests.faults.readers import read_while_evicting


def test_no_page_that_is_read_is_reused(tmp_path: Path) -> None:
    totals = read_while_evicting(tmp_path, 1, engines=4, steps=120)
    for what in ("loaded_pages", "held_pages", "evicted_dram_pages", "evicted_disk_pages"):
        assert totals[what] > 0, totals
