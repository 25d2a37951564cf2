from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentmem.catalog import Catalog, migrate
from agentmem.catalog.records import Session, Turn
from agentmem.core import ClaimTerms, PageHash, SessionId, TenantId
from agentmem.pages.keys import keys_of_hashes
from agentmem.sessions import durability
from agentmem.sessions.durability import DurabilityTracker, Watched
from agentmem.telemetry import Metrics
from agentmem.testing.fake_worker import fake_fingerprint
from agentmem.testing.pages import InMemoryPages
from tests.unit.catalog.conftest import make_session, make_turn, make_worker

PAGE = 4
HASHES = [PageHash(bytes([i]) * 32) for i in range(3)]


class Bench:
    """A tracker at work on one session with three pages."""

    def __init__(self, catalog: Catalog, session: Session, turn: Turn) -> None:
        self.catalog, self.session, self.turn = catalog, session, turn
        self.metrics = Metrics()
        self.pages = InMemoryPages(fake_fingerprint(PAGE), page_bytes=1)
        self.keys = keys_of_hashes(self.pages.fingerprint, HASHES)
        self.tracker = DurabilityTracker(catalog, self.pages, self.metrics, give_up_seconds=0.3)
        self.loop = asyncio.create_task(self.tracker.run())

    def stop(self) -> None:
        """Ends the tracker's loop."""
        self.loop.cancel()

    def item(self) -> Watched:
        ids = (self.session.tenant_id, self.session.id, self.turn.id)
        return Watched(*ids, self.keys, PAGE, 1e12)

    async def position(self) -> int:
        async with self.catalog.reading() as tx:
            return (await tx.sessions.get(*self.ids)).durable_position

    @property
    def ids(self) -> tuple[TenantId, SessionId]:
        return self.session.tenant_id, self.session.id

    async def done(self) -> None:
        async with asyncio.timeout(2):
            while self.tracker.watching:
                await asyncio.sleep(0.005)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    url = f"sqlite+aiosqlite:///{tmp_path / 'catalog.db'}"
    await migrate(url)
    catalog = Catalog(url)
    async with catalog.transaction() as tx:
        tenant = await tx.tenants.create("acme")
        session = make_session(tenant.id)
        turn = make_turn(session, None, tokens=13)
        await tx.sessions.create(session)
        await tx.turns.insert(turn)
        assert await tx.sessions.advance(session, turn, make_worker()) == 0
    made = Bench(catalog, session, turn)
    yield made
    made.stop()
    with contextlib.suppress(asyncio.CancelledError):
        await made.loop
    await catalog.aclose()


async def test_claims_and_records(bench: Bench) -> None:
    bench.pages.offer(HASHES)
    bench.tracker.watch(bench.item())
    await bench.done()
    assert bench.pages.claims[bench.session.id] == set(bench.keys)
    assert await bench.position() == 12


async def test_what_is_not_promised_is_counted_and_kept_all_the_same(bench: Bench) -> None:
    bench.pages.offer(HASHES)
    bench.pages.promise_room = 1
    terms = ClaimTerms(b"t" * 16, "persistent")
    bench.tracker.watch(dataclasses.replace(bench.item(), terms=terms))
    await bench.done()
    assert bench.pages.terms[bench.session.id] == terms
    assert bench.metrics.pages_unpromised.labels("capacity")._value.get() == 2
    assert await bench.position() == 12


async def test_progress_is_shown(bench: Bench) -> None:
    bench.pages.offer(HASHES[:2])
    bench.tracker.watch(bench.item())
    await asyncio.sleep(0.1)
    assert await bench.position() == 8
    bench.pages.offer(HASHES)
    await bench.done()
    assert await bench.position() == 12


async def test_only_a_prefix_counts(bench: Bench) -> None:
    bench.pages.offer(HASHES[1:])
    bench.tracker.watch(bench.item())
    await bench.done()
    assert await bench.position() == 0
    assert bench.metrics.durability_given_up._value.get() == 1


async def test_an_agent_that_comes_back(bench: Bench) -> None:
    bench.pages.offer(HASHES)
    bench.pages.down = True
    bench.tracker.watch(bench.item())
    await asyncio.sleep(0.1)
    bench.pages.down = False
    await bench.done()
    assert await bench.position() == 12
    assert bench.metrics.node_failures.labels("claim")._value.get() >= 1


async def test_of_an_older_head_nothing_is_recorded(bench: Bench) -> None:
    item = bench.item()
    async with bench.catalog.transaction() as tx:
        row = await tx.sessions.get(*bench.ids)
        newer = make_turn(bench.session, bench.turn, keep=2, log_tokens=6)
        await tx.turns.insert(newer)
        assert await tx.sessions.advance(row, newer, make_worker()) == 0
    bench.pages.offer(HASHES)
    bench.tracker.watch(item)
    await bench.done()
    assert await bench.position() == 0


async def test_forget(bench: Bench) -> None:
    bench.tracker.watch(bench.item())
    await bench.tracker.forget(bench.session.id)
    assert bench.tracker.watching == 0
    claims = dict(bench.pages.claims)
    await asyncio.sleep(0.1)
    assert bench.pages.claims == claims


async def test_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durability, "WATCHED_MAX", 2)
    for name in ("ses_a", "ses_b", "ses_c"):
        item = bench.item()
        item.session_id = name  # type: ignore[assignment]
        bench.tracker.watch(item)
    assert bench.tracker.watching == 2
    assert bench.metrics.durability_given_up._value.get() == 1


async def test_a_gateway_that_ends_claims_what_it_has_not(bench: Bench) -> None:
    bench.pages.down = True
    bench.tracker.watch(bench.item())
    await asyncio.sleep(0.1)
    assert bench.pages.claims == {}
    bench.pages.down = False
    bench.stop()
    with contextlib.suppress(asyncio.CancelledError):
        await bench.loop
    assert bench.pages.claims == {bench.session.id: set(bench.keys)}


async def test_the_oldest_log_counts_from_its_commit(bench: Bench) -> None:
    assert bench.tracker.oldest_seconds() == 0.0
    bench.pages.durable_delay_seconds = 0.1
    bench.pages.offer(HASHES)
    item = bench.item()
    item.age_seconds = 50.0
    bench.tracker.watch(item)
    assert bench.tracker.is_watched(bench.session.id)
    await asyncio.sleep(0.05)
    assert 50.0 < bench.tracker.oldest_seconds() < 51.0
    await bench.done()
    assert bench.tracker.oldest_seconds() == 0.0
    assert bench.metrics.durability_lag._sum.get() > 50.0
