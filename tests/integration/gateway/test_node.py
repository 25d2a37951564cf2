"""The `Pages` port over a real node agent says what the in-memory one says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from agentmem.core import PageHash, PageKey, Tier
from agentmem.errors import NodeUnavailable
from agentmem.pages.keys import keys_of_hashes
from agentmem.sessions.node import NodePages
from agentmem.sessions.ports import Freed, Pages
from agentmem.testing.pages import InMemoryPages
from tests.integration.node.conftest import (
    FINGERPRINT,
    PAGE_BYTES,
    Agent,
    agent,
    hashes_of,
    load,
    store,
)

__all__ = ["agent"]
THREE = range(3)
FOUR_KEYS: list[PageKey] = keys_of_hashes(FINGERPRINT, hashes_of(range(4)))


class Under:
    """A port and what stands for the engine: three pages stored, the fourth never."""

    def __init__(self, pages: Pages, engine: object) -> None:
        self.pages, self.engine = pages, engine

    async def load_pages(self, hashes: list[PageHash]) -> int:
        if isinstance(self.engine, InMemoryPages):
            return self.engine.load(hashes)
        loaded = await asyncio.to_thread(load, self.engine, list(THREE))  # type: ignore[arg-type]
        return sum(page is not None for page in loaded)


@pytest.fixture(params=["real", "in memory"])
async def under(request: pytest.FixtureRequest) -> AsyncIterator[Under]:
    if request.param == "real":
        real: Agent = request.getfixturevalue("agent")
        engine = await asyncio.to_thread(real.engine)
        assert await asyncio.to_thread(store, engine, list(THREE)) == [True] * 3
        pages = NodePages(real.socket)
        yield Under(pages, engine)
        await pages.aclose()
    else:
        memory = InMemoryPages(FINGERPRINT, page_bytes=PAGE_BYTES)
        memory.offer(hashes_of(THREE))
        yield Under(memory, memory)


async def keep(pages: Pages) -> None:
    """Claims the four pages, so that those which are there become durable."""
    await pages.claim("keeper", FOUR_KEYS, time.time() + 60)


async def test_durability_and_residency(under: Under) -> None:
    pages = under.pages
    await pages.stats()
    assert await pages.wait_durable(FOUR_KEYS[:3], 0.2) == [0, 1, 2], "nothing claims them"
    assert [entry.durable for entry in await pages.residency(FOUR_KEYS)] == [False] * 4
    await keep(pages)
    assert await pages.wait_durable(FOUR_KEYS[:3], 5.0) == []
    begun = time.monotonic()
    assert await pages.wait_durable(FOUR_KEYS, 0.2) == [3]
    assert 0.15 < time.monotonic() - begun < 2
    residency = await pages.residency(FOUR_KEYS)
    assert [(entry.tiers, entry.durable) for entry in residency] == [
        *([((Tier.DRAM, Tier.DISK), True)] * 3),
        ((), False),
    ]


async def test_loads_since(under: Under) -> None:
    pages = under.pages
    await keep(pages)
    await pages.wait_durable(FOUR_KEYS[:3], 5.0)
    before = await pages.sequence()
    assert await pages.loads(FOUR_KEYS, before) == {}
    assert await under.load_pages(hashes_of(THREE)) == 3
    found = await pages.loads(FOUR_KEYS, before)
    assert sum(found.values()) == 3
    assert set(found) <= {Tier.DRAM, Tier.DISK}
    assert await pages.loads(FOUR_KEYS, await pages.sequence()) == {}


async def test_a_page_stays_while_anybody_claims_it(under: Under) -> None:
    pages = under.pages
    soon = time.time() + 60
    await pages.claim("one", FOUR_KEYS, soon)
    await pages.claim("one", FOUR_KEYS, soon)
    await pages.claim("two", FOUR_KEYS[:1], soon)
    await pages.wait_durable(FOUR_KEYS[:3], 5.0)
    assert await pages.unclaim("one", FOUR_KEYS) == Freed(2, 2 * PAGE_BYTES)
    assert [bool(e.tiers) for e in await pages.residency(FOUR_KEYS)] == [True, False, False, False]
    assert await pages.unclaim("nobody", FOUR_KEYS[3:]) == Freed(0, 0)
    assert await pages.unclaim("two", FOUR_KEYS) == Freed(1, PAGE_BYTES)


async def test_an_agent_that_is_gone(agent: Agent) -> None:
    pages = NodePages(agent.socket)
    await pages.stats()
    agent.kill()
    calls = (
        lambda: pages.claim("one", FOUR_KEYS, time.time() + 60),
        lambda: pages.unclaim("one", FOUR_KEYS),
        lambda: pages.residency(FOUR_KEYS),
        lambda: pages.wait_durable(FOUR_KEYS, 0.1),
        lambda: pages.loads(FOUR_KEYS, 0),
        pages.sequence,
        pages.stats,
    )
    for call in calls:
        with pytest.raises(NodeUnavailable):
            await call()
    # A turn after a failed question does not ask again for a while.
    begun = time.monotonic()
    with pytest.raises(NodeUnavailable, match="a moment ago"):
        await pages.sequence()
    assert time.monotonic() - begun < 0.05
    agent.start()
    await pages.stats()
    await pages.aclose()
