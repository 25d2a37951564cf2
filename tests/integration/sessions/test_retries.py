"""A request that comes again gets the answer that is running or done."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from agentmem.errors import EngineFailed, IdempotencyConflict
from agentmem.sessions.requests import LongestPrefix, RetryKey, TurnRequest
from agentmem.sessions.runs import Listener
from tests.integration.sessions.conftest import World

ASK = ({"role": "user", "content": "a question"},)


def key(attempt: int, body: str = "a", *, idempotency_key: str | None = None) -> RetryKey:
    return RetryKey("/v1/x", body, attempt, idempotency_key)


async def begin(world: World, retry: RetryKey, **fields: Any) -> Listener:
    request = TurnRequest(ASK, max_tokens=20, ignore_eos=True, temperature=1.0, **fields)
    return await world.service.begin(world.caller, LongestPrefix("fake"), request, retry=retry)


async def answer(world: World, retry: RetryKey, **fields: Any) -> str:
    listener = await begin(world, retry, **fields)
    try:
        return (await listener.result()).id
    finally:
        listener.close()


async def test_first_attempts_are_never_joined(world: World) -> None:
    ids = await asyncio.gather(*(answer(world, key(0)) for _ in range(3)))
    assert len(set(ids)) == 3
    assert await world.count() == (3, 3)


async def test_a_second_attempt_gets_what_was_committed(world: World) -> None:
    first = await answer(world, key(0))
    assert await answer(world, key(1)) == first
    assert await answer(world, key(2)) == first
    assert await world.count() == (1, 1)


async def test_each_attempt_takes_one_answer(world: World) -> None:
    """Two equal requests, both sent again, are two."""
    firsts = await asyncio.gather(answer(world, key(0)), answer(world, key(0)))
    seconds = await asyncio.gather(answer(world, key(1)), answer(world, key(1)))
    assert set(firsts) == set(seconds)
    assert len(set(seconds)) == 2
    assert await world.count() == (2, 2)


async def test_an_attempt_whose_first_never_arrived_is_new(world: World) -> None:
    await answer(world, key(0, "other body"))
    await answer(world, key(1))
    assert await world.count() == (2, 2)


async def test_another_key_is_another_caller(world: World) -> None:
    first = await answer(world, key(0))
    other = replace(world, caller=replace(world.caller, api_key_id="key_other"))
    assert await answer(other, key(1)) != first


async def test_a_running_turn_is_joined(world: World) -> None:
    stall = asyncio.Event()
    world.worker.engine.script.stall = stall
    first = await begin(world, key(0))
    first.close()  # the client is gone, and comes again within the grace
    again = asyncio.create_task(answer(world, key(1)))
    await asyncio.sleep(0.05)
    stall.set()
    await again
    assert await world.count() == (1, 1)
    assert len(world.worker.engine.calls) == 1


async def test_each_attempt_takes_one_running_turn(world: World) -> None:
    stall = asyncio.Event()
    world.worker.engine.script.stall = stall
    for _ in range(2):
        (await begin(world, key(0))).close()
    again = [asyncio.create_task(answer(world, key(1))) for _ in range(2)]
    await asyncio.sleep(0.05)
    third = asyncio.create_task(answer(world, key(1)))  # its first never arrived
    await asyncio.sleep(0.05)
    stall.set()
    assert len({*await asyncio.gather(*again), await third}) == 3
    assert await world.count() == (3, 3)
    # What an attempt has taken while it ran is taken in the catalog, too.
    assert len({await answer(world, key(1)), await answer(world, key(2))}) == 2
    assert await world.count() == (4, 4)


async def test_one_that_overtakes_its_first_waits_for_it(world: World) -> None:
    first = asyncio.create_task(answer(world, key(0)))
    await asyncio.sleep(0)  # the first has only just arrived
    second = asyncio.create_task(answer(world, key(1)))
    assert await first == await second
    assert await world.count() == (1, 1)


async def test_nobody_comes_again(world: World) -> None:
    """After the grace the turn is ended, and the log is where it was."""
    world.worker.engine.script.stall = asyncio.Event()
    (await begin(world, key(0))).close()
    for _ in range(200):
        if world.worker.engine.aborted:
            break
        await asyncio.sleep(0.01)
    assert world.worker.engine.aborted
    assert await world.count() == (0, 0)
    world.worker.engine.script.stall = None
    await answer(world, key(1))
    assert await world.count() == (1, 1)


async def test_a_failed_turn_is_run_again(world: World) -> None:
    world.worker.engine.script.fail_after_tokens = 3
    with pytest.raises(EngineFailed):
        await answer(world, key(0))
    await answer(world, key(1))
    assert await world.count() == (1, 1)


async def test_another_gateway_process_knows_what_was_committed(world: World) -> None:
    first = await answer(world, key(0))
    world.service._turns._retries._attempts.clear()
    assert await answer(world, key(1)) == first


async def test_an_answer_that_is_not_stored_is_kept_for_the_next_attempt(world: World) -> None:
    first = await answer(world, key(0), store=False)
    assert await answer(world, key(1), store=False) == first
    assert await world.count() == (0, 1)


class TestIdempotencyKey:
    async def test_the_same_answer_to_everyone(self, world: World) -> None:
        named = key(0, idempotency_key="k")
        ids = await asyncio.gather(*(answer(world, named) for _ in range(4)))
        world.service._turns._retries._attempts.clear()
        assert {*ids, await answer(world, named)} == {ids[0]}
        assert await world.count() == (1, 1)

    async def test_another_body_is_a_conflict(self, world: World) -> None:
        stall = asyncio.Event()
        world.worker.engine.script.stall = stall
        running = asyncio.create_task(answer(world, key(0, "a", idempotency_key="k")))
        await asyncio.sleep(0.05)
        with pytest.raises(IdempotencyConflict):
            await answer(world, key(0, "b", idempotency_key="k"))
        stall.set()
        await running
        with pytest.raises(IdempotencyConflict):
            await answer(world, key(0, "b", idempotency_key="k"))
        assert await world.count() == (1, 1)

    async def test_it_runs_on_without_a_client(self, world: World) -> None:
        world.worker.engine.token_seconds = 0.01
        (await begin(world, key(0, idempotency_key="k"))).close()
        await asyncio.sleep(1.5)  # longer than the grace of those without a key
        assert world.worker.engine.aborted == []
        assert await world.count() == (1, 1)

    async def test_choices_are_apart(self, world: World) -> None:
        one = RetryKey("/v1/x", "a", 0, "k", choice=0)
        other = RetryKey("/v1/x", "a", 0, "k", choice=1)
        assert await answer(world, one) != await answer(world, other)
        assert await answer(world, one) == await answer(world, one)
        assert await world.count() == (2, 2)
