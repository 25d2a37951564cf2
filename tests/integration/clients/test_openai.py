"""The openai client, newest and 1.x, against a running gateway: tests/clients/openai_python."""

from __future__ import annotations

from pathlib import Path

import pytest

from .programs import CLIENTS, run_checks
from .served import ServedGateway

FILES = sorted(path.name for path in (CLIENTS / "openai_python").glob("check_*.py"))


@pytest.mark.parametrize("environment", ["clients", "openai1"])
@pytest.mark.parametrize("file", FILES)
def test_openai(
    served: ServedGateway, parameters: Path, tmp_path: Path, environment: str, file: str
) -> None:
    given = {**served.environment(), "AGENTMEM_PARAMETERS": str(parameters)}
    run_checks(environment, [f"openai_python/{file}"], given, tmp_path)
