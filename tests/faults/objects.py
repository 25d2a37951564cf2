"""Faults while pages are in an object store, or on their way to it, from it and out of it.

The store is a directory below the node's, so the medium that fails stands before it as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from agentmem.core import ClaimTerms, Tier
from agentmem.node.client import NodeClient
from agentmem.node.transfer import PageTransfer
from agentmem.pages.record import record_bytes
from agentmem.store.objectpack import Row, decode_footer, decode_trailer
from tests.faults.corruption import DAMAGE_PER_ROUND, PAGES, Damaging
from tests.faults.damage import cut_off, flip_bit
from tests.faults.rig import Broken, Rig
from tests.integration.node.conftest import eventually, keys_of, load

TERMS = ClaimTerms(b"tenant tag of 16")
_OBJECT_BYTES = 300_000  # five records
# A sweep without pause, and objects rewritten for a single hole: then sums are exact.
_HOOK = f"""
from agentmem.node import objecttending
objecttending._PAUSE_SECONDS = 0.05
objecttending._REFRESH_SECONDS = 0.5
from agentmem.node.objectsweep import ObjectSweep
ObjectSweep.__init__.__kwdefaults__["round_seconds"] = 0
from agentmem.store import object as tier, objectpages
objectpages._LIVE_SHARE_MIN = 1.0
groups = tier.groups
tier.groups = lambda records, size_bytes: groups(records, {_OBJECT_BYTES})
"""


class ObjectRig(Rig):
    """A node with an object store, in which pages that nothing claims stay no longer than a look.

    `acknowledged` were durable when they were demoted.
    """

    def __init__(self, directory: Path, seed: int) -> None:
        root = directory / "node-data" / "node"
        env = {
            "AGENTMEM_OBJECT_URL": f"file://{root}/store",
            "AGENTMEM_OBJECT_LEFTOVER_SECONDS": "0",
        }
        super().__init__(directory, seed, **env)
        self.agent.script = _HOOK + self.agent.script
        self.terms = TERMS
        self.demoted_pages = self.lapsed_pages = self.late_loads = 0

    def objects(self) -> list[Path]:
        """Every object of a pack that is there under its name."""
        return sorted((self.root / "store" / "packs").rglob("*.agm"))

    def rows(self, path: Path) -> list[Row]:
        """What an object's footer says; raises PageCorrupt for half an object."""
        data = path.read_bytes()
        return decode_footer(data[decode_trailer(data, len(data)) :])

    def _step(self, engine: PageTransfer, client: NodeClient) -> None:
        action = self.dice.random()
        if not self.runs or action < 0.35:
            super()._step(engine, client)
            return
        run = self.dice.choice(self.runs)
        if action < 0.5:
            self._make_holes(client, run)
        elif action < 0.75:
            # Several runs in one object: where one goes, it is rewritten for the others.
            some = sorted({n for _ in range(3) for n in self.dice.choice(self.runs)})
            release = self.dice.random() < 0.8
            left = client.demote(keys_of(some), release=release, timeout_seconds=5.0)
            there = [number for index, number in enumerate(some) if index not in left]
            self.note_durable(there)
            self.demoted_pages += len(there)
        elif action < 0.9:
            client.prefetch(keys_of(run), self.dice.choice([Tier.DRAM, Tier.DISK]), 2.0)
            self.expect_right(load(engine, run), run)
        else:
            self.runs.remove(run)
            self.durable.difference_update(run)
            self.maybe.update(run)  # it goes at some time, from the object store at once
            self.claim(client, run, self.dice.uniform(0.0, 0.3))
            self.lapsed_pages += len(run)

    def _make_holes(self, client: NodeClient, run: list[int]) -> None:
        """Every other page of a run is deleted: its objects are rewritten while others are read."""
        gone = run[1::2]
        self.durable.difference_update(gone)
        self.maybe.update(gone)
        client.unclaim(f"run-{run[0]}", keys_of(gone))
        self.maybe.difference_update(gone)
        self.removed.update(gone)
        run[:] = run[::2]
        time.sleep(0.1)

    def loaded(self, engine: PageTransfer, number: int) -> bytes | None:
        """What is fetched from afar may be too late for one load: then it is there for the next."""
        deadline = time.monotonic() + (10 if number in self.durable else 0)
        while (page := super().loaded(engine, number)) is None and time.monotonic() < deadline:
            self.late_loads += 1
        return page

    def check(self, *, lost: object = ()) -> None:
        super().check()
        client = self.agent.client(timeout_seconds=20.0)
        # What was uploaded and not yet in the index is taken in; nothing else may be found.
        found = [f for f in client.audit("object").findings if f.kind != "unknown_object"]
        if found:
            raise Broken(f"seed {self.seed}: the audit of objects found {found}")
        eventually(lambda: self._sums_agree(client), 20)
        client.close()
        self.agent._clients.clear()

    def _sums_agree(self, client: NodeClient) -> bool:
        """Whether what the agent counts is what the objects hold, and nothing deleted is there."""
        try:
            rows = [row for path in self.objects() for row in self.rows(path)]
        except FileNotFoundError:
            return False  # one was rewritten meanwhile
        stats = client.stats()
        record_sum = sum(record_bytes(row.payload_bytes) for row in rows)
        deleted = set(keys_of(sorted(self.removed))) & {row.key for row in rows}
        sums = stats["object_pages"], stats["object_reserved_bytes"]
        return sums == (len(rows), record_sum) and not deleted


class ObjectDamaging(Damaging):
    """Rounds of damage on a node whose pages are all in the object store."""

    rig: ObjectRig

    def _rig(self, directory: Path, seed: int) -> Rig:
        return ObjectRig(directory, seed)

    def _kinds(self) -> list[Callable[[], int | None]]:
        return [
            self._flip_in_objects,
            self._cut_objects,
            self._flip_objects_at_rest,
            self._cut_objects_at_rest,
            self._remove_objects_at_rest,
        ]

    def _heal(self) -> None:
        self._examine()  # a footer that nobody reads is damaged, too
        super()._heal()
        client = self.rig.agent.client(timeout_seconds=20.0)
        if left := client.demote(keys_of(PAGES), release=True, timeout_seconds=20.0):
            raise Broken(f"seed {self.rig.seed}: pages {left} are not demoted")

        def in_objects_only() -> bool:
            client.demote(keys_of(PAGES), release=True, timeout_seconds=20.0)
            states = client.residency(keys_of(PAGES))
            return all(state.tiers == {Tier.OBJECT} for state in states)

        eventually(in_objects_only)
        eventually(lambda: self.rig._sums_agree(client), 20)

    def _quarantined(self) -> int:
        return self.rig.agent.client().stats()["quarantined_object_pages"]

    def _flip_in_objects(self) -> int:
        places = [(path, row.offset) for path in self.rig.objects() for row in self.rig.rows(path)]
        chosen = self.dice.sample(places, DAMAGE_PER_ROUND)
        for path, offset in chosen:
            flip_bit(path, self.dice, inside_of=offset)
        self.totals["damages"] += len(chosen)
        return len(chosen)

    def _cut_objects(self) -> int:
        gone = 0
        for path in self.dice.sample(self.rig.objects(), 3):
            ends = [row.offset + record_bytes(row.payload_bytes) for row in self.rig.rows(path)]
            cut_off(path, self.dice)
            gone += sum(end > path.stat().st_size for end in ends)
            self.totals["damages"] += 1
        return gone

    def _flip_objects_at_rest(self) -> None:
        self.rig.die()
        for path in self.rig.objects():
            flip_bit(path, self.dice)
            self.totals["damages"] += 1
        self._start()

    def _cut_objects_at_rest(self) -> None:
        self.rig.die()
        for path in self.dice.sample(self.rig.objects(), 3):
            cut_off(path, self.dice)
            self.totals["damages"] += 1
        self._start()

    def _remove_objects_at_rest(self) -> None:
        self.rig.die()
        for path in self.dice.sample(self.rig.objects(), 2):
            path.unlink()
            self.totals["damages"] += 1
        self._start()

    def _examine(self, *tiers: object) -> None:
        client = self.rig.agent.client(timeout_seconds=20)
        client.audit("object")
        super()._examine("object")
        if again := client.audit("object").findings:
            raise Broken(f"seed {self.rig.seed}: the second audit found {again}")
