"""Many engines at once, in tiers far too small for them: nobody reads bytes with a new owner."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from pathlib import Path

from agentmem.errors import AgentmemError
from agentmem.node.client import NodeClient
from agentmem.node.transfer import PageTransfer
from agentmem.pages.record import HEADER_BYTES, record_bytes
from tests.faults.rig import Broken, Rig
from tests.integration.node.conftest import PAGE_BYTES, keys_of, load, payload_of, store

_NUMBERS = 240
_RUN_MAX = 8
_SLAB_BYTES = 300_000  # five slots: every engine has some
_BUDGETS = {
    "AGENTMEM_DRAM_BYTES": str(4 << 20),
    "AGENTMEM_DISK_BYTES": str(100 * record_bytes(PAGE_BYTES)),
}


def read_while_evicting(directory: Path, seed: int, *, engines: int, steps: int) -> Counter[str]:
    """Each engine makes so many steps in a thread of its own."""
    rig = Rig(directory, seed, **_BUDGETS)
    totals: Counter[str] = Counter()
    faults: list[BaseException] = []
    counting = threading.Lock()

    def run(number: int) -> None:
        dice = random.Random(seed * 1000 + number)
        engine = rig.agent.engine(f"engine-{number}", slots=0, slab_bytes=_SLAB_BYTES)
        client = rig.agent.client(timeout_seconds=20.0)
        mine: Counter[str] = Counter()
        try:
            for _ in range(steps):
                _step(engine, client, dice, mine)
        except (AssertionError, AgentmemError, OSError) as fault:
            faults.append(fault)
        with counting:
            totals.update(mine)

    try:
        rig.start()
        threads = [threading.Thread(target=run, args=(number,)) for number in range(engines)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if faults:
            log = rig.agent.log.read_text()[-3000:]
            raise Broken(f"seed {seed}: {faults}\n{log}") from faults[0]
        stats = rig.agent.client().stats()
        for counter in ("corrupt", "quarantined"):
            for tier in ("dram", "disk"):
                if stats[f"{counter}_{tier}_pages"]:
                    raise Broken(f"seed {seed}: {stats[f'{counter}_{tier}_pages']} {counter} pages")
        if stats["read_holds"]:
            raise Broken(f"seed {seed}: {stats['read_holds']} read holds are left")
        for name in ("evicted_dram_pages", "evicted_disk_pages", "compacted_packs"):
            totals[name] = stats[name]
        for tier in ("dram", "disk"):
            if stats[f"{tier}_reserved_bytes"] > stats[f"{tier}_budget_bytes"]:
                raise Broken(f"seed {seed}: {tier} is over its budget")
        if findings := rig.agent.client(timeout_seconds=20.0).audit().findings:
            raise Broken(f"seed {seed}: the audit found {findings}")
    finally:
        rig.end()
    return totals


def _step(
    engine: PageTransfer, client: NodeClient, dice: random.Random, totals: Counter[str]
) -> None:
    first = dice.randrange(_NUMBERS)
    run = list(range(first, first + dice.randint(1, _RUN_MAX)))
    action = dice.random()
    if action < 0.45:
        totals["stored_pages"] += sum(store(engine, run))
        # Claims end within the run: what they kept on disk can then be evicted.
        client.claim(f"run-{first}", keys_of(run), time.time() + dice.uniform(0.05, 1.0))
    elif action < 0.8:
        for number, page in zip(run, load(engine, run), strict=True):
            assert page is None or page == payload_of(number), f"wrong bytes of page {number}"
            totals["loaded_pages"] += page is not None
    elif action < 0.95:
        _read_for_long(client, run, dice, totals)
    else:
        client.unclaim(f"run-{first}", keys_of(run))


def _read_for_long(
    client: NodeClient, run: list[int], dice: random.Random, totals: Counter[str]
) -> None:
    """Holds pages for a while, in which everything around them changes, and then reads them."""
    located = client.locate(keys_of(run))
    time.sleep(dice.uniform(0.0, 0.05))
    for number, page in zip(run, located.pages, strict=False):
        with Path(page.path).open("rb") as file:
            file.seek(page.offset + HEADER_BYTES)
            payload = file.read(page.payload_bytes)
        assert payload == payload_of(number), f"page {number} was re-used while it was held"
        totals["held_pages"] += 1
    client.release(located.hold_id, loaded={})
