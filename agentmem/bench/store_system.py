"""What the store's benches measure: a real node agent, and engines with pools like SGLang's."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentmem.bench.limits import Memory
from agentmem.bench.report import Goal, Row, missing_row
from agentmem.config import Settings
from agentmem.core import ClaimTerms, Fingerprint, PageHash, PageKey
from agentmem.errors import AgentmemError, NodeUnavailable
from agentmem.lifeline import PARENT_VARIABLE
from agentmem.native.jobs import PageBuffers
from agentmem.node.client import NodeClient
from agentmem.node.transfer import PageTransfer
from agentmem.pages.keys import keys_of_hashes
from agentmem.serve import settings_environment

BATCH_PAGES = 128
"""Pages of one `batch_set_v1` or `batch_get_v1` of SGLang, at most."""
TENANT = b"bench tenant 16b"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the shared memory of POSIX, not a temporary file
_START_SECONDS_MAX = 120.0
_STOP_SECONDS_MAX = 120.0
_CLAIM_SECONDS = 3600.0
_TILE = random.Random(4).randbytes(3 << 20)  # noqa: S311 - incompressible, not secret
_STAMP_BYTES = 16


class BenchFailed(AgentmemError):
    """A part of the system did not do what a measurement needs."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Pages of one model. `suffix` tells its rows from those of the other shape."""

    name: str
    suffix: str
    page_bytes: int
    set_pages: int
    """Pages that are moved per round: far more than the caches of a CPU hold."""


SMOLLM2 = Shape("SmolLM2-135M", "", 1_474_560, 512)
LLAMA_8B = Shape("Llama 8B", "_8mib", 8 << 20, 128)
SHAPES = {str(shape.page_bytes): shape for shape in (SMOLLM2, LLAMA_8B)}


class Node:
    """A node agent in a process of its own, below a directory of its own."""

    def __init__(
        self, directory: Path, *, environment: Mapping[str, str] | None = None, **settings: Any
    ) -> None:
        self._environment = environment or {}
        self.settings = Settings(data_dir=directory, **settings)
        self.client = NodeClient(self.settings.node_socket, role="gateway", timeout_seconds=60.0)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the agent. Raises BenchFailed before its start."""
        if self._process is None:
            raise BenchFailed("the node agent was not started")
        return self._process.pid

    def start(self, timeout_seconds: float = _START_SECONDS_MAX) -> float:
        """Returns the seconds from the start of the process until it answers."""
        self.settings.data_dir.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            **self._environment,
            **settings_environment(self.settings),
            PARENT_VARIABLE: str(os.getpid()),
        }
        begun = time.perf_counter()
        with (self.settings.data_dir / "node.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "agentmem", "node"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        while True:
            try:
                self.client.ping(timeout_seconds=1.0)
                return time.perf_counter() - begun
            except NodeUnavailable:
                seconds = time.perf_counter() - begun
                if self._process.poll() is not None or seconds > timeout_seconds:
                    raise BenchFailed(
                        f"the node agent did not start in {seconds:.0f} s: {self.log_tail()}"
                    ) from None
                time.sleep(0.005)

    def log_tail(self) -> str:
        """The end of the agent's log."""
        return (self.settings.data_dir / "node.log").read_text(errors="replace")[-1500:]

    def packs(self) -> list[Path]:
        """Files of the disk tier that hold pages, and its index."""
        return [path for path in self.settings.node_dir.rglob("*") if path.is_file()]

    def memory_bytes(self) -> dict[str, int]:
        """Resident memory of the agent by kind (`RssAnon`, `RssFile`, `RssShmem`, `VmRSS`)."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        pairs = (line.partition(":") for line in lines if line.startswith(("Rss", "VmRSS")))
        return {name: int(value.split()[0]) * 1024 for name, _, value in pairs}

    def kill(self) -> None:
        """Ends the agent with SIGKILL."""
        self.client.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """Ends the agent in order, or by force after two minutes."""
        self.client.close()
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.kill()

    def forget_shared_memory(self) -> None:
        """What a restart of the host takes."""
        node_id = self.settings.node_dir / "id"
        if node_id.exists():
            shutil.rmtree(SHARED_MEMORY / f"agentmem-{node_id.read_text()}", ignore_errors=True)

    def remove(self) -> None:
        """Deletes the directory and the shared memory of an agent that has ended."""
        self.forget_shared_memory()
        shutil.rmtree(self.settings.data_dir, ignore_errors=True)


@contextmanager
def running_node(directory: Path, **settings: Any) -> Iterator[Node]:
    """A node agent that is ended, with all that it stored, at the end of the block."""
    node = Node(directory, **settings)
    try:
        node.start()
        yield node
    finally:
        node.kill()
        node.remove()


@dataclass(slots=True)
class HostPool:
    """Memory of an engine for `pages` pages, K and V apart as in SGLang's `page_first` layouts."""

    pages: int
    page_bytes: int
    keys: Memory = field(init=False)
    values: Memory = field(init=False)

    def __post_init__(self) -> None:
        self.keys = Memory(self.pages * self.page_bytes // 2)
        self.values = Memory(self.pages * self.page_bytes // 2)

    def fill(self) -> None:
        """Other bytes in every page."""
        for memory in (self.keys, self.values):
            memory.fill(_TILE)
        for page in range(self.pages):
            stamp = hashlib.sha256(b"%d" % page).digest()[:_STAMP_BYTES]
            for view in self.page(page):
                view[:_STAMP_BYTES] = stamp
                view[-_STAMP_BYTES:] = stamp

    def scribble(self) -> None:
        """No page holds what it held before."""
        for memory in (self.keys, self.values):
            memory.fill(b"\xff" * (1 << 20))

    def page(self, number: int) -> list[memoryview]:
        """K and V of one page."""
        half = self.page_bytes // 2
        at = number * half
        return [self.keys.view[at : at + half], self.values.view[at : at + half]]

    def buffers(self, numbers: Sequence[int]) -> PageBuffers:
        """These pages as the plugin describes them."""
        half = self.page_bytes // 2
        pointers = [
            memory.address + number * half
            for number in numbers
            for memory in (self.keys, self.values)
        ]
        return PageBuffers.of_pointers(pointers, [half] * len(pointers), 2)

    def equals(self, other: HostPool) -> bool:
        """Whether both hold the same bytes."""
        return self.keys.equals(other.keys) and self.values.equals(other.values)


class BenchEngine:
    """An engine's side: a `PageTransfer`, as the plugin has it, and a host pool."""

    def __init__(
        self,
        socket: Path,
        page_bytes: int,
        *,
        engine_id: str = "bench",
        verify_loads: bool = True,
    ) -> None:
        self.page_bytes = page_bytes
        digest = hashlib.sha256(b"bench %d" % page_bytes).digest()[:16]
        self.fingerprint = Fingerprint(digest)
        self.transfer = PageTransfer(
            socket,
            engine_id=engine_id,
            fingerprint=self.fingerprint,
            page_bytes=page_bytes,
            load_deadline_seconds=60.0,
            store_deadline_seconds=60.0,
            verify_loads=verify_loads,
        )
        self._wait_for_slots()

    def close(self) -> None:
        """Hands the slabs to the agent."""
        self.transfer.close()

    def hashes(self, name: str, numbers: Sequence[int]) -> list[PageHash]:
        """Hashes of the pages of a set with this name."""
        seed = name.encode()
        return [PageHash(hashlib.sha256(seed + b" %d" % number).digest()) for number in numbers]

    def keys(self, hashes: Sequence[PageHash]) -> list[PageKey]:
        """The keys under which they are stored."""
        return keys_of_hashes(self.fingerprint, hashes)

    def store(self, name: str, pool: HostPool, numbers: Sequence[int]) -> float:
        """Stores pages in batches, as SGLang does. Returns seconds; raises BenchFailed."""
        return self._move(self.transfer.store, name, pool, numbers)

    def load(self, name: str, pool: HostPool, numbers: Sequence[int]) -> float:
        """Loads pages in batches, as SGLang does. Returns seconds; raises BenchFailed."""
        return self._move(self.transfer.load, name, pool, numbers)

    def _move(
        self,
        move: Callable[[Sequence[PageHash], PageBuffers], list[bool]],
        name: str,
        pool: HostPool,
        numbers: Sequence[int],
    ) -> float:
        batches = [numbers[at : at + BATCH_PAGES] for at in range(0, len(numbers), BATCH_PAGES)]
        prepared = [(self.hashes(name, batch), pool.buffers(batch)) for batch in batches]
        begun = time.perf_counter()
        moved = [move(hashes, buffers) for hashes, buffers in prepared]
        seconds = time.perf_counter() - begun
        missing = sum(results.count(False) for results in moved)
        if missing:
            raise BenchFailed(
                f"{missing} of {len(numbers)} pages were not moved: {self.transfer.counters()}"
            )
        return seconds

    def _wait_for_slots(self) -> None:
        deadline = time.monotonic() + _START_SECONDS_MAX
        while not self.transfer.counters()["spool_free_slots"]:
            if time.monotonic() > deadline:
                raise BenchFailed("the agent granted no slab")
            time.sleep(0.01)


def claim(node: Node, claim_id: str, keys: Sequence[PageKey], *, encrypted: bool = False) -> None:
    """Claims pages for an hour, as the gateway does after a turn."""
    terms = ClaimTerms(tenant=TENANT, encrypted=encrypted)
    node.client.claim(claim_id, list(keys), time.time() + _CLAIM_SECONDS, terms=terms)


def wait_durable(node: Node, keys: Sequence[PageKey], timeout_seconds: float = 120.0) -> float:
    """Waits until all of these are durable. Returns seconds; raises BenchFailed."""
    begun = time.perf_counter()
    missing = node.client.wait_durable(list(keys), timeout_seconds)
    if missing:
        raise BenchFailed(f"{len(missing)} of {len(keys)} pages did not become durable")
    return time.perf_counter() - begun


def measured(
    rows: Mapping[str, Callable[[int], Row]],
    goals: Mapping[str, Goal],
    wanted: Sequence[str],
    rounds: int,
    shape: Shape,
) -> list[Row]:
    """Those of the rows that are wanted, for pages of one shape."""
    names = [name for name in rows if name in wanted]
    return [attempted(name, goals[name], rows[name], rounds, shape) for name in names]


def attempted(
    name: str, goal: Goal, row: Callable[[int], Row], rounds: int, shape: Shape | None = None
) -> Row:
    """The row, or one that says why it could not be measured."""
    suffix, page_bytes = (shape.suffix, shape.page_bytes) if shape else ("", 0)
    try:
        return row(rounds)
    except (AgentmemError, OSError, subprocess.SubprocessError) as error:
        return missing_row(f"{name}{suffix}", str(error), goal, page_bytes=page_bytes)
