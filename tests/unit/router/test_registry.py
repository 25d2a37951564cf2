from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from agentmem.catalog import Catalog, migrate
from agentmem.catalog.records import Worker
from agentmem.core import WorkerId
from agentmem.engine.base import Engine
from agentmem.engine.fake import FakeEngine
from agentmem.errors import ModelNotFound, WorkerUnavailable
from agentmem.router.registry import Router
from tests.unit.catalog.conftest import make_worker


class Engines:
    def __init__(self) -> None:
        self.made: list[tuple[str, int]] = []
        self.closed = 0

    def __call__(self, worker: Worker) -> Engine:
        self.made.append((worker.url, worker.generation))
        engine = FakeEngine(vocabulary=(5, 9), eos_token_ids=(), page_tokens=4)
        outer = self

        async def aclose() -> None:
            outer.closed += 1

        engine.aclose = aclose  # type: ignore[method-assign]
        return engine


@pytest.fixture
async def catalog(tmp_path: Path) -> AsyncIterator[Catalog]:
    url = f"sqlite+aiosqlite:///{tmp_path / 'catalog.db'}"
    await migrate(url)
    made = Catalog(url)
    yield made
    await made.aclose()


@pytest.fixture
def engines() -> Engines:
    return Engines()


@pytest.fixture
async def router(catalog: Catalog, engines: Engines) -> AsyncIterator[Router]:
    made = Router(catalog, engines, silence_seconds_max=10)
    yield made
    await made.aclose()


async def register(catalog: Catalog, router: Router, worker: Worker) -> Worker:
    async with catalog.transaction() as tx:
        generation = await tx.workers.register(worker)
    router._read_at = float("-inf")
    return replace(worker, generation=generation)


async def test_an_unknown_model_is_told_from_no_worker(catalog: Catalog, router: Router) -> None:
    with pytest.raises(WorkerUnavailable, match="No worker has registered"):
        await router.choose("m", None)
    await register(catalog, router, make_worker(state="starting", detail="/secret/path"))
    with pytest.raises(ModelNotFound, match="Served: m"):
        await router.choose("other", None)
    with pytest.raises(WorkerUnavailable, match="starting") as caught:
        await router.choose("m", None)
    assert "/secret" not in caught.value.message


async def test_turns_are_spread(catalog: Catalog, router: Router) -> None:
    for name in ("a", "b"):
        await register(catalog, router, make_worker(id=WorkerId(name)))
    first = await router.choose("m", None)
    async with router.running_on(first):
        second = await router.choose("m", None)
        assert {first.id, second.id} == {"a", "b"}
        assert (await router.choose("m", first.id)).id == first.id
    assert (await router.choose("m", None)).id == "a"


async def test_a_new_start_gets_a_new_client(
    catalog: Catalog, router: Router, engines: Engines
) -> None:
    worker = await register(catalog, router, make_worker())
    for _ in range(2):
        async with router.running_on(worker) as assignment:
            assert assignment.gate.limit == worker.host_pool_tokens // 2
    worker = await register(catalog, router, make_worker(url="http://new"))
    async with router.running_on(await router.choose("m", None)):
        pass
    assert engines.made == [("http://w", 1), ("http://new", 2)]
    assert engines.closed == 1
    await router.aclose()
    assert engines.closed == 2


async def test_rows_are_read_at_most_twice_a_second(catalog: Catalog, router: Router) -> None:
    await register(catalog, router, make_worker())
    assert len(await router.workers()) == 1
    async with catalog.transaction() as tx:
        await tx.workers.remove(WorkerId("wkr_1"))
    assert len(await router.workers()) == 1
    router._read_at -= 0.6
    assert await router.workers() == []
