"""A node agent on a faulty medium, an engine beside it, and what must hold whatever happens."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from agentmem.core import ClaimTerms
from agentmem.errors import AgentmemError
from agentmem.node.client import NodeClient
from agentmem.node.transfer import PageTransfer
from tests.faults.medium import Medium
from tests.integration.node.conftest import (
    AGENT,
    Agent,
    eventually,
    hash_of,
    keys_of,
    load,
    payload_of,
    store,
)

PACK_BYTES = 600_000  # ten records: packs fill, die and are compacted all the time
RUN_PAGES_MAX = 12
KEPT_PAGES_MAX = 90
_HOOK = f"""
from agentmem.store.disk import DiskTier
DiskTier.__init__.__kwdefaults__["pack_bytes"] = {PACK_BYTES}
from agentmem.node import server
server._HOUSEKEEPING_SECONDS = 0.05
"""


class Broken(AssertionError):
    """An invariant did not hold. Says the seed that found it."""


class Rig:
    """One node through any number of deaths. Runs of pages are claimed together.

    `durable` were acknowledged as durable, `removed` as deleted; `maybe` can be either way.
    """

    def __init__(self, directory: Path, seed: int, *, journal: bool = False, **env: str) -> None:
        self.seed = seed
        self.dice = random.Random(seed)
        self.agent = Agent(directory / "node-data")
        self.root = self.agent.data_dir / "node"
        self.root.mkdir(parents=True)
        self.medium = Medium(self.root, directory / "medium", journal=journal)
        self.agent.script = _HOOK + AGENT
        self.agent.env = {"AGENTMEM_DRAM_BYTES": str(24 << 20), **self.medium.environment, **env}
        self.durable: set[int] = set()
        self.removed: set[int] = set()
        self.maybe: set[int] = set()
        self.runs: list[list[int]] = []
        self.loaded_pages = 0
        self.terms: ClaimTerms | None = None
        self._next = 0

    def start(self) -> None:
        self.medium.heal()
        self.agent.start()

    def end(self) -> None:
        self.agent.end()
        self.medium.close()

    def die(self) -> None:
        """The process is gone, by its own fault or ours."""
        self.agent.kill()

    def forget_memory(self) -> None:
        """Engines and shared memory are gone, as after a loss of power."""
        for transfer in self.agent._transfers:
            transfer.close()
        self.agent._transfers.clear()
        if (self.root / "id").exists():
            shutil.rmtree(self.agent.slabs, ignore_errors=True)

    def engine(self, *, listening: bool = False) -> PageTransfer:
        """The one engine, which outlives agents; `listening`: once it has seen the new one."""
        transfers = self.agent._transfers
        engine = transfers[0] if transfers else self.agent.engine(slots=1)
        if listening:
            eventually(lambda: not engine.counters()["agent_silent"])
        return engine

    @property
    def alive(self) -> bool:
        process = self.agent.process
        return process is not None and process.poll() is None

    def work(self, steps: int, seconds: float = 10.0) -> None:
        """Does random things until so many are done or the agent is dead."""
        engine, client = self.engine(), self.agent.client(timeout_seconds=5.0)
        deadline = time.monotonic() + seconds
        try:
            for _ in range(steps):
                if not self.alive or time.monotonic() > deadline:
                    return
                self._step(engine, client)
        except AgentmemError:
            pass  # it died, or its medium refuses: what was not acknowledged was not promised
        finally:
            client.close()

    def _step(self, engine: PageTransfer, client: NodeClient) -> None:
        action = self.dice.random()
        if action < 0.5 or not self.runs:
            run = list(range(self._next, self._next + self.dice.randint(1, RUN_PAGES_MAX)))
            self._next = run[-1] + 1
            self.maybe.update(run)
            first = self.dice.random() < 0.5
            if first:
                self.claim(client, run)
            stored = store(engine, run)
            if not first:
                self.claim(client, run)
            self.runs.append(run)
            if self.dice.random() < 0.8:
                missing = {run[i] for i in client.wait_durable(keys_of(run), 2.0)}
                self.note_durable(
                    number for number, ok in zip(run, stored, strict=True) if number not in missing
                )
        elif action < 0.75:
            run = self.dice.choice(self.runs)
            self.expect_right(load(engine, run), run)
        elif action < 0.85:
            client.drop_dram()
        elif sum(map(len, self.runs)) > KEPT_PAGES_MAX or action < 0.9:
            run = self.runs.pop(self.dice.randrange(len(self.runs)))
            self.durable.difference_update(run)
            self.maybe.update(run)
            client.unclaim(f"run-{run[0]}", keys_of(run))
            self.maybe.difference_update(run)
            self.removed.update(run)

    def claim(self, client: NodeClient, run: list[int], seconds: float = 10_000) -> None:
        until = time.time() + seconds
        client.claim(f"run-{run[0]}", keys_of(run), until, terms=self.terms)

    def note_durable(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self.maybe.discard(number)
            self.durable.add(number)

    def expect_right(self, pages: list[bytes | None], numbers: list[int]) -> None:
        """No wrong byte is ever served."""
        for number, page in zip(numbers, pages, strict=True):
            if page is not None and page != payload_of(number):
                raise Broken(f"seed {self.seed}: page {number} came with wrong bytes")
            self.loaded_pages += page is not None

    def check(self, *, lost: Iterable[int] = ()) -> None:
        """Everything that must hold once the agent runs again. `lost` pages may be missing."""
        engine = self.engine(listening=True)
        client = self.agent.client(timeout_seconds=20.0)
        may_miss = set(lost)
        findings = client.audit().findings
        if findings:
            raise Broken(f"seed {self.seed}: the audit found {findings}")
        must = sorted(self.durable - may_miss)
        states = client.residency(keys_of(must))
        gone = [number for number, state in zip(must, states, strict=True) if not state.durable]
        if gone:
            raise Broken(f"seed {self.seed}: pages {gone} were durable and are not")
        for number in [*sorted(self.durable), *sorted(self.maybe)]:
            page = self.loaded(engine, number)
            self.expect_right([page], [number])
            if page is None and number in self.durable and number not in may_miss:
                raise Broken(f"seed {self.seed}: page {number} was durable and is not loaded")
        # Ending a claim that never was deletes what no other one holds.
        if unheld := client.unclaim("nobody", keys_of(must)).pages:
            raise Broken(
                f"seed {self.seed}: claims on {unheld} pages were acknowledged and are gone"
            )
        back = [n for n in self.removed if engine.find([hash_of(n)])]
        if back:
            raise Broken(f"seed {self.seed}: deleted pages {back} are back")
        stats = client.stats()
        if stats["disk_reserved_bytes"] > stats["disk_budget_bytes"]:
            raise Broken(f"seed {self.seed}: the disk tier is over its budget")
        client.close()
        self.agent._clients.clear()

    def loaded(self, engine: PageTransfer, number: int) -> bytes | None:
        """The page, where it comes."""
        (page,) = load(engine, [number])
        return page

    def expect_destroyed(self) -> None:
        """Nothing of a deleted page lies in any slab or pack."""
        below = self.agent.bytes_below()
        left = [number for number in self.removed if payload_of(number)[:64] in below]
        if left:
            raise Broken(f"seed {self.seed}: bytes of deleted pages {left} are still there")
