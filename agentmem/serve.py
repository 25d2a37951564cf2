"""`agentmem serve`: node agent, worker and gateway as three processes under one, on one machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from agentmem.administer import ensure_first_key
from agentmem.config import Settings
from agentmem.engine.sglang.model.check import inspect_model
from agentmem.engine.sglang.model.smollm2 import ensure_smollm2
from agentmem.errors import ConfigurationInvalid
from agentmem.lifeline import PARENT_VARIABLE

_POLL_SECONDS = 0.2
_PROGRESS_SECONDS = 5.0
_BACKOFF_SECONDS_MAX = 30.0
_STEADY_SECONDS = 30.0
# The worker drains for up to 30 s and the gateway lets running turns finish.
_STOP_SECONDS_MAX = 60.0
_READY = "ready"


@dataclass(slots=True)
class Part:
    """One child process: restarted when it dies, ever more slowly while it keeps dying."""

    name: str
    command: str
    # Its name in the gateway's /readyz; the gateway itself answers there at all.
    check: str
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    failures: int = 0
    ready: bool = False
    restart_at: float = field(default=0.0)


class Supervisor:
    """Starts the parts in order, says when each is ready, restarts the dead, stops all cleanly."""

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._say = say
        self._stop = threading.Event()
        self._key: str | None = None
        self._logs = settings.data_dir.absolute() / "logs"
        # In the order of their start; they are stopped in reverse.
        self._parts = [Part("gateway", "gateway", "catalog")]
        if settings.engine == "sglang":
            self._parts = [
                Part("node agent", "node", "node"),
                Part("worker", "worker", "workers"),
                *self._parts,
            ]

    @property
    def url(self) -> str:
        """Where the gateway listens."""
        return f"http://{self._settings.host}:{self._settings.port}"

    def run(self) -> int:
        """Until SIGINT or SIGTERM. Returns the exit code: 0, or 1 when a part had to be killed."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._stop.set())
        self._logs.mkdir(parents=True, exist_ok=True)
        self._require_free_port()
        self._say(f"agentmem: data in {self._settings.data_dir.absolute()}, logs in {self._logs}")
        self._key = ensure_first_key(self._settings)
        started = time.monotonic()
        last_progress = started
        with httpx2.Client(base_url=self.url, timeout=2.0, trust_env=False) as http:
            while not self._stop.is_set():
                for part in self._parts:
                    self._keep_running(part)
                if not all(part.ready for part in self._parts):
                    progress = self._look(http)
                    if progress and time.monotonic() - last_progress > _PROGRESS_SECONDS:
                        last_progress = time.monotonic()
                        self._say(f"  … {progress} ({last_progress - started:.0f} s)")
                self._stop.wait(_POLL_SECONDS)
        return self._stop_all()

    def _require_free_port(self) -> None:
        """Raises ConfigurationInvalid: a gateway of someone else would look like our own."""
        settings = self._settings
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.host, settings.port))
            except OSError as error:
                raise ConfigurationInvalid(
                    f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}.",
                    hint="Stop what listens there, or choose another port with --port.",
                ) from error

    def _keep_running(self, part: Part) -> None:
        process = part.process
        if process is not None and process.poll() is None:
            if time.monotonic() - part.started > _STEADY_SECONDS:
                part.failures = 0
            return
        now = time.monotonic()
        if process is not None:
            part.failures += 1
            pause = min(2.0 ** (part.failures - 1), _BACKOFF_SECONDS_MAX)
            part.restart_at = now + (pause if part.failures > 1 else 0.0)
            part.process, part.ready = None, False
            self._say(
                f"{part.name}: ended with code {process.returncode}, "
                f"log in {self._log(part)}; starting it again"
            )
        if now >= part.restart_at:
            self._start(part)

    def _start(self, part: Part) -> None:
        environment = {
            **os.environ,
            **settings_environment(self._settings),
            PARENT_VARIABLE: str(os.getpid()),
        }
        with self._log(part).open("ab") as log:
            part.process = subprocess.Popen(
                [sys.executable, "-m", "agentmem", part.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                # Ctrl-C must reach the supervisor only: it stops the parts in order.
                start_new_session=True,
            )
        part.started = time.monotonic()
        self._write_pids()

    def _log(self, part: Part) -> Path:
        return self._logs / f"{part.command}.log"

    def _write_pids(self) -> None:
        pids = {part.command: part.process.pid for part in self._parts if part.process}
        path = self._settings.run_dir / "serve.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"serve": os.getpid(), "url": self.url, **pids}))
        temporary.replace(path)

    def _look(self, http: httpx2.Client) -> str:
        """Asks the gateway which parts are ready, says so once of each, returns what is not."""
        try:
            states = http.get("/readyz").json()["parts"]
        except (httpx2.HTTPError, ValueError):
            return "the gateway is starting"
        waiting = []
        for part in self._parts:
            state = states.get(part.check, _READY)
            if state == _READY and not part.ready:
                part.ready = True
                self._say(f"{part.name}: ready")
            elif state != _READY:
                waiting.append(f"{part.name}: {state}")
        if not waiting:
            self._say(f"agentmem is ready: {self.url}  (its API: {self.url}/docs)")
            if self._key is not None:
                self._say(f"API key of tenant 'default', shown this once: {self._key}")
                self._key = None
        return "; ".join(waiting)

    def _stop_all(self) -> int:
        """Gateway first (turns finish), then the worker (pages are handed over), then the agent."""
        code = 0
        for part in reversed(self._parts):
            if part.process is None or part.process.poll() is not None:
                continue
            self._say(f"{part.name}: stopping")
            part.process.send_signal(signal.SIGTERM)
            try:
                part.process.wait(_STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self._say(f"{part.name}: did not stop in {_STOP_SECONDS_MAX:.0f} s; killing it")
                part.process.kill()
                part.process.wait()
                code = 1
        with contextlib.suppress(FileNotFoundError):
            (self._settings.run_dir / "serve.json").unlink()
        self._say("agentmem: stopped")
        return code


def settings_environment(settings: Settings) -> dict[str, str]:
    """The environment that makes a child read the same settings."""
    return {f"AGENTMEM_{name.upper()}": str(value) for name, value in settings if value != ""}


def run_serve(settings: Settings) -> int:
    """What `agentmem serve` runs. Returns the exit code.

    Raises ModelUnsupported or ConfigurationInvalid before anything is started: a worker that
    refuses its model would only be started again and again.
    """

    def say(text: str) -> None:
        print(text, flush=True)

    if settings.engine == "sglang":
        if settings.model:
            model = inspect_model(Path(settings.model)).path
        else:
            model = ensure_smollm2(settings.models_dir, say)
        settings = settings.model_copy(update={"model": str(model)})
    return Supervisor(settings, say).run()
