"""The openai client against `agentmem serve` with the real engine; everything is killed midway."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import httpx2
import pytest

from agentmem.demo.system import Client, System
from tests.integration.clients.programs import (
    CLIENTS,
    ROOT,
    program_environment,
    python_of,
    run_checks,
    run_program,
)

pytestmark = pytest.mark.sglang

SHARE_MIN = 0.9
WAYS = ("chat", "previous_response_id", "conversation")


def environment(system: System, client: Client) -> dict[str, str]:
    key = client._http.headers["authorization"].removeprefix("Bearer ")
    return {"AGENTMEM_URL": system.url, "AGENTMEM_API_KEY": key}


def test_main_paths_of_the_newest_openai(system: System, client: Client, tmp_path: Path) -> None:
    given = environment(system, client)
    run_checks("clients", ["openai_python/check_main_paths.py"], given, tmp_path, "-m", "real")


def test_the_example_runs(system: System, client: Client) -> None:
    given = environment(system, client)
    output = run_program("clients", ROOT / "examples" / "openai_python.py", given)
    assert output.count("from the cache") == 8, output


def turns(given: dict[str, str], how: str, number: int, state: Path) -> list[list[int]]:
    """Runs turns in a process of the client's own; (prompt, cached, total) tokens of each."""
    program = CLIENTS / "openai_python" / "six_turns.py"
    done = subprocess.run(
        [str(python_of("clients")), str(program), how, str(number), str(state)],
        env=program_environment(given),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    found: list[list[int]] = json.loads(done.stdout)
    return found


def durable(client: Client) -> bool:
    """Whether all full pages of the tenant's sessions are safe from what comes now."""
    sessions = client._call("GET", "/v1/sessions")["data"]
    return all(one["durable_position"] >= (one["tokens"] - 1) // 64 * 64 for one in sessions)


def test_six_turns_with_everything_killed_after_the_third(
    system: System, client: Client, tmp_path: Path
) -> None:
    """Nobody asks for durability, and the client sets nothing; in three ways."""
    given = environment(system, client)
    usages = {how: turns(given, how, 3, tmp_path / f"{how}.json") for how in WAYS}
    deadline = time.monotonic() + 20
    while not durable(client):
        assert time.monotonic() < deadline, client._call("GET", "/v1/sessions")
        time.sleep(0.1)
    system.kill_everything()
    system.start()
    for how in WAYS:
        usages[how] += turns(given, how, 3, tmp_path / f"{how}.json")
    for how, found in usages.items():
        assert len(found) == 6
        before = 0
        for number, (prompt, cached, total) in enumerate(found, 1):
            assert prompt > before, (how, number)
            share = cached / before if before else 1.0
            print(f"{how} turn {number}: {prompt} tokens, {cached} of {before} cached")
            assert share >= SHARE_MIN, f"{how}, turn {number}: {cached} of {before}, {found}"
            before = total


def test_one_context_of_four_documents(system: System, client: Client) -> None:
    """Computed once, stored once: sessions that start from it share its pages."""
    documents = [
        {"title": f"Document {number}", "text": f"Part {number}. " + "word " * 150}
        for number in range(4)
    ]
    body = {"documents": documents, "retention": "standard"}
    context = client._call("POST", "/v1/contexts", body)
    assert context["tokens"] > 600
    full = (context["tokens"] - 1) // 64 * 64
    for number in range(4):
        made = client._call(
            "POST",
            "/v1/responses",
            {
                "context": context["id"],
                "input": f"Question {number}?",
                "max_output_tokens": 16,
            },
        )
        assert made["usage"]["input_tokens_details"]["cached_tokens"] >= full
    assert httpx2.get(f"{system.url}/readyz", trust_env=False).status_code == 200
