"""A real node agent in a process of its own, and engines beside it."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from agentmem.core import Fingerprint, PageHash, PageKey
from agentmem.errors import NodeUnavailable
from agentmem.node.client import NodeClient
from agentmem.node.transfer import PageTransfer
from agentmem.pages.keys import keys_of_hashes

FINGERPRINT = Fingerprint(b"fingerprint-16-b")
PAGE_BYTES = 50_000
SLAB_BYTES = 1 << 20  # 18 slots

AGENT = """
import logging
logging.basicConfig(level=logging.INFO)
from agentmem.config import Settings
from agentmem.node.server import run_node
run_node(Settings())
"""


def hash_of(number: int) -> PageHash:
    return PageHash(hashlib.sha256(b"page %d" % number).digest())


def hashes_of(numbers: Sequence[int]) -> list[PageHash]:
    return [hash_of(number) for number in numbers]


def keys_of(numbers: Sequence[int]) -> list[PageKey]:
    return keys_of_hashes(FINGERPRINT, hashes_of(numbers))


def payload_of(number: int) -> bytes:
    """Bytes that occur nowhere else."""
    return hashlib.shake_256(b"payload %d" % number).digest(PAGE_BYTES)


def buffers_of(numbers: Sequence[int]) -> list[list[memoryview]]:
    """K and V of each page, read-only."""
    half = PAGE_BYTES // 2
    views = [memoryview(payload_of(number)) for number in numbers]
    return [[view[:half], view[half:]] for view in views]


def store(transfer: PageTransfer, numbers: Sequence[int]) -> list[bool]:
    return transfer.store(hashes_of(numbers), buffers_of(numbers))


def load(transfer: PageTransfer, numbers: Sequence[int]) -> list[bytes | None]:
    """What was loaded; None where the transfer says that it was not."""
    targets = [bytearray(PAGE_BYTES) for _ in numbers]
    half = PAGE_BYTES // 2
    buffers = [[memoryview(t)[:half], memoryview(t)[half:]] for t in targets]
    results = transfer.load(hashes_of(numbers), buffers)
    return [bytes(t) if good else None for t, good in zip(targets, results, strict=True)]


def loads_right(transfer: PageTransfer, numbers: Sequence[int]) -> bool:
    return load(transfer, numbers) == [payload_of(number) for number in numbers]


def eventually(what: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.01)


class Agent:
    """The agent's process, its directories and clients."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.socket = data_dir / "run" / "node.sock"
        self.packs = data_dir / "node" / "packs"
        self.env: dict[str, str] = {}
        self.script = AGENT
        self.process: subprocess.Popen[bytes] | None = None
        self.log = data_dir / "agent.log"
        self._transfers: list[PageTransfer] = []
        self._clients: list[NodeClient] = []

    @property
    def slabs(self) -> Path:
        return Path("/dev/shm") / f"agentmem-{(self.data_dir / 'node' / 'id').read_text()}"

    def start(self) -> None:
        env = {**os.environ, "AGENTMEM_DATA_DIR": str(self.data_dir), **self.env}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", self.script], env=env, stderr=log
            )
        client = NodeClient(self.socket)
        eventually(lambda: self._answers(client), 20)
        client.close()

    def _answers(self, client: NodeClient) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        try:
            client.ping(timeout_seconds=1)
        except NodeUnavailable:
            return False
        return True

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(20) == 0, self.log.read_text()

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def client(self, **options: Any) -> NodeClient:
        self._clients.append(NodeClient(self.socket, **options))
        return self._clients[-1]

    def engine(self, engine_id: str = "engine", *, slots: int = 18, **options: Any) -> PageTransfer:
        """A transfer that has at least `slots` free slots, when there is an agent."""
        transfer = PageTransfer(
            self.socket,
            engine_id=engine_id,
            fingerprint=FINGERPRINT,
            page_bytes=PAGE_BYTES,
            **{"slab_bytes": SLAB_BYTES, **options},
        )
        self._transfers.append(transfer)
        if self.process is not None and self.process.poll() is None:
            eventually(lambda: transfer.counters()["spool_free_slots"] >= slots)
        return transfer

    def keep(self, numbers: Sequence[int], *, seconds: float = 1000.0) -> None:
        """Claims pages, there already or not, for "session": they become durable."""
        client = self.client()
        client.claim("session", keys_of(numbers), time.time() + seconds)
        client.close()

    def end(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
        for each in (*self._transfers, *self._clients):
            each.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        if (self.data_dir / "node" / "id").exists():
            shutil.rmtree(self.slabs, ignore_errors=True)

    def bytes_below(self) -> bytes:
        """Every byte that lies in slabs and packs."""
        # A slab that is being made (`.new`) holds no page yet.
        files = [*self.packs.glob("pack-*"), *self.slabs.glob("slab-??????")]
        return b"".join(path.read_bytes() for path in files)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(tmp_path)
    agent.start()
    try:
        yield agent
    finally:
        agent.end()


@pytest.fixture
def unstarted(tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(tmp_path)
    try:
        yield agent
    finally:
        agent.end()
