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
from typing import Any, NamedTuple

from agentmem import __version__


class Moved(NamedTuple):
    """What moved in a round, and how. 0: does not apply."""

    bytes: int = 0
    threads: int = 0
    block_bytes: int = 0
    page_bytes: int = 0


_NOTHING = Moved()


class Goal(NamedTuple):
    """What a row is to reach: at least `target` where `more` of it is better, at most otherwise."""

    unit: str
    target: float
    more: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `value` is the median over rounds, `spread` the smallest and the largest.

    `limit` is what was measured beside it in the same run, in the same unit; `target` the most
    that what is compared may be; the least, where `more` of it is better. Compared is `ratio`
    (`value` against `limit`, the median over rounds) where there is one, `value` otherwise.
    `bytes`, `threads` and `block_bytes` say what moved, per round, and how; 0: does not apply.
    A row that could not be measured has no value and says `why`. `cached_tokens`: of a prompt, by
    where they came from.
    """

    name: str
    value: float | None
    unit: str
    limit: float | None
    target: float
    spread: tuple[float, float] | None
    detail: str
    more: bool = False
    ratio: float | None = None
    ratio_spread: tuple[float, float] | None = None
    bytes: int = 0
    threads: int = 0
    block_bytes: int = 0
    page_bytes: int = 0
    rounds: int = 0
    why: str = ""
    cached_tokens: dict[str, int] | None = None

    @property
    def met(self) -> bool:
        """Whether the target was reached; never, where nothing could be measured."""
        compared = self.value if self.ratio is None else self.ratio
        if compared is None:
            return False
        return compared >= self.target if self.more else compared <= self.target


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
        rounds=len(rounds),
    )


def ratio_row(
    name: str,
    rounds: Sequence[float],
    limits: Sequence[float],
    goal: Goal,
    *,
    detail: str,
    inverse: bool = False,
    moved: Moved = _NOTHING,
) -> Row:
    """A row whose target is a share of the limit; both were measured in each round.

    `inverse`: the share is limit over value.
    """
    ratios = [
        limit / value if inverse else value / limit
        for value, limit in zip(rounds, limits, strict=True)
    ]
    return Row(
        name,
        statistics.median(rounds),
        goal.unit,
        statistics.median(limits),
        goal.target,
        (min(rounds), max(rounds)),
        detail,
        goal.more,
        ratio=statistics.median(ratios),
        ratio_spread=(min(ratios), max(ratios)),
        rounds=len(rounds),
        **moved._asdict(),
    )


def missing_row(name: str, why: str, goal: Goal, *, page_bytes: int = 0) -> Row:
    """A row that stands for what could not be measured here."""
    return Row(
        name,
        None,
        goal.unit,
        None,
        goal.target,
        None,
        "not measured",
        goal.more,
        why=why,
        page_bytes=page_bytes,
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
    lines = [
        f"{'row':<26}{'value':>12}{'beside it':>12}{'ratio':>8}{'target':>9}  unit",
    ]
    for row in result["results"]:
        lines.append(
            f"{row['name']:<26}{_number(row['value']):>12}{_number(row['limit']):>12}"
            f"{_number(row['ratio'], 2):>8}{_number(row['target'], 2):>9}  {_words(row)}"
        )
    return "\n".join(lines)


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _words(row: dict[str, Any]) -> str:
    if row["value"] is None:
        return f"{row['unit']}, not measured: {row['why']}"
    low, high = row["spread"]
    met = "met" if row["met"] else "missed"
    return f"{row['unit']}, {met}; rounds {low:.3f} to {high:.3f}; {row['detail']}"


def write(result: dict[str, Any], path: Path | None) -> None:
    """Writes the report to `path`, or prints it for people."""
    if path is None:
        print(table(result))
    else:
        path.write_text(json.dumps(result, indent=2) + "\n")
