"""`make soak PART=store`: the store's faults in full counts. Exits 0 when every invariant held.

SEED chooses what happens (it is printed), MINUTES ends the run early.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from agentmem.errors import AgentmemError
from tests.faults.engines import kill_engines_repeatedly
from tests.faults.media import fail_repeatedly
from tests.faults.readers import read_while_evicting
from tests.faults.scenarios import (
    damage_objects_repeatedly,
    damage_repeatedly,
    kill_repeatedly,
    kill_while_demoting,
    lose_power_repeatedly,
)

Part = tuple[str, int, Callable[[Path, int], Counter[str]]]

PARTS: tuple[Part, ...] = (
    ("kill -9", 12, lambda path, seed: kill_repeatedly(path, seed, kills=20)),
    ("kill -9 while demoting", 6, lambda path, seed: kill_while_demoting(path, seed, kills=20)),
    ("kill -9 of engines", 2, lambda path, seed: kill_engines_repeatedly(path, seed, kills=20)),
    ("loss of power", 12, lambda path, seed: lose_power_repeatedly(path, seed, losses=10)),
    ("damage", 10, lambda path, seed: damage_repeatedly(path, seed, damages=150)),
    ("damage of objects", 4, lambda path, seed: damage_objects_repeatedly(path, seed, damages=150)),
    ("failing media", 4, lambda path, seed: fail_repeatedly(path, seed, rounds=16)),
    ("readers", 4, lambda path, seed: read_while_evicting(path, seed, engines=8, steps=400)),
)


def main() -> int:
    """Runs all parts. Returns the exit code."""
    logging.getLogger("agentmem").setLevel(logging.CRITICAL)  # agents that die are the point
    first = int(os.environ.get("SEED") or secrets.randbelow(1 << 31))
    deadline = time.monotonic() + 60 * float(os.environ.get("MINUTES") or 10_000)
    print(f"soak of the store: SEED={first}", flush=True)
    failures = skipped = 0
    for name, runs, run in PARTS:
        totals: Counter[str] = Counter()
        begun = time.monotonic()
        for seed in range(first, first + runs):
            if time.monotonic() > deadline:
                skipped += 1
                continue
            with tempfile.TemporaryDirectory(
                prefix="agentmem-soak-", ignore_cleanup_errors=True
            ) as path:
                try:
                    totals += run(Path(path), seed)
                except (AssertionError, AgentmemError, OSError) as error:
                    failures += 1
                    print(f"FAILED {name}, seed {seed}: {error}", flush=True)
        told = ", ".join(f"{count:,} {what.replace('_', ' ')}" for what, count in totals.items())
        print(f"{name}: {told} in {time.monotonic() - begun:.0f} s", flush=True)
    ending = f", {skipped} runs left out for want of time" if skipped else ""
    print(f"{'every invariant held' if not failures else f'{failures} runs failed'}{ending}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
