"""The system under demonstration: `agentmem serve` in a temporary directory, and its killing."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import psutil

from agentmem.administer import create_key, create_tenant
from agentmem.app import migrate_catalog
from agentmem.config import Settings
from agentmem.errors import AgentmemError
from agentmem.loopback import free_port
from agentmem.node.client import NodeClient
from agentmem.serve import settings_environment

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the shared memory of POSIX, not a temporary file
_START_SECONDS_MAX = 300.0
_STOP_SECONDS_MAX = 120.0
_TURN_SECONDS_MAX = 600.0


class DemoFailed(AgentmemError):
    """A part of the system did not do what the demo needs in order to go on."""


class System:
    """One data directory and the processes that serve it, started and killed at will."""

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        self.settings = settings
        self._say = say
        self._serve: subprocess.Popen[bytes] | None = None
        self._clients: list[Client] = []
        self.nodes = NodeClient(settings.node_socket, role="gateway")
        migrate_catalog(settings)

    @classmethod
    def below(
        cls, directory: Path, model: Path, say: Callable[[str], None], **settings: Any
    ) -> System:
        """A system of its own below `directory`, serving `model` on a free port."""
        return cls(
            Settings(data_dir=directory, model=str(model), port=free_port(), **settings), say
        )

    @property
    def url(self) -> str:
        """Base URL of the gateway."""
        return f"http://{self.settings.host}:{self.settings.port}"

    def tenant(self, name: str) -> Client:
        """Creates a tenant with an API key and returns its client."""
        tenant_id = create_tenant(self.settings, name)
        client = Client(self.url, create_key(self.settings, tenant_id), tenant_id, name)
        self._clients.append(client)
        return client

    def start(self) -> float:
        """Starts `agentmem serve` and waits until it is ready. Returns seconds."""
        started = time.monotonic()
        command = [sys.executable, "-m", "agentmem", "serve"]
        environment = {**os.environ, **settings_environment(self.settings)}
        with (self.settings.data_dir / "serve.log").open("ab") as log:
            self._serve = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
        with httpx2.Client(base_url=self.url, timeout=5.0, trust_env=False) as http:
            while not _is_ready(http):
                waited = time.monotonic() - started
                if self._serve.poll() is not None or waited > _START_SECONDS_MAX:
                    raise DemoFailed(
                        f"agentmem serve is not ready after {waited:.0f} s:\n{self.log()}"
                    )
                time.sleep(0.2)
        return time.monotonic() - started

    def log(self) -> str:
        """The end of each part's log."""
        paths = [self.settings.data_dir / "serve.log", *self.settings.data_dir.glob("logs/*.log")]
        tails = [f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in paths]
        return "\n".join(tails)

    def pids(self) -> dict[str, list[int]]:
        """Process ids by part: each part's own process, then its children."""
        described = json.loads((self.settings.run_dir / "serve.json").read_text())
        names = {"gateway": "gateway", "node": "node agent", "worker": "worker"}
        pids = {"supervisor": [int(described["serve"])]}
        for key, name in names.items():
            main = psutil.Process(int(described[key]))
            pids[name] = [main.pid, *(child.pid for child in main.children(recursive=True))]
        return pids

    def kill_everything(self) -> list[str]:
        """SIGKILL to every process at once, then what a reboot takes: shared memory, page cache.

        Returns the names of the parts that were killed.
        """
        parts = self.pids()
        victims = [psutil.Process(pid) for pids in parts.values() for pid in pids]
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(victims, timeout=30)
        if alive:
            raise DemoFailed(f"processes {[process.pid for process in alive]} outlived SIGKILL")
        if self._serve is not None:
            self._serve.wait()
        self._wipe_shared_memory()
        self._drop_page_cache()
        return [*parts, "shared memory"]

    def lose_disk(self) -> list[str]:
        """Deletes all that the node agent keeps on the host but its name: packs, every index, keys.

        Returns the names of what is gone.
        """
        lost = [path for path in self.settings.node_dir.iterdir() if path.is_dir()]
        for path in lost:
            shutil.rmtree(path)
        return [f"disk: {path.name}" for path in sorted(lost)]

    def _wipe_shared_memory(self) -> None:
        """As a reboot would. The agent does it itself, but only when it is stopped cleanly."""
        node_id = self.settings.node_dir / "id"
        if node_id.exists():
            shutil.rmtree(SHARED_MEMORY / f"agentmem-{node_id.read_text()}", ignore_errors=True)

    def _drop_page_cache(self) -> None:
        for path in self.settings.node_dir.rglob("*.agm"):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)

    def stop(self) -> None:
        """Ends the system as Ctrl-C does, and leaves no slab behind whatever happened before."""
        try:
            self._stop()
        finally:
            self._wipe_shared_memory()

    def _stop(self) -> None:
        self.nodes.close()
        for client in self._clients:
            client.close()
        if self._serve is None or self._serve.poll() is not None:
            return
        self._serve.send_signal(signal.SIGINT)
        try:
            self._serve.wait(_STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self._serve.kill()
            self._serve.wait()


def _is_ready(http: httpx2.Client) -> bool:
    """Whether every part is: a gateway is ready without a node agent, too."""
    try:
        parts = http.get("/readyz").json()["parts"]
    except (httpx2.HTTPError, ValueError, KeyError):
        return False
    return all(state == "ready" for state in parts.values())


class Client:
    """A tenant's view: the REST API, as `curl` would use it."""

    def __init__(self, url: str, key: str, tenant_id: str, tenant: str) -> None:
        self.tenant_id = tenant_id
        self.tenant = tenant
        self._http = httpx2.Client(
            base_url=url,
            headers={"authorization": f"Bearer {key}"},
            timeout=_TURN_SECONDS_MAX,
            trust_env=False,
        )

    def create(self) -> str:
        """A new session's id."""
        return str(self._call("POST", "/v1/sessions", {})["id"])

    def turn(self, session: str, messages: list[dict[str, str]], max_tokens: int) -> dict[str, Any]:
        """One greedy turn with log-probabilities."""
        return self._call(
            "POST",
            f"/v1/sessions/{session}/turns",
            {
                "messages": messages,
                "max_tokens": max_tokens,
                "temperature": 0,
                "logprobs": True,
            },
        )

    def post(self, session: str, action: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """hibernate, resume or fork."""
        return self._call("POST", f"/v1/sessions/{session}/{action}", body or {})

    def get(self, session: str, what: str = "") -> dict[str, Any]:
        """The session itself, or its residency or turns."""
        return self._call("GET", f"/v1/sessions/{session}{what and '/' + what}")

    def delete(self, session: str) -> dict[str, Any]:
        """Deletes the session with text, log and pages."""
        return self._call("DELETE", f"/v1/sessions/{session}")

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        response = self._http.request(method, path, json=body)
        if response.is_error:
            raise DemoFailed(f"{method} {path} answered {response.status_code}: {response.text}")
        answer: dict[str, Any] = response.json()
        return answer
