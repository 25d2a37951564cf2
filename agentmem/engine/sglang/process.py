"""One SGLang server as a process group: started, checked, watched, and ended without a trace."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil

from agentmem.engine.sglang.launch import LaunchPlan
from agentmem.errors import EngineFailed

_POLL_SECONDS = 0.25
_PROGRESS_SECONDS = 5
_LOG_TAIL_BYTES = 4000
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the kernel's shared memory, not a temporary file
# What SGLang's processes leave when they are killed: its load slots, and the semaphores that
# Python's multiprocessing made for them.
_LEFT_BEHIND = ("sglang_loads_", "sem.mp-")


@dataclass(frozen=True, slots=True)
class StorageProof:
    """What the plugin wrote when SGLang registered its host pool: storage did take effect."""

    pid: int
    layout: str
    dtype: str
    host_pool_tokens: int
    hbm_tokens: int


class SglangProcess:
    """Life of one server. `start` returns when it answers; `kill` leaves nothing behind."""

    def __init__(self, plan: LaunchPlan, log_path: Path) -> None:
        self._plan = plan
        self._log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch: Path | None = None
        self.proof: StorageProof | None = None

    @property
    def url(self) -> str:
        """Base URL of SGLang's HTTP server."""
        return self._plan.url

    @property
    def pid(self) -> int:
        """Of SGLang's main process. Raises RuntimeError before the start."""
        if self._process is None:
            raise RuntimeError("SGLang was not started")
        return self._process.pid

    async def start(self, *, deadline_seconds: float, progress: Callable[[str], None]) -> None:
        """Starts the server and waits until it answers and its parts proved to be in effect.

        Raises EngineFailed, with the log's last lines, when it ends, takes too long, or came up
        without the CPU support or the storage plugin (SGLang logs such errors and carries on).
        """
        self._prepare()
        started = time.monotonic()
        async with httpx2.AsyncClient(base_url=self.url, timeout=5.0) as http:
            while not await self._answers(http):
                waited = time.monotonic() - started
                if self.exit_code() is not None:
                    raise self._failed(f"SGLang ended with code {self.exit_code()} at its start")
                if waited > deadline_seconds:
                    raise self._failed(f"SGLang did not answer within {deadline_seconds:.0f} s")
                progress(f"SGLang is starting ({waited - waited % _PROGRESS_SECONDS:.0f} s)")
                await asyncio.sleep(_POLL_SECONDS)
        self.proof = self._read_proof()

    def _prepare(self) -> None:
        plan = self._plan
        shutil.rmtree(plan.run_dir, ignore_errors=True)
        plan.run_dir.mkdir(parents=True)
        for path, content in plan.files.items():
            path.write_text(content)
        # SGLang leaves its sockets in the temporary directory when it is killed: give it its own.
        # Not below run_dir, whose path may be too long for a socket.
        self._scratch = Path(tempfile.mkdtemp(prefix="agentmem-"))
        environment = {**os.environ, **plan.environment, "TMPDIR": str(self._scratch)}
        python, _, _, *arguments = plan.command
        command = [python, "-m", "agentmem.engine.sglang.child", str(os.getpid()), *arguments]
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    async def _answers(self, http: httpx2.AsyncClient) -> bool:
        try:
            return (await http.get("/health")).status_code == httpx2.codes.OK
        except httpx2.HTTPError:
            return False

    def _read_proof(self) -> StorageProof:
        path = self._plan.run_dir / "storage.json"
        if not path.exists():
            raise self._failed("SGLang is up, but its storage plugin did not take effect")
        proof = StorageProof(**json.loads(path.read_text()))
        if not (self._plan.run_dir / f"activated-{proof.pid}").exists():
            raise self._failed("SGLang is up, but agentmem's plugin did not take effect in it")
        return proof

    def _failed(self, message: str) -> EngineFailed:
        return EngineFailed(f"{message}. Its log ends with:\n{self.log_tail()}")

    def log_tail(self) -> str:
        """The end of SGLang's log."""
        if not self._log_path.exists():
            return ""
        with self._log_path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
            return log.read().decode(errors="replace")

    def exit_code(self) -> int | None:
        """Of the main process; None while it runs."""
        return None if self._process is None else self._process.poll()

    def death(self) -> str | None:
        """What died, or None. The scheduler is looked at itself: SGLang notices after 5 s."""
        code = self.exit_code()
        if code is not None:
            return f"SGLang's main process ended with code {code}"
        if self.proof is not None and not _alive(self.proof.pid):
            return f"SGLang's scheduler (pid {self.proof.pid}) died"
        return None

    def pids(self) -> list[int]:
        """Main process and all of its descendants that live."""
        if self._process is None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            main = psutil.Process(self._process.pid)
            return [main.pid, *(child.pid for child in main.children(recursive=True))]
        return []

    def kill(self) -> None:
        """Ends the whole group at once and removes what it leaves. Drain before if pages matter."""
        if self._process is None:
            return
        pids = set(self.pids())
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        gone_by = time.monotonic() + 30
        while any(_alive(pid) for pid in pids) and time.monotonic() < gone_by:
            time.sleep(0.02)
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
        sweep_shared_memory()


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def sweep_shared_memory() -> int:
    """Removes what dead SGLang processes left in shared memory. Returns how many files.

    Only files of this user that no living process has open or mapped.
    """
    files = [
        path
        for path in _SHARED_MEMORY.iterdir()
        if path.name.startswith(_LEFT_BEHIND) and path.stat().st_uid == os.getuid()
    ]
    if not files:
        return 0
    in_use = set(_mapped_files())
    removed = 0
    for path in files:
        if str(path) not in in_use:
            path.unlink(missing_ok=True)
            removed += 1
    return removed


def _mapped_files() -> Iterator[str]:
    for process in psutil.process_iter():
        try:
            # Open descriptors too: a file is open for a moment before it is mapped.
            yield from (mapping.path for mapping in process.memory_maps(grouped=True))
            yield from (opened.path for opened in process.open_files())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
