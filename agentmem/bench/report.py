"""The one format of all benches: rows with value, unit, limit, target, and whether it was met."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agentmem import __version__


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `value` is the median over rounds, `spread` the smallest and the largest.

    `limit` is what was measured beside it in the same run, in the same unit; `target` the most
    that `value` may be; the least, where `more` of it is better.
    """

    name: str
    value: float
    unit: str
    limit: float
    target: float
    spread: tuple[float, float]
    detail: str
    more: bool = False

    @property
    def met(self) -> bool:
        """Whether the target was reached."""
        return self.value >= self.target if self.more else self.value <= self.target


def row_of(
    name: str,
    rounds: Sequence[float],
    *,
    unit: str,
    limit: float,
    target: float,
    detail: str,
    more: bool = False,
) -> Row:
    """A row from one figure per round."""
    return Row(
        name,
        statistics.median(rounds),
        unit,
        limit,
        target,
        (min(rounds), max(rounds)),
        detail,
        more,
    )


def report(rows: Sequence[Row], *, rounds: int) -> dict[str, Any]:
    """The report as JSON-ready values."""
    return {
        "agentmem": __version__,
        "date": datetime.now(UTC).date().isoformat(),
        "rounds": rounds,
        "machine": machine(),
        "results": [{**asdict(row), "met": row.met} for row in rows],
    }


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def table(result: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"{'row':<22}{'value':>12}{'beside it':>12}{'target':>12}  unit"]
    for row in result["results"]:
        met = "met" if row["met"] else "missed"
        low, high = row["spread"]
        lines.append(
            f"{row['name']:<22}{row['value']:>12.3f}{row['limit']:>12.3f}{row['target']:>12.3f}"
            f"  {row['unit']}, {met}; rounds {low:.3f} to {high:.3f}; {row['detail']}"
        )
    return "\n".join(lines)


def write(result: dict[str, Any], path: Path | None) -> None:
    """Writes the report to `path`, or prints it for people."""
    if path is None:
        print(table(result))
    else:
        path.write_text(json.dumps(result, indent=2) + "\n")
