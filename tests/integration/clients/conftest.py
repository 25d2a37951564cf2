"""One gateway on the fake engine for all clients."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .served import ServedGateway, served_gateway

PAGE_TOKENS = 16


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedGateway]:
    folder = tmp_path_factory.mktemp("served")
    with served_gateway(folder, page_tokens=PAGE_TOKENS, request_seconds_max=10.0) as gateway:
        yield gateway
    assert gateway.alarms() == []


@pytest.fixture(scope="session")
def parameters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gateway's tables of parameters as JSON."""
    path = tmp_path_factory.mktemp("parameters") / "parameters.json"
    with path.open("w") as file:
        subprocess.run([sys.executable, "-m", "agentmem.api.parameters"], stdout=file, check=True)
    return path
