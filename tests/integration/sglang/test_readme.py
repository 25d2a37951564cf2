"""The README's quickstart, to the letter: its `curl` lines run in bash against the real system."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from agentmem.demo.system import Client, System

pytestmark = pytest.mark.sglang

README = Path(__file__).parents[3] / "README.md"


def commands() -> list[str]:
    """The curl commands of the quickstart's bash block, continuation lines included."""
    block = re.search(r"```bash\n(.*?)```", README.read_text(), re.DOTALL)
    assert block, "the README has a bash block"
    joined = block[1].replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.startswith("curl ")]


def run(command: str, **variables: str) -> str:
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", **variables},
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


def test_quickstart(system: System, client: Client) -> None:
    key = client._http.headers["authorization"].removeprefix("Bearer ")
    create, turn, stream, hibernate, resume, residency, fork, delete = commands()
    common = {"KEY": key, "API": system.url}
    session = json.loads(run(create, **common))["id"]
    common["SESSION"] = session
    assert json.loads(run(turn, **common))["message"]["role"] == "assistant"
    events = run(stream, **common)
    assert "event: turn.delta" in events
    assert "event: turn.completed" in events
    assert json.loads(run(hibernate, **common))["state"] == "hibernated"
    assert json.loads(run(resume, **common))["recomputed_tokens"] <= 64
    assert json.loads(run(residency, **common))["durable_pages"] >= 1
    assert json.loads(run(fork, **common))["parent"] == {"session_id": session, "turn": 1}
    assert json.loads(run(delete, **common))["deleted"] is True
