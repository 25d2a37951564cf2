"""`agentmem serve` and the other commands as a user types them, on the fake engine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from agentmem.config import Settings
from agentmem.loopback import free_port


def agentmem(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "agentmem", *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        agentmem(*arguments), capture_output=True, text=True, check=False, timeout=60
    )


class Served:
    """A running `agentmem serve --engine fake`; `output` collects what it said."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir, self.port = data_dir, free_port()
        self.log = data_dir.with_suffix(".out")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = ["--engine", "fake", "--data-dir", str(self.data_dir), "--port", str(self.port)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(agentmem("serve", *options), stdout=log, stderr=log)
        wait_until(lambda: "agentmem is ready" in self.output(), "ready", self.output)

    def output(self) -> str:
        return self.log.read_text()

    def pids(self) -> dict[str, int]:
        path = Settings(data_dir=self.data_dir).run_dir / "serve.json"
        described = json.loads(path.read_text())
        return {name: pid for name, pid in described.items() if name != "url"}

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path / "data")
    served.start()
    yield served
    served.stop()


def wait_until(condition: Callable[[], bool], what: str, explain: Callable[[], str]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"not within a minute: {what}\n{explain()}"
        time.sleep(0.05)


def test_first_start_shows_a_key_that_works_and_the_second_none(served: Served) -> None:
    keys = re.findall(r"am_\S+", served.output())
    assert len(keys) == 1
    headers = {"authorization": f"Bearer {keys[0]}"}
    url = f"http://127.0.0.1:{served.port}/v1/sessions"
    assert httpx2.post(url, json={}, headers=headers, trust_env=False).status_code == 201
    assert served.stop() == 0
    assert served.output().rstrip().endswith("agentmem: stopped")
    served.start()
    assert "am_" not in served.output()
    assert httpx2.get(url, headers=headers, trust_env=False).json()["data"] != []


def test_a_killed_gateway_is_started_again(served: Served) -> None:
    first = served.pids()["gateway"]
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: served.pids()["gateway"] != first, "another gateway", served.output)
    wait_until(lambda: served.output().count("agentmem is ready") == 2, "ready", served.output)
    assert "gateway: ended with code -9" in served.output()


def test_nothing_outlives_a_killed_supervisor(served: Served) -> None:
    gateway = served.pids()["gateway"]
    assert served.process is not None
    served.process.kill()
    served.process.wait()

    def gone() -> bool:
        status = Path(f"/proc/{gateway}/status")
        return not status.exists() or "State:\tZ" in status.read_text()

    wait_until(gone, "the gateway dies with its supervisor", served.output)


def test_a_port_that_is_taken_is_said_at_once(served: Served, tmp_path: Path) -> None:
    other = ["--data-dir", str(tmp_path / "other"), "--port", str(served.port)]
    done = run("serve", "--engine", "fake", *other)
    assert done.returncode == 1
    assert f"Cannot listen on 127.0.0.1:{served.port}" in done.stderr


def test_tenants_and_keys(tmp_path: Path) -> None:
    data = ["--data-dir", str(tmp_path / "data")]
    early = run("tenant", "create", "acme", *data)
    assert early.returncode == 1
    assert "agentmem migrate" in early.stderr
    assert run("migrate", *data).returncode == 0
    assert run("tenant", "create", "acme", *data).stdout.startswith("ten_")
    assert run("key", "create", "acme", *data).stdout.startswith("am_")
    shown = run("tenant", "list", *data).stdout
    assert "active" in shown
    assert "acme" in shown
    assert run("tenant", "suspend", "acme", *data).stdout.count("suspended") == 1
    assert "is active" in run("tenant", "suspend", "acme", "--undo", *data).stdout
    unknown = run("key", "create", "nobody", *data)
    assert unknown.returncode == 1
    assert "nobody" in unknown.stderr
    assert "Traceback" not in unknown.stderr


def test_keys_and_the_audit_log_of_them(tmp_path: Path) -> None:
    data = ["--data-dir", str(tmp_path / "data")]
    run("migrate", *data)
    run("tenant", "create", "acme", *data)
    assert run("project", "create", "acme", "research", *data).stdout.startswith("prj_")
    assert "research" in run("project", "list", "acme", *data).stdout
    options = ["--name", "ci", "--project", "research", "--scope", "admin", "--expires-in", "2h"]
    made = run("key", "create", "acme", *options, *data).stdout.strip()
    prefix = made.rpartition("_")[0]
    new = run("key", "rotate", "acme", prefix, "--overlap", "0s", *data).stdout.strip()
    assert new.startswith("am_")
    revoked = run("key", "revoke", "acme", new.rpartition("_")[0], *data)
    assert "was revoked at" in revoked.stdout
    listed = run("key", "list", "acme", *data).stdout
    assert [line.split()[2] for line in listed.splitlines()[1:]] == ["expired", "revoked"]
    assert "admin" in listed
    assert made not in listed
    wrong = run("key", "create", "acme", "--expires-in", "soon", *data)
    assert "'soon' is no duration" in wrong.stderr
    acts = run("audit", "list", *data).stdout
    assert [line.split()[3] for line in acts.splitlines()[1:]] == [
        "key.revoke",
        "key.rotate",
        "key.create",
        "project.create",
        "tenant.create",
    ]
    assert made.rpartition("_")[2] not in acts
    whole = run("audit", "verify", *data)
    assert whole.returncode == 0
    assert "5 entries, whole" in whole.stdout
    other = run("audit", "verify", "--expect", "ab" * 32, *data)
    assert other.returncode == 1


def test_operators(tmp_path: Path) -> None:
    data = ["--data-dir", str(tmp_path / "data")]
    run("migrate", *data)
    create = ["operator", "create", "ada@example.com", "--role", "owner", "--password-stdin"]
    made = subprocess.run(
        agentmem(*create, *data),
        input="long enough a password\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.stdout.startswith("opr_"), made.stderr
    run("operator", "create", "bob@example.com", "--role", "viewer", "--oidc", *data)
    run("operator", "set", "bob@example.com", "--role", "billing", "--disabled", *data)
    listed = run("operator", "list", *data).stdout.splitlines()[1:]
    assert [line.split()[1:] for line in listed] == [
        ["owner", "active", "password", "-", "ada@example.com"],
        ["billing", "disabled", "-", "-", "bob@example.com"],
    ]
    token = run("operator", "token", "ada@example.com", "--expires-in", "1h", *data).stdout
    assert token.startswith("amo_")
    shown = run("operator", "tokens", "ada@example.com", *data).stdout.splitlines()[1]
    ended = run("operator", "tokens", "ada@example.com", "--revoke", shown.split()[0], *data)
    assert ended.stdout.splitlines()[1].split()[3] != "-"
    assert run("audit", "verify", *data).returncode == 0


def test_a_model_that_cannot_be_served_is_refused_in_a_sentence(tmp_path: Path) -> None:
    model = tmp_path / "windowed"
    model.mkdir()
    config = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    (model / "config.json").write_text(json.dumps(config | {"sliding_window": 1024}))
    done = run("serve", "--model", str(model), "--data-dir", str(tmp_path / "data"))
    assert done.returncode == 1
    assert done.stderr.startswith("agentmem: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists(), "nothing was started"
