"""What nothing claims leaves the object store, what anything claims never does."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agentmem.core import PageKey
from agentmem.errors import StoreRefused
from agentmem.node.movements import MovementLog
from agentmem.node.objectsweep import ObjectSweep
from agentmem.store.claims import Claim
from agentmem.store.disk import DiskTier
from agentmem.store.object import ObjectTier
from agentmem.store.objectstore import ObjectStore
from tests.integration.object.test_tier import NODE, expected, opened, payloads, sealed
from tests.unit.store.records import RECORD, key_of

DAY = 86_400.0


@dataclass
class Rig:
    """An object tier, and the claims beside it; time is the test's."""

    disk: DiskTier
    tier: ObjectTier
    now: float = field(default_factory=time.time)
    sweep: ObjectSweep = field(init=False)

    async def claim(self, claim_id: str, numbers: list[int], seconds: float) -> None:
        """As `Retention.claim` does it."""
        keys = [key_of(n) for n in numbers]
        self.sweep.note_claimed(keys)
        await self.disk.claim(claim_id.encode(), keys, self.now + seconds)

    def there(self, numbers: range) -> list[int]:
        return [n for n in numbers if key_of(n) in self.tier]


@asynccontextmanager
async def rig(path: Path, *, pages_max: int = 0, days: float = 30) -> AsyncIterator[Rig]:
    disk = DiskTier(path / "packs", NODE, 1 << 24, clock=lambda: made.now)
    tier = ObjectTier(
        ObjectStore(f"file://{path}/store"),
        path / "a",
        NODE,
        pack_bytes=4 * RECORD,
        budget_bytes=pages_max * RECORD,
    )
    made = Rig(disk, tier)
    made.sweep = ObjectSweep(
        tier,
        disk,
        MovementLog(),
        leftover_seconds=days * DAY,
        round_seconds=0,
        clock=lambda: made.now,
    )
    await disk.open()
    await tier.open()
    yield made
    await tier.close()
    await disk.close()


async def steps(made: Rig, count: int = 3) -> None:
    for _ in range(count):
        await made.sweep.step()


async def test_what_nothing_claims_goes_after_its_time(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        await made.tier.put(sealed(range(8)))
        await made.claim("one", [0, 1, 2, 3], 10 * DAY)
        await made.claim("two", [4, 5], 100 * DAY)
        await steps(made)
        assert made.there(range(8)) == list(range(8))
        assert made.tier.leftover_pages == 2
        made.now += 11 * DAY
        await steps(made)
        assert made.there(range(8)) == list(range(8))
        assert made.tier.leftover_pages == 6
        await made.claim("again", [2], 100 * DAY)
        made.now += 20 * DAY
        await steps(made)
        assert made.there(range(8)) == list(range(6))
        made.now += 11 * DAY
        await steps(made)
        assert made.there(range(8)) == [2, 4, 5]
        assert made.tier.counters["evicted_object_pages"] == 5
        await made.tier.reclaim()
        assert await payloads(made.tier, [2, 4, 5]) == expected([2, 4, 5])
        assert len(await ObjectStore(f"file://{tmp_path}/store").list("packs/")) == 2
    async with opened(ObjectStore(f"file://{tmp_path}/store"), tmp_path / "a") as tier:
        await tier.refresh()
        assert [n for n in range(8) if key_of(n) in tier] == [2, 4, 5]


async def test_above_the_budget_the_oldest_leftovers_go(tmp_path: Path) -> None:
    async with rig(tmp_path, pages_max=10) as made:
        await made.tier.put(sealed(range(16)))
        await made.claim("kept", [0, 1, 2, 3], DAY)
        await made.claim("soon", [4, 5, 6, 7, 8, 9], 10)
        made.now += 1
        await steps(made)
        assert made.there(range(16)) == list(range(10))
        made.now += 100
        await made.tier.put(sealed(range(20, 24)))
        await made.claim("new", [20, 21, 22, 23], DAY)
        await steps(made)
        # The end of a log before its beginning, and no more than it takes.
        assert made.there(range(24)) == [0, 1, 2, 3, 4, 20, 21, 22, 23]


async def test_what_is_claimed_stays_above_any_budget(tmp_path: Path) -> None:
    async with rig(tmp_path, pages_max=2, days=0) as made:
        await made.tier.put(sealed(range(8)))
        await made.claim("all", list(range(8)), DAY)
        await steps(made)
        assert made.there(range(8)) == list(range(8))


async def test_other_nodes_objects_are_left_alone(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    async with opened(ObjectStore(url), tmp_path / "b", "f" * 16) as other:
        await other.put(sealed(range(4)))
    async with rig(tmp_path, days=0) as made:
        await made.tier.refresh()
        made.now += 1
        await steps(made)
        assert made.there(range(4)) == list(range(4))


async def test_holes_wait_until_an_object_is_worth_rewriting(tmp_path: Path) -> None:
    async with rig(tmp_path, days=0) as made:
        await made.tier.put(sealed(range(4)))
        await made.claim("most", [0, 1, 2], DAY)
        store = ObjectStore(f"file://{tmp_path}/store")
        before = await store.list("packs/")
        await steps(made, 1)
        made.now += 1
        await steps(made, 1)
        assert made.there(range(4)) == [0, 1, 2]
        await made.tier.reclaim()
        assert await store.list("packs/") == before
        await made.claim("most", [0, 1], 2 * DAY)
        await made.disk.unclaim(b"most", [key_of(2)])
        await made.tier.remove([key_of(2)])  # what is deleted goes at once
        await made.tier.reclaim()
        assert await store.list("packs/") != before
        assert await payloads(made.tier, [0, 1]) == expected([0, 1])


async def test_a_failing_index_brings_pages_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise StoreRefused("the test says so", reason="index_failed")

    async with rig(tmp_path, days=0) as made:
        await made.tier.put(sealed(range(4)))
        made.now += 1
        with monkeypatch.context() as patched:
            patched.setattr(made.tier._pages.index, "remove", refuse)
            with pytest.raises(StoreRefused):
                await steps(made)
        assert made.there(range(4)) == list(range(4))
        assert made.tier.own_bytes == 4 * RECORD


@pytest.mark.parametrize("seed", range(6))
async def test_no_claimed_page_ever_goes(tmp_path: Path, seed: int) -> None:
    """Claims, renewals, deletions, uploads, rewrites and the sweep at once, against a model."""
    dice = random.Random(seed)
    pages = range(30)
    # Pages are there, as far as anyone who had a claim acknowledged may expect.
    until: dict[int, float] = {}
    async with rig(tmp_path, pages_max=6, days=0) as made:

        async def tend() -> None:
            while True:
                await made.sweep.step()
                if dice.random() < 0.3:
                    await made.tier.reclaim()
                await asyncio.sleep(0)

        async def use(first: int) -> None:
            mine = list(pages[first : first + 10])
            claims: dict[str, list[int]] = {}
            for step in range(60):
                renewed = dice.choice(list(claims)) if claims and dice.random() < 0.3 else ""
                numbers = claims.get(renewed) or sorted(dice.sample(mine, dice.randint(1, 6)))
                # A renewal may come late, but never shortens a term.
                ends = made.now + (200 if renewed else dice.choice([5, 20, 50]))
                await made.claim(renewed or f"{first} {step}", numbers, ends - made.now)
                claims[renewed or f"{first} {step}"] = numbers
                missing = [n for n in numbers if key_of(n) not in made.tier]
                if missing and dice.random() < 0.7:
                    await made.tier.put(sealed(missing))
                for n in numbers:
                    if key_of(n) in made.tier:
                        until[n] = max(until.get(n, 0), ends)
                made.now += dice.random() * 4
                for n in mine:
                    if until.get(n, 0) > made.now:
                        assert key_of(n) in made.tier, f"seed {seed}: page {n} was claimed"
                await asyncio.sleep(0)

        tending = asyncio.create_task(tend())
        await asyncio.gather(use(0), use(10), use(20))
        assert not tending.done()
        tending.cancel()
        await asyncio.gather(tending, return_exceptions=True)
        assert made.tier.counters["evicted_object_pages"] > 0
        await made.tier.reclaim()
        left = made.there(pages)
        assert await payloads(made.tier, left) == expected(left)
        assert made.tier.own_bytes == len(left) * RECORD


async def test_a_claim_that_comes_while_pages_are_judged_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(tmp_path, days=0) as made:
        await made.tier.put(sealed(range(4)))
        await made.sweep._look()
        made.now += 1
        look = made.disk.claims

        async def and_then_claim(keys: list[PageKey]) -> dict[PageKey, list[Claim]]:
            found = await look(keys)
            await made.claim("late", [1, 2], DAY)
            return found

        monkeypatch.setattr(made.disk, "claims", and_then_claim)
        await made.sweep._let_go()
        assert made.there(range(4)) == [1, 2]
