"""Nothing claimed is ever swept: many claimers at once, against a simple model of what must be.

Seeded; a failure prints its seed (`SEED=... pytest tests/unit/node/test_kept.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from pathlib import Path

import pytest

from agentmem.core import ClaimTerms, PageKey
from agentmem.errors import StoreRefused
from tests.unit.node.nodes import RECORD, Node, keys_of
from tests.unit.store.records import key_of, payload_of

PAGES = 60
SLOTS = 24
DISK_PAGES = 45
CLAIMERS = 6
ROUNDS = 4
STEPS = 25
SEEDS = 3


class Model:
    """What is surely claimed, and of that what is surely promised and was once durable."""

    def __init__(self) -> None:
        self.promised: dict[str, tuple[set[int], float]] = {}
        self.durable: set[int] = set()
        self.ever_claimed: dict[str, set[int]] = {}

    def shrink(self, now: float) -> None:
        """Pages that nothing promises for a moment may go, and be promised again without bytes."""
        live = [numbers for numbers, until in self.promised.values() if until > now]
        self.durable.intersection_update(set().union(*live))

    def settle(self, node: Node) -> None:
        """Pages that are durable now and promised must be there from now on."""
        promised = set().union(*(numbers for numbers, _ in self.promised.values()))
        self.durable = {n for n in promised if key_of(n) in node.disk}
        self.shrink(node.clock.now)

    def check(self, node: Node) -> None:
        self.shrink(node.clock.now)
        assert set(node.held(sorted(self.durable))) == self.durable, "a promised page is gone"


async def claimer(node: Node, model: Model, name: str, rng: random.Random) -> None:
    """Works on one claim, step by step; what it was told to be promised must hold."""
    for _ in range(STEPS):
        start = rng.randrange(PAGES)
        numbers = list(range(start, min(PAGES, start + rng.randrange(1, 10))))
        match rng.choice(("claim", "claim", "store", "store", "read", "unclaim", "part")):
            case "claim":
                until = node.clock.now + rng.choice((5.0, 50.0, 500.0))
                # A renewal sets the whole claim's term: until it is answered, the earlier one of
                # the two is sure.
                before, old = model.promised.get(name, (set(), until))
                model.promised[name] = (before, min(old, until))
                model.shrink(node.clock.now)
                model.ever_claimed.setdefault(name, set()).update(numbers)
                terms = ClaimTerms(bytes([len(name)]) * 16, start=start)
                promised = await node.retention.claim(name, keys_of(numbers), until, terms)
                if old <= node.clock.now:
                    before = set()  # had expired: it may have been pruned before the renewal
                model.promised[name] = (before | set(numbers[: promised.pages]), until)
                model.shrink(node.clock.now)
            case "store":
                if not node.store(*numbers):
                    node.ownership.evict(4, [node.slab])
            case "read":
                for number in numbers:
                    content = await node.read(number)
                    assert content in (None, payload_of(number)), "wrong bytes"
            case "unclaim":
                model.promised.pop(name, None)
                model.shrink(node.clock.now)
                gone = sorted(model.ever_claimed.pop(name, set()))
                await node.retention.unclaim(name, keys_of(gone))
            case "part":
                mine, until = model.promised.get(name, (set(), 0.0))
                part = mine.intersection(numbers)
                model.promised[name] = (mine - part, until)
                model.shrink(node.clock.now)
                await node.retention.unclaim(name, keys_of(sorted(part)))
        model.check(node)
        await asyncio.sleep(rng.random() * 0.002)


async def disturber(node: Node, model: Model, rng: random.Random) -> None:
    """Everything that takes pages away, while the claimers work."""
    for _ in range(STEPS):
        match rng.choice(("evict", "disk", "sweep", "time", "drop", "compact")):
            case "evict":
                node.ownership.evict(rng.randrange(1, SLOTS), [node.slab])
            case "disk":
                await node.disk.evict(rng.randrange(1, DISK_PAGES) * RECORD)
            case "sweep":
                await node.retention.sweep()
            case "time":
                node.clock.now += rng.choice((1.0, 10.0, 60.0))
                model.shrink(node.clock.now)
            case "drop":
                await node.ownership.drop_dram(None)
            case "compact":
                with contextlib.suppress(StoreRefused):  # no room to move anything
                    await node.disk.compact()
        model.check(node)
        await asyncio.sleep(rng.random() * 0.002)


async def check_at_rest(node: Node, model: Model) -> None:
    """What must hold when nothing is under way."""
    model.check(node)
    model.settle(node)
    await node.retention.sweep()
    claims = node.disk._index.claims
    with node.disk._index._env.begin(db=claims._pages) as tx:
        rows = {PageKey(bytes(key)) for key, _ in tx.cursor()}
        counted = sum(claims._promiser(tx, key) is not None for key in rows)
    assert (+claims.promised).total() == counted
    audit = await node.disk.audit()
    assert audit.differences == []
    tenants = node.dram.tenant_pages.total(), node.dram.tenant_bytes.total()
    assert tenants == (node.dram.usage().pages, node.dram.usage().page_bytes)


@pytest.mark.parametrize("turn", range(SEEDS))
async def test_nothing_promised_is_ever_swept_and_nothing_deleted_stays(
    tmp_path: Path, turn: int
) -> None:
    seed = int(os.environ.get("SEED", random.randrange(1 << 32))) + turn
    print(f"SEED={seed - turn}, turn {turn}")
    rng = random.Random(seed)
    node, model = Node(tmp_path, slots=SLOTS, disk_pages=DISK_PAGES), Model()
    await node.open()
    try:
        for _ in range(ROUNDS):
            work = [
                claimer(node, model, f"claim-{number}", random.Random(rng.random()))
                for number in range(CLAIMERS)
            ]
            async with asyncio.TaskGroup() as group:
                for each in (*work, disturber(node, model, random.Random(rng.random()))):
                    group.create_task(each)
            await check_at_rest(node, model)
            await node.close()
            await node.open()
            await check_at_rest(node, model)
        for name, numbers in model.ever_claimed.items():
            await node.retention.unclaim(name, keys_of(sorted(numbers)))
        await node.retention.unclaim("anyone", keys_of(range(PAGES)))
        await node.retention.sweep()
        assert node.held(range(PAGES)) == []
        assert node.found_in_files(range(PAGES)) == []
        assert node.promises.promised_bytes == 0
        assert (await node.disk.audit()).differences == []
        assert node.disk.usage().reserved_bytes == 0
    finally:
        await node.close()
