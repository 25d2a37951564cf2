"""Options that commands share, and how they show times and durations."""

from __future__ import annotations

import datetime
import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from cyclopts import Parameter

from agentmem.config import Settings
from agentmem.errors import InvalidRequest

if TYPE_CHECKING:
    from agentmem.administration.services import Administration

T = TypeVar("T")

DataDir = Annotated[Path | None, Parameter(help="Where everything durable lives.")]

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"([0-9]{1,9})([smhdw]?)\Z")


def settings(**given: Any) -> Settings:
    """Settings with what was given on the command line; None: not given."""
    return Settings(**{name: value for name, value in given.items() if value is not None})


def administer(data_dir: Path | None, work: Callable[[Administration], Awaitable[T]]) -> T:
    """Does `work` on the catalog that the settings name; see `agentmem.administer`."""
    # Not before a command needs it: its imports take a second.
    from agentmem.administer import administer as administer_with

    return administer_with(settings(data_dir=data_dir), work)


def seconds_of(text: str | None, *, param: str) -> int | None:
    """`90`, `90s`, `15m`, `12h`, `30d` or `2w` in seconds. Raises InvalidRequest."""
    if text is None:
        return None
    match = _DURATION.match(text)
    if match is None:
        raise InvalidRequest(
            f"{text!r} is no duration: write 90s, 15m, 12h, 30d or 2w.", param=param
        )
    return int(match[1]) * _UNITS[match[2] or "s"]


def shown_time(at_us: int | None, *, never: str = "-") -> str:
    """A time of the catalog in UTC, to the second."""
    if at_us is None:
        return never
    at = datetime.datetime.fromtimestamp(at_us // 1_000_000, datetime.UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need to be; control characters of names are not printed."""
    cells = [list(header), *([_printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for row in cells:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(padded).rstrip())


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
