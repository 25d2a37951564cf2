"""What only the fake engine does: scripts, failures, its page store. The rest is its contract."""

from __future__ import annotations

import asyncio

import pytest

from agentmem.core import PageHash
from agentmem.engine.base import CachedTokens, GenerateChunk, GenerateRequest, Sampling
from agentmem.engine.fake import FakeEngine
from agentmem.errors import EngineFailed


class Store:
    def __init__(self) -> None:
        self.pages: list[PageHash] = []

    def offer(self, hashes: list[PageHash]) -> None:
        self.pages += hashes

    def load(self, hashes: list[PageHash]) -> int:
        return next((i for i, one in enumerate(hashes) if one not in self.pages), len(hashes))


def make(store: Store | None = None, **options: object) -> FakeEngine:
    defaults: dict[str, object] = {"vocabulary": (5, 300), "eos_token_ids": (2,), "page_tokens": 4}
    return FakeEngine(store=store, **{**defaults, **options})  # type: ignore[arg-type]


async def run(engine: FakeEngine, tokens: int, **sampling: object) -> list[GenerateChunk]:
    options = {"max_tokens": 8, "ignore_eos": True, **sampling}
    request = GenerateRequest("r", list(range(tokens)), Sampling(**options), "salt")  # type: ignore[arg-type]
    return [chunk async for chunk in engine.generate(request)]


def ids(chunks: list[GenerateChunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids]


async def test_pages_of_prompt_and_reply_are_offered_once() -> None:
    store = Store()
    engine = make(store)
    await run(engine, 9)
    # 17 tokens, the last one without KV: four pages.
    assert len(store.pages) == 4
    await run(engine, 9)
    assert len(store.pages) == 4
    assert len(set(store.pages)) == 4


async def test_after_a_flush_pages_come_from_the_store() -> None:
    store = Store()
    engine = make(store)
    await run(engine, 9)
    assert (await run(engine, 9))[-1].cached == CachedTokens(device=8)
    engine.flush()
    offered = list(store.pages)
    assert (await run(engine, 9))[-1].cached == CachedTokens(storage=8)
    assert store.pages[len(offered) :] == offered[2:]  # those that were computed again
    engine.flush()
    store.pages = [page for page in store.pages if page != offered[0]]
    assert (await run(engine, 9))[-1].cached == CachedTokens()


async def test_the_device_is_bounded() -> None:
    engine = make(hbm_tokens=8)
    await run(engine, 40)
    assert len(engine._device) == 2


async def test_scripted_replies_are_used_up_in_order() -> None:
    engine = make()
    engine.script.replies += [(7, 8, 9), (7,)]
    assert ids(await run(engine, 5)) == [7, 8, 9]
    assert ids(await run(engine, 5, max_tokens=0)) == []
    assert ids(await run(engine, 5)) == [7]
    assert len(ids(await run(engine, 5))) == 8


@pytest.mark.parametrize("after", [0, 3])
async def test_scripted_failure_hits_one_request(after: int) -> None:
    engine = make()
    engine.script.fail_after_tokens = after
    with pytest.raises(EngineFailed, match=f"after {after} tokens"):
        await run(engine, 5)
    assert engine.aborted == ["r"]
    assert len(ids(await run(engine, 5))) == 8


async def test_dead() -> None:
    engine = make()
    engine.dead = True
    with pytest.raises(EngineFailed):
        await run(engine, 5)
    with pytest.raises(EngineFailed):
        await engine.open_session("s")


async def test_eos_comes_sooner_or_later_and_can_be_ignored() -> None:
    engine = make()
    chunks = await run(engine, 5, max_tokens=5_000, ignore_eos=False)
    assert chunks[-1].finish_reason == "stop"
    assert ids(chunks)[-1] == 2
    assert 2 not in ids(chunks)[:-1]
    assert 2 not in ids(await run(engine, 5, max_tokens=5_000))


async def test_seeds_matter_only_above_temperature_zero() -> None:
    engine = make()
    plain = ids(await run(engine, 5))
    assert ids(await run(engine, 5, seed=1)) == plain
    warm = ids(await run(engine, 5, seed=1, temperature=1.0))
    assert warm != plain
    assert ids(await run(engine, 5, seed=1, temperature=1.0)) == warm
    assert ids(await run(engine, 5, seed=2, temperature=1.0)) != warm


async def test_stop_strings() -> None:
    engine = make(decode=lambda tokens: " ".join(map(str, tokens)))
    whole = ids(await run(engine, 5))
    stop = f"{whole[2]} {whole[3]}"
    chunks = await run(engine, 5, stop=(stop,))
    assert ids(chunks) == whole[:4]
    assert chunks[-1].finish_reason == "stop"


async def test_a_message_sets_the_pace() -> None:
    engine = make(last_message=lambda _ids: "Slowly, please. [[pace: 0.02]]")
    loop = asyncio.get_running_loop()
    started = loop.time()
    assert len(ids(await run(engine, 5, max_tokens=6))) == 6
    assert loop.time() - started >= 6 * 0.02
