"""A gateway that is killed: what it answered is still there, and conversations go on."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from .programs import CLIENTS, program_environment, python_of
from .served import ServedGateway, served_gateway


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[ServedGateway]:
    """A gateway of its own, to be killed."""
    with served_gateway(tmp_path / "mortal", page_tokens=16) as gateway:
        yield gateway


def client(gateway: ServedGateway) -> httpx2.Client:
    headers = {"authorization": f"Bearer {gateway.key}"}
    return httpx2.Client(base_url=gateway.url, headers=headers, timeout=30.0, trust_env=False)


def events(http: httpx2.Client, method: str, path: str, body: object = None) -> list[str]:
    """The events of a stream as they came, byte for byte."""
    response = http.request(method, path, json=body)
    assert response.status_code == 200, response.text
    return [block for block in response.text.split("\n\n") if block]


@pytest.mark.parametrize("said", ["[[reply: Here I am, and there I go.]]", "No script for this."])
def test_a_stream_is_taken_up_where_it_broke_off(mortal: ServedGateway, said: str) -> None:
    body = {"model": "fake", "input": said, "stream": True, "max_output_tokens": 60}
    with client(mortal) as http:
        whole = events(http, "POST", "/v1/responses", body)
    response_id = json.loads(whole[0].split("data: ")[1])["response"]["id"]
    mortal.kill()
    mortal.start()
    with client(mortal) as http:
        for after in (0, 4, len(whole) - 3):
            path = f"/v1/responses/{response_id}?stream=true&starting_after={after}"
            assert events(http, "GET", path) == whole[after + 1 :]


@pytest.mark.parametrize("how", ["chat", "previous_response_id", "conversation"])
def test_conversations_go_on(mortal: ServedGateway, tmp_path: Path, how: str) -> None:
    """The fake engine's pages die with it; the log does not."""

    def run() -> list[list[int]]:
        program = CLIENTS / "openai_python" / "six_turns.py"
        done = subprocess.run(
            [str(python_of("clients")), str(program), how, "3", str(tmp_path / "state.json")],
            env=program_environment(mortal.environment()),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr[-3_000:]
        found: list[list[int]] = json.loads(done.stdout)
        return found

    first = run()
    mortal.kill()
    mortal.start()
    second = run()
    totals = [total for _, _, total in (*first, *second)]
    assert totals == sorted(totals)
    assert second[0][0] > first[-1][2], "all that was said is in the next prompt"
    with client(mortal) as http:
        (session,) = http.get("/v1/sessions").json()["data"]
    assert session["turns"] == 6
    assert session["rebases"] == 0
