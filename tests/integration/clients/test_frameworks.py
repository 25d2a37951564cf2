"""openai-agents and langchain-openai against a running gateway."""

from __future__ import annotations

from pathlib import Path

import pytest

from .programs import CLIENTS, run_checks
from .served import ServedGateway

FILES = [
    str(path.relative_to(CLIENTS))
    for folder in ("openai_agents", "langchain")
    for path in sorted((CLIENTS / folder).glob("check_*.py"))
]


@pytest.mark.parametrize("file", FILES)
def test_frameworks(served: ServedGateway, tmp_path: Path, file: str) -> None:
    run_checks("clients", [file], served.environment(), tmp_path)
