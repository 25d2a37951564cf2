from __future__ import annotations

import asyncio
import random

import pytest

from agentmem.router.admission import TokenGate


async def holder(gate: TokenGate, tokens: int, log: list[str], name: str) -> None:
    async with gate.hold(tokens):
        log.append(name)
        await asyncio.sleep(0.01)


async def test_what_fits_enters_the_rest_waits_in_line() -> None:
    gate, log = TokenGate(100), list[str]()
    tasks = [
        asyncio.create_task(holder(gate, tokens, log, name))
        for name, tokens in (("a", 60), ("b", 60), ("c", 10))
    ]
    await asyncio.sleep(0.005)
    # c would fit beside a, but b was first.
    assert log == ["a"]
    await asyncio.gather(*tasks)
    assert log == ["a", "b", "c"]
    assert gate.held == 0


async def test_one_larger_than_the_limit_is_let_in_alone() -> None:
    gate, log = TokenGate(100), list[str]()
    async with gate.hold(10):
        large = asyncio.create_task(holder(gate, 500, log, "large"))
        await asyncio.sleep(0.005)
        assert log == []
    await asyncio.sleep(0.005)
    assert log == ["large"]
    small = asyncio.create_task(holder(gate, 1, log, "small"))
    await asyncio.sleep(0)
    assert log == ["large"]
    await asyncio.gather(large, small)


async def test_no_tokens_never_wait() -> None:
    gate = TokenGate(1)
    async with gate.hold(5), gate.hold(0):
        assert gate.held == 5


async def test_giving_up_lets_those_behind_in() -> None:
    gate, log = TokenGate(100), list[str]()
    async with gate.hold(60):
        first = asyncio.create_task(holder(gate, 60, log, "first"))
        second = asyncio.create_task(holder(gate, 40, log, "second"))
        await asyncio.sleep(0.005)
        first.cancel()
        await asyncio.sleep(0.005)
        assert log == ["second"]
        await second
    with pytest.raises(asyncio.CancelledError):
        await first
    assert gate.held == 0


async def test_giving_up_at_the_very_moment_gives_back() -> None:
    gate, log = TokenGate(100), list[str]()
    waiting = None
    async with gate.hold(60):
        waiting = asyncio.create_task(holder(gate, 60, log, "late"))
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert gate.held == 0
    async with gate.hold(100):
        assert gate.held == 100


async def test_giving_up_just_before_ones_turn_comes_blocks_nobody() -> None:
    """The waiter is cancelled, and before it runs, the holder leaves."""
    gate = TokenGate(10)

    async def one(seconds: float) -> None:
        async with gate.hold(10):
            await asyncio.sleep(seconds)

    holder = asyncio.create_task(one(10))
    await asyncio.sleep(0)
    waiter, behind = asyncio.create_task(one(10)), asyncio.create_task(one(0))
    await asyncio.sleep(0)
    waiter.cancel()
    gate._leave(10)  # what the holder does, in the same step of the loop
    async with asyncio.timeout(1):
        await behind
        await asyncio.gather(waiter, return_exceptions=True)
    gate._take(10)
    holder.cancel()
    await asyncio.gather(holder, return_exceptions=True)
    assert gate.held == 0


@pytest.mark.parametrize("seed", range(8))
async def test_never_more_than_the_limit_whatever_happens(seed: int) -> None:
    rng = random.Random(seed)
    gate = TokenGate(100)

    async def one() -> None:
        async with gate.hold(rng.randrange(1, 100)):
            assert gate.held <= gate.limit
            await asyncio.sleep(rng.random() / 500)

    tasks = [asyncio.create_task(one()) for _ in range(200)]
    for task in rng.sample(tasks, 60):
        await asyncio.sleep(0.0005)
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert not [r for r in results if isinstance(r, Exception)]
    assert gate.held == 0
