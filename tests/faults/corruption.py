"""Runs of damage: no wrong byte is served, each damaged page is found, and healed by storing."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from agentmem.core import Tier
from agentmem.errors import AgentmemError, NodeUnavailable
from tests.faults.damage import cut_off, flip_bit, swap_records
from tests.faults.rig import Broken, Rig
from tests.integration.node.conftest import keys_of, load, store

PAGES = range(60)
DAMAGE_PER_ROUND = 10
_STARTS_MAX = 6


class Damaging:
    """Rounds of damage on one node that holds the same pages all the time."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.rig = self._rig(directory, seed)
        self.dice = self.rig.dice
        self.totals: Counter[str] = Counter()

    def _rig(self, directory: Path, seed: int) -> Rig:
        return Rig(directory, seed)

    def _kinds(self) -> list[Callable[[], int | None]]:
        return [
            self._flip_in_packs,
            self._swap_in_packs,
            self._flip_in_slabs,
            self._swap_in_slabs,
            self._flip_anywhere_at_rest,
            self._cut_packs_at_rest,
            self._damage_index_at_rest,
        ]

    def run(self, damages: int) -> Counter[str]:
        """Until that many things were damaged."""
        kinds = self._kinds()
        try:
            self.rig.start()
            self._heal()
            while self.totals["damages"] < damages:
                damage = kinds[self.totals["rounds"] % len(kinds)]
                before = self._quarantined()
                expected = damage()
                missing = self._load_all()
                if expected is not None:
                    found = self._quarantined() - before
                    if not expected == len(missing) == found:
                        raise Broken(
                            f"seed {self.rig.seed}: {damage.__name__}: {expected} pages damaged, "
                            f"{len(missing)} missing, {found} counted"
                        )
                self.totals["missing_pages"] += len(missing)
                self.totals["rounds"] += 1
                self._heal()
        finally:
            self.rig.end()
        self.totals["loaded_pages"] = self.rig.loaded_pages
        return self.totals

    def _heal(self) -> None:
        """What is missing is computed, that is stored, again; then everything is right."""
        engine, client = (
            self.rig.engine(listening=True),
            self.rig.agent.client(timeout_seconds=20.0),
        )
        client.claim("pages", keys_of(PAGES), time.time() + 10_000, terms=self.rig.terms)
        deadline = time.monotonic() + 20
        while not all(store(engine, PAGES)) or client.wait_durable(keys_of(PAGES), 5.0):
            if time.monotonic() > deadline:
                raise Broken(f"seed {self.rig.seed}: pages cannot be stored again")
        if missing := self._load_all():
            raise Broken(f"seed {self.rig.seed}: pages {missing} are not healed")
        client.close()

    def _load_all(self) -> list[int]:
        """Numbers of the pages that did not come; Broken when one came with wrong bytes."""
        missing = []
        engine = self.rig.engine(listening=True)
        for number in PAGES:
            (page,) = load(engine, [number])
            self.rig.expect_right([page], [number])
            if page is None:
                missing.append(number)
        return missing

    def _quarantined(self) -> int:
        stats = self.rig.agent.client().stats()
        return stats["quarantined_disk_pages"] + stats["quarantined_dram_pages"]

    def _places(self, tier: Tier) -> list[tuple[Path, list[int]]]:
        """Where the pages lie that a reader would be sent to this tier for: offsets by file."""
        client = self.rig.agent.client()
        located = client.locate(keys_of(PAGES))
        client.release(located.hold_id, loaded={})
        places: dict[str, list[int]] = {}
        for page in located.pages:
            if page.tier is tier:
                places.setdefault(page.path, []).append(page.offset)
        return [(Path(path), offsets) for path, offsets in sorted(places.items())]

    def _packs(self) -> list[tuple[Path, list[int]]]:
        return self._places(Tier.DISK)

    def _slabs(self) -> list[tuple[Path, list[int]]]:
        return self._places(Tier.DRAM)

    def _flip(self, files: list[tuple[Path, list[int]]]) -> int:
        """One bit in each of some records."""
        places = [(path, offset) for path, offsets in files for offset in offsets]
        chosen = self.dice.sample(places, min(DAMAGE_PER_ROUND, len(places)))
        for path, offset in chosen:
            flip_bit(path, self.dice, inside_of=offset)
        self.totals["damages"] += len(chosen)
        return len(chosen)

    def _swap(self, files: list[tuple[Path, list[int]]]) -> int:
        count = 0
        for path, offsets in files:
            if len(offsets) >= 2 and count < DAMAGE_PER_ROUND:
                swap_records(path, *self.dice.sample(offsets, 2))
                count += 2
        self.totals["damages"] += count
        return count

    def _flip_in_packs(self) -> int:
        self.rig.agent.client().drop_dram()
        return self._flip(self._packs())

    def _swap_in_packs(self) -> int:
        self.rig.agent.client().drop_dram()
        return self._swap(self._packs())

    def _flip_in_slabs(self) -> int | None:
        self._into_dram()
        self._flip(self._slabs())
        return None  # quarantined in dram, a page may still come from disk

    def _swap_in_slabs(self) -> int | None:
        self._into_dram()
        self._swap(self._slabs())
        return None

    def _into_dram(self) -> None:
        """Pages are in dram again: their copies on disk go, and they are stored anew."""
        client = self.rig.agent.client()
        client.unclaim("pages", keys_of(PAGES))
        self._heal()

    def _flip_anywhere_at_rest(self) -> None:
        self.rig.die()
        for path in self.rig.agent.packs.glob("pack-*"):
            for _ in range(2):
                flip_bit(path, self.dice)
                self.totals["damages"] += 1
        self._start()

    def _cut_packs_at_rest(self) -> None:
        self.rig.die()
        packs = sorted(self.rig.agent.packs.glob("pack-*"))
        for path in self.dice.sample(packs, min(2, len(packs))):
            cut_off(path, self.dice)
            self.totals["damages"] += 1
        self._start()

    def _damage_index_at_rest(self) -> None:
        self.rig.die()
        index = self.rig.agent.packs / "index" / "data.mdb"
        if self.dice.random() < 0.2:
            with index.open("r+b") as file:
                file.truncate(self.dice.randrange(index.stat().st_size))
        else:
            for _ in range(DAMAGE_PER_ROUND):
                flip_bit(index, self.dice)
        self.totals["damages"] += DAMAGE_PER_ROUND
        self._start()

    def _start(self) -> None:
        """Starts the agent; damage in the index may cost some attempts, as under a supervisor."""
        for _ in range(_STARTS_MAX):
            try:
                self.rig.start()
                self._examine()
                return
            except (AssertionError, NodeUnavailable, AgentmemError):
                self.totals["failed_starts"] += 1
                self.rig.die()
        raise Broken(f"seed {self.rig.seed}: the agent does not start on a damaged index")

    def _examine(self, *tiers: Literal["dram", "disk", "object"]) -> None:
        """Every record is read, as a doctor does it."""
        for tier in tiers or ("dram", "disk"):
            after = b""
            while True:
                reply = self.rig.agent.client(timeout_seconds=20).verify(tier, after)
                self.totals["quarantined_pages"] += len(reply.bad)
                after = reply.after
                if not after:
                    break
