"""`agentmem bench store`: every tier against what the hardware gives, in one run.

A real node agent in a process of its own; this process is the engine: it calls the same transfer as
the plugin inside SGLang. Limits are measured beside the rows, in turns, round by round.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agentmem.bench import store_disk, store_dram, store_engine, store_index, store_object
from agentmem.bench.report import Goal, Row, missing_row, report
from agentmem.bench.store_system import SHAPES, Shape
from agentmem.errors import AgentmemError, InvalidRequest

ROUNDS = 5
_FINDING = ("find_128", "find_2048")
_INDEX = "index_1m"
ROWS = (
    *store_dram.ROWS,
    *store_disk.ROWS,
    *store_object.ROWS,
    *store_engine.ROWS,
    *_FINDING,
    _INDEX,
)


def run_store_bench(
    *,
    rows: Sequence[str] = (),
    rounds: int = ROUNDS,
    page_bytes: str = "both",
    directory: Path | None = None,
    model: str = "",
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measures the given rows (all, if none is given) below `directory`, which decides which disk.
    `model` is what `store_cost` serves; empty: SmolLM2-135M.

    `say` is told what is going on. Raises InvalidRequest for a row or a size that is not known.
    """
    wanted = tuple(rows) or ROWS
    unknown = sorted(set(wanted) - set(ROWS))
    if unknown:
        raise InvalidRequest(f"no such row: {', '.join(unknown)}. There are: {', '.join(ROWS)}")
    made: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="agentmem-bench-", dir=directory) as scratch:
        for part in _parts(Path(scratch), wanted, rounds, _shapes(page_bytes), model):
            for row in part():
                say(f"{row.name}: {'met' if row.met else 'missed'}")
                made.append(row)
    return report(made, rounds=rounds)


def _shapes(page_bytes: str) -> list[Shape]:
    if page_bytes == "both":
        return list(SHAPES.values())
    if page_bytes not in SHAPES:
        raise InvalidRequest(f"pages have {' or '.join(SHAPES)} bytes, not {page_bytes}")
    return [SHAPES[page_bytes]]


def _parts(
    scratch: Path, wanted: Sequence[str], rounds: int, shapes: Sequence[Shape], model: str
) -> list[Callable[[], list[Row]]]:
    """What is to be run, each with an agent of its own; one that fails gives rows saying why."""
    parts: list[Callable[[], list[Row]]] = []
    for shape in shapes:
        for every, run in (
            (store_dram.ROWS, store_dram.run_dram),
            (store_disk.ROWS, store_disk.run_disk),
            (store_object.ROWS, store_object.run_object),
        ):
            goals = {name: goal for name, goal in every.items() if name in wanted}
            if goals:
                parts.append(_part(goals, shape, run, scratch, shape, tuple(goals), rounds))
    goals = {name: goal for name, goal in store_engine.ROWS.items() if name in wanted}
    if goals:
        given = (scratch, tuple(goals), rounds, model)
        parts.append(_part(goals, None, store_engine.run_engine, *given))
    finding = [name for name in _FINDING if name in wanted]
    if finding:
        goals = {
            name: goal
            for name, goal in store_index.FIND_GOALS.items()
            if name.startswith(tuple(finding))
        }
        parts.append(_part(goals, None, store_index.run_find, scratch, finding, rounds))
    if _INDEX in wanted:
        goals = store_index.INDEX_GOALS
        parts.append(_part(goals, None, store_index.run_index, scratch, rounds))
    return parts


def _part(
    goals: dict[str, Goal], shape: Shape | None, run: Callable[..., list[Row]], *arguments: Any
) -> Callable[[], list[Row]]:
    suffix, page_bytes = (shape.suffix, shape.page_bytes) if shape else ("", 0)

    def attempt() -> list[Row]:
        try:
            return run(*arguments)
        except (AgentmemError, OSError, subprocess.SubprocessError) as error:
            return [
                missing_row(f"{name}{suffix}", str(error), goal, page_bytes=page_bytes)
                for name, goal in goals.items()
            ]

    return attempt
