from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from agentmem.core import SessionId, TurnId
from agentmem.engine.output import TextPiece
from agentmem.errors import EngineFailed
from agentmem.sessions.runs import (
    TurnCompleted,
    TurnCreated,
    TurnDelta,
    TurnFailed,
    TurnRun,
    finished_run,
)
from tests.unit.catalog.conftest import make_session, make_turn

CREATED = TurnCreated(TurnId("turn_1"), 1, SessionId("ses_1"), 0, 5)
TURN = make_turn(make_session("ten_1"), None)  # type: ignore[arg-type]


def make_run(*, retryable: bool = False) -> TurnRun:
    return TurnRun(1, "hash", retryable=retryable)


def delta(number: int) -> TurnDelta:
    return TurnDelta((TextPiece(str(number)),), (number,))


async def collect(listener: Any) -> list[Any]:
    return [event async for event in listener]


async def test_every_listener_gets_every_event() -> None:
    run = make_run()
    early = asyncio.create_task(collect(run.listen()))
    await asyncio.sleep(0)
    expected: list[Any] = [CREATED, *map(delta, range(50)), TurnCompleted(TURN)]
    others = []
    for number, event in enumerate(expected):
        run.publish(event)
        if number % 10 == 0:
            others.append(asyncio.create_task(collect(run.listen())))
        if number % 7 == 0:
            await asyncio.sleep(0)
    for task in (early, *others):
        assert await asyncio.wait_for(task, 1) == expected


async def test_nothing_follows_the_end() -> None:
    run = make_run()
    run.publish(TurnFailed(EngineFailed("x")))
    assert run.over
    with pytest.raises(AssertionError):
        run.publish(delta(1))


async def test_the_result_raises_what_failed() -> None:
    run = make_run()
    listener = run.listen()
    run.publish(TurnFailed(EngineFailed("planted")))
    with pytest.raises(EngineFailed, match="planted"):
        await listener.result()


async def running(run: TurnRun, seen: list[str]) -> None:
    try:
        run.begin()
        await asyncio.sleep(10)
        seen.append("ran on")
    except asyncio.CancelledError:
        seen.append("cancelled")


@pytest.mark.parametrize("started", [True, False])
async def test_the_last_one_to_leave_ends_it(started: bool) -> None:
    run, seen = make_run(), list[str]()
    one, other = run.listen(), run.listen()
    run.task = asyncio.create_task(running(run, seen))
    if started:
        await asyncio.sleep(0)
    one.close()
    one.close()
    await asyncio.sleep(0.01) if started else None
    assert not seen
    other.close()
    # Also where the task had not taken its first step yet: it gets to clean up.
    await asyncio.wait({run.task}, timeout=1)
    assert seen == ["cancelled"]


async def test_a_retryable_one_runs_on() -> None:
    run, seen = make_run(retryable=True), list[str]()
    listener = run.listen()
    run.task = asyncio.create_task(running(run, seen))
    listener.close()
    await asyncio.sleep(0.01)
    assert not seen
    run.end()
    await asyncio.wait_for(run.task, 1)
    assert seen == ["cancelled"]


async def test_with_a_grace_it_waits_for_another_attempt() -> None:
    run, seen = TurnRun(1, "hash", retryable=False, grace_seconds=0.05), list[str]()
    run.task = asyncio.create_task(running(run, seen))
    run.listen().close()
    await asyncio.sleep(0.02)
    again = run.listen()
    await asyncio.sleep(0.06)
    assert not seen, "the second attempt came within the grace"
    again.close()
    await asyncio.wait({run.task}, timeout=1)
    assert seen == ["cancelled"]


async def test_leaving_one_that_is_over_does_nothing() -> None:
    run = finished_run(replace(TURN, reply={"role": "assistant", "content": "ok"}))
    listener = run.listen()
    events = await collect(listener)
    assert [type(event) for event in events] == [TurnCreated, TurnDelta, TurnCompleted]
    assert events[1].text == "ok"
    listener.close()


async def test_leaving_while_it_cleans_up_does_not_cancel_that() -> None:
    run, seen = make_run(), list[str]()
    listener = run.listen()

    async def failing() -> None:
        run.begin()
        run.settle()
        await asyncio.sleep(0.02)
        seen.append("cleaned up")
        run.publish(TurnFailed(EngineFailed("x")))

    run.task = asyncio.create_task(failing())
    await asyncio.sleep(0)
    listener.close()
    await asyncio.wait({run.task}, timeout=1)
    assert seen == ["cleaned up"]
    assert run.over
