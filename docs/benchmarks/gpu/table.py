"""Prints the table of a run from its raw output: `python table.py [DIRECTORY]`."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

from resume import recompute_on_paper

HERE = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
ARMS = (
    ("recompute", "ours", "recompute"),
    ("HBM", "ours", "hbm"),
    ("SGLang's host pool", "stock", "host_pool"),
    ("agentmem dram, after a flush", "ours", "dram"),
    ("agentmem disk, page cache dropped", "ours", "disk"),
    ("SGLang `file`, page cache warm", "stock", "file_warm"),
    ("SGLang `file`, page cache dropped", "stock", "file"),
)
SIZES = (8192, 32768, 100_000)


def seconds(part: str, arm: str, tokens: int) -> list[float]:
    """Of the requests to which every full page came back."""
    entries = json.loads((HERE / f"{part}.json").read_text())["entries"]
    wanted = [entry for entry in entries if entry["arm"] == arm and entry["tokens"] == tokens]
    whole = (tokens - 1) // 64 * 64
    return [
        entry["seconds"]
        for entry in wanted
        if arm == "recompute" or sum(entry["cached"].values()) == whole
    ]


def main() -> None:
    """A row per arm."""
    print("| time to first token, s | " + " | ".join(f"{n:,}" for n in SIZES) + " |")
    print("|---|" + "---|" * len(SIZES))
    for name, part, arm in ARMS:
        cells = []
        for tokens in SIZES:
            values = seconds(part, arm, tokens)
            if not values:
                cells.append("-")
                continue
            middle = statistics.median(values)
            against = middle / seconds("ours", "recompute", tokens)[0]
            paper = middle / recompute_on_paper(tokens)
            spread = f"{min(values):.3f}-{max(values):.3f}" if len(values) > 1 else "one"
            cells.append(f"{middle:.3f} ({spread}); {against:.2f}, {paper:.2f}")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
