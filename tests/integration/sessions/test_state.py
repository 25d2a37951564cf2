"""What a resent history continues, and what it branches off from."""

from __future__ import annotations

import asyncio
import itertools
from array import array
from dataclasses import replace
from typing import Any

import pytest

from agentmem.catalog.records import Session, Turn
from agentmem.errors import NotFound, SessionBusy
from agentmem.sessions.log import LogCache, join_ids
from agentmem.sessions.messages import NO_FRAMING, Framing, Message
from agentmem.sessions.requests import AfterTurn, InSession, LongestPrefix, TurnRequest
from agentmem.sessions.service import SessionsService
from tests.integration.sessions.conftest import World, make_caller

LOOK: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks.",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
    },
}
TOOLS = Framing(tools=(LOOK,))


async def session_of(world: World, turn: Turn) -> Session:
    async with world.catalog.reading() as tx:
        return await tx.sessions.get(world.caller.tenant_id, turn.session_id)


async def log_of(world: World, turn: Turn) -> array[int]:
    async with world.catalog.reading() as tx:
        return join_ids(await tx.turns.chain(world.caller.tenant_id, turn.id))


async def test_a_resent_history_goes_on_with_its_session(world: World) -> None:
    turns = [await world.say(f"number {number} of the list") for number in range(4)]
    assert len({turn.session_id for turn in turns}) == 1
    assert [turn.number for turn in turns] == [1, 2, 3, 4]
    assert not any(turn.rebased for turn in turns)
    for before, after in itertools.pairwise(turns):
        assert after.keep == before.log_tokens
        assert sum(after.usage["cached_tokens"].values()) >= 0.9 * (before.log_tokens - 16)
    session = await session_of(world, turns[-1])
    assert (session.turns, session.origin) == (4, "request")
    assert await world.count() == (4, 4)


async def test_a_restarted_gateway_finds_it_in_the_catalog(world: World) -> None:
    first = await world.say("one")
    world.service._turns.bases._ends.clear()
    world.service._context.logs._logs.clear()
    second = await world.say("two")
    assert (second.session_id, second.keep) == (first.session_id, first.log_tokens)


async def test_turns_that_another_gateway_made_are_read_alone(world: World) -> None:
    """A log in memory, and the catalog's further on: as if all of it had been read."""
    first = await world.say("one")
    context = world.service._context
    known = context.logs.get(first.id)
    assert known is not None
    for text, framing in (("two", NO_FRAMING), ("three", TOOLS)):
        last = await world.say(text, framing=framing)
    chat = await context.chat(world.worker.worker)
    whole = context.logs.get(last.id)
    for logs in ([known], []):
        context.logs = LogCache(1 << 20)
        for log in logs:
            context.logs.put(log)
        read = await context.log_at(world.caller.tenant_id, last.id, chat, now_us=0)
        assert read == whole


async def test_many_conversations_that_begin_alike(world: World) -> None:
    """However many newer turns share the beginning, the longest one is found."""
    for number in range(3):
        await world.say(f"message {number}")
    for _ in range(60):
        await world.turn(world.history[:1], max_tokens=40)
    world.service._turns.bases._ends.clear()
    fourth = await world.say("message 3")
    assert fourth.number == 4


async def test_a_long_history_whose_end_is_not_known(world: World) -> None:
    first = await world.say("the beginning")
    strange = [
        {"role": role, "content": f"never said {number}"}
        for number in range(40)
        for role in ("user", "assistant")
    ]
    turn = await world.turn([*world.history, *strange, {"role": "user", "content": "go on"}])
    assert (turn.parent_turn_id, turn.keep) == (first.id, first.log_tokens)


async def test_ids_that_do_not_tokenize_to_themselves(world: World) -> None:
    chat = world.worker._chat
    letters = [chat.encode_now(letter)[0] for letter in "the pages of the book"]
    assert letters != chat.encode_now("the pages of the book")
    world.worker.engine.script.replies.append((*letters, chat.token_id("<|im_end|>") or 0))
    first = await world.say("read")
    assert first.reply is not None
    assert first.reply["content"] == "the pages of the book"
    second = await world.say("and then?")
    assert second.session_id == first.session_id
    assert (await log_of(world, second))[: first.log_tokens] == await log_of(world, first)


async def test_a_reply_that_the_client_trimmed(world: World) -> None:
    first = await world.say("[[reply:   spaced out  \n]]")
    trimmed: Message = {
        "role": "assistant",
        "content": str(first.reply and first.reply["content"]).strip(),
    }
    world.history[-1] = trimmed
    second = await world.say("next")
    assert (second.session_id, second.keep) == (first.session_id, first.log_tokens)


async def test_thinking_that_the_client_dropped(world: World) -> None:
    first = await world.say("[[think: let me see]][[reply: it is so]]")
    assert first.reply is not None
    assert first.reply["reasoning_content"].strip() == "let me see"
    assert first.usage["reasoning_tokens"] > 0
    world.history[-1] = {"role": "assistant", "content": first.reply["content"]}
    second = await world.say("next")
    assert (second.session_id, second.keep, second.rebased) == (
        first.session_id,
        first.log_tokens,
        False,
    )


async def test_a_call_after_thinking_is_not_thinking(world: World) -> None:
    thought = "I had better look at the sea first"
    turn = await world.say(f'[[think: {thought}]][[call: look {{"at": "sea"}}]]', framing=TOOLS)
    assert turn.reply is not None
    assert len(turn.reply["tool_calls"]) == 1
    tokens = len(world.worker._chat.encode_now(f"<think>\n{thought}\n</think>\n\n"))
    assert 0 < turn.usage["reasoning_tokens"] <= tokens < turn.usage["output_tokens"] - 10


async def test_tool_calls_with_other_json(world: World) -> None:
    first = await world.say('[[call: look {"at": "the sea", "z": 1}]]', framing=TOOLS)
    assert first.reply is not None
    (call,) = first.reply["tool_calls"]
    assert call["function"]["name"] == "look"
    changed = {
        **call,
        "id": "call_mine",
        "function": {"name": "look", "arguments": '{"z":1,  "at":"the sea"}'},
    }
    world.history[-1] = {"role": "assistant", "content": "", "tool_calls": [changed]}
    world.history.append({"role": "tool", "content": "blue", "tool_call_id": "call_mine"})
    second = await world.say("and?", framing=TOOLS)
    assert (second.session_id, second.keep) == (first.session_id, first.log_tokens)


async def test_tools_with_their_keys_in_another_order(world: World) -> None:
    first = await world.say("hello", framing=TOOLS)
    other: dict[str, Any] = {
        "function": dict(reversed(LOOK["function"].items())),
        "type": "function",
    }
    second = await world.say("again", framing=Framing(tools=(other,)))
    assert (second.session_id, second.keep) == (first.session_id, first.log_tokens)


async def test_other_tools_are_another_conversation(world: World) -> None:
    first = await world.say("hello", framing=TOOLS)
    second = await world.say("again")
    assert second.session_id != first.session_id


async def test_an_edited_history_branches_off_where_it_was_edited(world: World) -> None:
    turns = [await world.say(f"message {number}") for number in range(3)]
    edited = [*world.history[:4], {"role": "user", "content": "something else"}]
    branch = await world.turn(edited)
    assert branch.session_id != turns[0].session_id
    assert (branch.number, branch.parent_turn_id) == (3, turns[1].id)
    assert branch.keep == turns[1].log_tokens
    session = await session_of(world, branch)
    assert (session.parent_session_id, session.fork_turn) == (turns[0].session_id, 2)
    # The old one goes on, too.
    again = await world.say("message 3")
    assert again.session_id == turns[0].session_id


async def test_a_regenerated_reply_branches_off(world: World) -> None:
    first = await world.say("one")
    second = await world.say("two", temperature=1.0, seed=1)
    again = await world.turn(world.history[:-1], temperature=1.0, seed=2)
    assert (again.parent_turn_id, again.number) == (first.id, second.number)
    assert again.session_id != second.session_id


async def test_eight_at_once_from_one_history_never_wait(world: World) -> None:
    first = await world.say("the beginning")
    stall = asyncio.Event()
    world.worker.engine.script.stall = stall
    calls = [
        asyncio.create_task(
            world.turn([*world.history, {"role": "user", "content": f"branch {number}"}])
        )
        for number in range(8)
    ]
    while len(world.worker.engine.calls) < 9:
        await asyncio.sleep(0.01)  # all eight run at the same time
    stall.set()
    turns = await asyncio.gather(*calls)
    assert len({turn.session_id for turn in turns}) == 8
    assert {turn.parent_turn_id for turn in turns} == {first.id}
    assert await world.count() == (9, 9)
    for number, turn in enumerate(turns):
        assert turn.reply is not None
        history = [*world.history, *turn.messages, turn.reply, {"role": "user", "content": "on"}]
        on = await world.turn(history)
        assert (on.session_id, on.keep) == (turn.session_id, turn.log_tokens), number


async def test_two_gateways_that_extend_one_session(world: World) -> None:
    """They know nothing of each other: whoever commits second branches off."""
    await world.say("the beginning")
    other = replace(world, service=SessionsService(world.service._context))
    history = [*world.history, {"role": "user", "content": "on"}]
    world.worker.engine.token_seconds = 0.005
    one, two = await asyncio.gather(world.turn(history), other.turn(history))
    assert one.session_id != two.session_id
    assert await world.count() == (3, 3)
    for turn in (one, two):
        async with world.catalog.reading() as tx:
            session = await tx.sessions.get(world.caller.tenant_id, turn.session_id)
        assert (session.head_turn_id, session.turns) == (turn.id, 2)


async def test_a_named_turn_is_not_overtaken(world: World) -> None:
    """A session that is held is branched off from, whatever ends first."""
    first = await world.say("the beginning")
    world.worker.engine.token_seconds = 0.01
    named = asyncio.create_task(
        world.turn([{"role": "user", "content": "named"}], InSession(first.session_id))
    )
    await asyncio.sleep(0.03)
    other = replace(world, service=SessionsService(world.service._context))
    implicit = await other.turn(
        [*world.history, {"role": "user", "content": "implicit"}], max_tokens=1
    )
    assert (await named).session_id == first.session_id
    assert implicit.session_id != first.session_id


async def test_the_same_request_twice_at_once_is_two_turns(world: World) -> None:
    await world.say("the beginning")
    history = [*world.history, {"role": "user", "content": "same"}]
    one, other = await asyncio.gather(world.turn(history), world.turn(history))
    assert one.session_id != other.session_id
    # Both replies are the same, so whoever goes on finds one that is free.
    assert one.reply is not None
    more = [*history, one.reply, {"role": "user", "content": "on"}]
    a, b = await asyncio.gather(world.turn(more), world.turn(more))
    assert a.session_id != b.session_id


async def test_only_a_named_session_is_busy(world: World) -> None:
    view = await world.service.create(world.caller.tenant_id, model=None, metadata={})
    target = InSession(view.session.id)
    stall = asyncio.Event()
    world.worker.engine.script.stall = stall
    running = asyncio.create_task(world.turn([{"role": "user", "content": "a"}], target))
    while not world.worker.engine.calls:
        await asyncio.sleep(0.01)
    with pytest.raises(SessionBusy):
        await world.turn([{"role": "user", "content": "b"}], target)
    stall.set()
    await running


async def test_a_session_that_was_named_is_not_extended_by_a_resent_history(world: World) -> None:
    view = await world.service.create(world.caller.tenant_id, model=None, metadata={})
    mine = await world.turn([{"role": "user", "content": "a"}], InSession(view.session.id))
    assert mine.reply is not None
    history = [*mine.messages, mine.reply, {"role": "user", "content": "b"}]
    other = await world.turn(history)
    assert other.session_id != view.session.id
    assert other.keep == mine.log_tokens
    assert (await world.service.get(world.caller.tenant_id, view.session.id)).session.turns == 1


class TestAfterTurn:
    async def test_a_chain_is_one_session(self, world: World) -> None:
        first = await world.say("one")
        second = await world.turn([{"role": "user", "content": "two"}], AfterTurn(first.id))
        third = await world.turn([{"role": "user", "content": "three"}], AfterTurn(second.id))
        assert first.session_id == second.session_id == third.session_id
        # The same conversation, resent as a whole, is found, too.
        assert second.reply is not None
        assert third.reply is not None
        told = [*world.history, *second.messages, second.reply, *third.messages, third.reply]
        fourth = await world.turn([*told, {"role": "user", "content": "four"}])
        assert (fourth.session_id, fourth.keep) == (third.session_id, third.log_tokens)

    async def test_an_earlier_turn_branches_off(self, world: World) -> None:
        first = await world.say("one")
        second = await world.turn([{"role": "user", "content": "two"}], AfterTurn(first.id))
        other = await world.turn([{"role": "user", "content": "deux"}], AfterTurn(first.id))
        assert other.session_id != second.session_id
        assert (other.parent_turn_id, other.number) == (first.id, 2)

    async def test_other_instructions_go_on_with_the_messages(self, world: World) -> None:
        first = await world.turn(
            [{"role": "user", "content": "one"}], framing=Framing(instructions="Be kind.")
        )
        second = await world.turn(
            [{"role": "user", "content": "two"}],
            AfterTurn(first.id),
            framing=Framing(instructions="Be brief."),
        )
        assert second.rebased
        shown = world.worker._chat.decode((await log_of(world, second)), special=True)
        assert "Be brief." in shown
        assert "Be kind." not in shown
        assert "one" in shown

    async def test_another_tenant_s_turn(self, world: World) -> None:
        first = await world.say("one")
        other = replace(world, caller=await make_caller(world.catalog, "other"))
        with pytest.raises(NotFound):
            await other.turn([{"role": "user", "content": "x"}], AfterTurn(first.id))
        resent = [*world.history, {"role": "user", "content": "two"}]
        theirs = await other.turn(resent)
        assert theirs.session_id != first.session_id
        assert theirs.keep == 0
        assert sum(theirs.usage["cached_tokens"].values()) == 0


class TestWholeInSession:
    async def test_only_what_is_new_is_appended(self, world: World) -> None:
        view = await world.service.create(
            world.caller.tenant_id, model=None, metadata={}, origin="conversation"
        )
        target = InSession(view.session.id, whole=True)
        first = await world.say("one", target=target)
        second = await world.say("two", target=target)
        assert (second.number, second.keep) == (2, first.log_tokens)
        world.service._context.logs._logs.clear()
        third = await world.say("three", target=target)
        assert (third.number, third.keep) == (3, second.log_tokens)

    async def test_a_deleted_item_goes_back_to_where_it_was(self, world: World) -> None:
        view = await world.service.create(
            world.caller.tenant_id, model=None, metadata={}, origin="conversation"
        )
        target = InSession(view.session.id, whole=True)
        first = await world.say("one", target=target)
        await world.say("two", target=target)
        del world.history[2:4]
        third = await world.say("three", target=target)
        assert (third.number, third.parent_turn_id) == (2, first.id)
        shown = world.worker._chat.decode(await log_of(world, third), special=True)
        assert "two" not in shown
        session = await session_of(world, third)
        assert (session.turns, session.tokens) == (2, third.log_tokens)
        # Nothing of it is left behind.
        await world.service.delete(world.caller.tenant_id, view.session.id)
        assert (await world.count())[0] == 0


async def test_nothing_is_kept_where_nothing_is_to_be_stored(world: World) -> None:
    turn = await world.say("a secret", store=False)
    assert await world.count() == (0, 1)
    with pytest.raises(NotFound):
        await session_of(world, turn)
    second = await world.say("again", store=False)
    assert second.number == 1
    await asyncio.sleep(0.1)
    assert world.service._tracker.watching == 0


async def test_a_model_s_alias(world: World) -> None:
    tenant = world.caller.tenant_id
    assert await world.service.resolve_model(tenant, "gpt-5") == "fake"
    assert await world.service.resolve_model(tenant, None) == "fake"
    assert await world.service.count_tokens(
        world.caller, LongestPrefix("fake"), _request("hello")
    ) == len(
        world.worker._chat.encode_now("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n")
    )


def _request(text: str) -> TurnRequest:
    return TurnRequest(({"role": "user", "content": text},))
