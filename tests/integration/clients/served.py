"""`agentmem gateway` on the fake engine as a process of its own, for clients of their own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2

from agentmem.administer import create_key, create_tenant
from agentmem.app import migrate_catalog
from agentmem.config import Settings
from agentmem.loopback import free_port
from agentmem.serve import settings_environment

_START_SECONDS_MAX = 60.0
_STOP_SECONDS_MAX = 60.0
# Where something happened that nobody foresaw, or the catalog did not do as it should.
_ALARMING = ("error", "critical")
# What uvicorn and the standard library say, in plain lines, of what is well.
_HARMLESS = ("INFO ", "WARNING uvicorn.error Invalid HTTP request received.")


class ServedGateway:
    """The process, a tenant's key, and its log (JSON lines)."""

    def __init__(self, data_dir: Path, **settings: Any) -> None:
        self.settings = Settings(data_dir=data_dir, engine="fake", port=free_port(), **settings)
        migrate_catalog(self.settings)
        self.tenant_id = create_tenant(self.settings, "clients")
        self.key = create_key(self.settings, self.tenant_id)
        self.log_path = data_dir / "gateway.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Base URL of the gateway, without `/v1`."""
        return f"http://{self.settings.host}:{self.settings.port}"

    def environment(self) -> dict[str, str]:
        """What the clients' programs read."""
        return {"AGENTMEM_URL": self.url, "AGENTMEM_API_KEY": self.key}

    def new_key(self, tenant: str) -> str:
        """A key of another tenant, which is made."""
        return create_key(self.settings, create_tenant(self.settings, tenant))

    def start(self) -> None:
        """Starts it and waits until it is ready."""
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "agentmem", "gateway"],
                env={**os.environ, **settings_environment(self.settings)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + _START_SECONDS_MAX
        with httpx2.Client(base_url=self.url, timeout=2.0, trust_env=False) as http:
            while True:
                with contextlib.suppress(httpx2.HTTPError):
                    if http.get("/readyz").status_code == httpx2.codes.OK:
                        return
                ended = self._process.poll() is not None
                if ended or time.monotonic() > deadline:
                    raise AssertionError(f"the gateway is not ready:\n{self.log_tail()}")
                time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL: nothing is finished, nothing is flushed."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """As a supervisor stops it."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(f"it did not stop:\n{self.log_tail()}") from None

    def log_tail(self) -> str:
        """The end of its log."""
        return self.log_path.read_text(errors="replace")[-6_000:]

    def alarms(self) -> list[str]:
        """Lines of its log that say that something went wrong inside, or that are no log lines."""
        found = []
        for line in self.log_path.read_text(errors="replace").splitlines():
            try:
                level = json.loads(line)["level"]
            except (ValueError, KeyError, TypeError):
                if not line.startswith(_HARMLESS):
                    found.append(line)
                continue
            if level in _ALARMING:
                found.append(line)
        return found


@contextlib.contextmanager
def served_gateway(data_dir: Path, **settings: Any) -> Iterator[ServedGateway]:
    """A running gateway; it is stopped at the end whatever happened."""
    gateway = ServedGateway(data_dir, **settings)
    try:
        gateway.start()
        yield gateway
    finally:
        gateway.stop()
