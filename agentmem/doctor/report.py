"""What the doctor found, and how it is told."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

EXIT_HEALTHY = 0
EXIT_FOUND = 1
EXIT_UNCHECKED = 2


class Status(StrEnum):
    """How a check went."""

    OK = "ok"
    NOTE = "note"  # it works, but not as well as it could
    FOUND = "found"  # something was wrong, repaired or not
    FAILED = "failed"  # it could not be checked


@dataclass(frozen=True, slots=True)
class Check:
    """One check. `values` are what was measured; `repairs` say what was done."""

    name: str
    status: Status
    detail: str
    values: dict[str, Any] = field(default_factory=dict)
    repairs: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class BadPage:
    """A page whose record failed its checks. `repaired`: it is quarantined, and will be computed
    again when it is asked for."""

    key: str
    tier: str
    path: str
    offset: int
    why: str
    repaired: bool


@dataclass(slots=True)
class Report:
    """Everything that was checked, in order."""

    checks: list[Check] = field(default_factory=list)
    bad_pages: list[BadPage] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Whether everything was checked and nothing was wrong."""
        return self.exit_code() == EXIT_HEALTHY

    def exit_code(self) -> int:
        """0: healthy; 1: something was found; 2: something could not be checked."""
        statuses = {check.status for check in self.checks}
        if Status.FOUND in statuses or self.bad_pages:
            return EXIT_FOUND
        return EXIT_UNCHECKED if Status.FAILED in statuses else EXIT_HEALTHY

    def as_json(self) -> str:
        """One JSON object."""
        checks = [asdict(check) for check in self.checks]
        bad_pages = [asdict(page) for page in self.bad_pages]
        return json.dumps(
            {"healthy": self.healthy, "checks": checks, "bad_pages": bad_pages}, indent=2
        )

    def as_text(self) -> str:
        """Lines for people."""
        lines = []
        for check in self.checks:
            lines.append(f"{check.status:<7} {check.name:<15} {check.detail}")
            lines += [f"{'':<23} -> {repair}" for repair in check.repairs]
        for page in self.bad_pages:
            done = "quarantined" if page.repaired else "still there"
            lines.append(f"bad page {page.key} in {page.tier}, {done}: {page.why}")
            lines.append(f"         {page.path} at {page.offset}")
        lines.append("healthy" if self.healthy else "not healthy")
        return "\n".join(lines)
