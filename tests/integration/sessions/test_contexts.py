"""Contexts, truncation, deletion, and what a turn is said to have saved."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from agentmem.catalog.ids import new_id
from agentmem.errors import ContextOverflow, InvalidRequest, NotFound
from agentmem.sessions.contexts import ContextView, Document
from agentmem.sessions.messages import Framing
from agentmem.sessions.requests import AfterTurn, FromContext, InSession, ResponsePlan
from tests.integration.sessions.conftest import PAGE_TOKENS, World, make_caller

TEXT = "All that is known of the sea, the ship and the whale. " * 12


async def make_context(world: World) -> ContextView:
    return await world.service.contexts.create(
        world.caller,
        model=None,
        name="library",
        framing=Framing(),
        documents=[Document(f"{number}: {TEXT}", f"Book {number}") for number in range(4)],
        retention="persistent",
    )


class TestContexts:
    async def test_computed_once_and_stored_once(self, world: World) -> None:
        made = await make_context(world)
        tokens = made.session.session.tokens
        pages = tokens // PAGE_TOKENS
        assert made.session.session.kv_retention_seconds == 30 * 86_400
        assert len(world.worker.pages.pages) == pages
        shared = set(world.worker.pages.pages)
        turns = []
        for number in range(20):
            view = await world.service.create(
                world.caller.tenant_id, model=None, metadata={}, context_id=made.record.id
            )
            ask = [{"role": "user", "content": f"question {number}"}]
            turns.append(await world.turn(ask, InSession(view.session.id)))
        for turn in turns:
            assert turn.keep == tokens
            assert sum(turn.usage["cached_tokens"].values()) >= pages * PAGE_TOKENS
        # What the sessions added of their own begins behind the context's last full page.
        assert shared <= set(world.worker.pages.pages)
        async with world.catalog.reading() as tx:
            events = await tx.usage_events.list(world.caller.tenant_id)
        computed = [event.written_tokens + event.uncached_tokens for event in events]
        assert computed[0] == tokens
        assert max(computed[1:]) < 3 * PAGE_TOKENS

    async def test_a_resent_history_on_a_context_goes_on(self, world: World) -> None:
        made = await make_context(world)
        target = FromContext(made.record.id)
        first = await world.say("one", target)
        second = await world.say("two", target)
        assert (second.session_id, second.keep) == (first.session_id, first.log_tokens)
        other = await world.turn([{"role": "user", "content": "other"}], target)
        assert other.session_id != first.session_id
        assert other.keep == made.session.session.tokens

    async def test_it_outlives_its_context(self, world: World) -> None:
        made = await make_context(world)
        first = await world.say("one", FromContext(made.record.id))
        await world.service.contexts.delete(world.caller.tenant_id, made.record.id)
        with pytest.raises(NotFound):
            await world.service.contexts.get(world.caller.tenant_id, made.record.id)
        second = await world.turn([{"role": "user", "content": "two"}], AfterTurn(first.id))
        assert second.keep == first.log_tokens

    async def test_another_tenant_s(self, world: World) -> None:
        made = await make_context(world)
        other = await make_caller(world.catalog, "other")
        for attempt in (
            world.service.contexts.get(other.tenant_id, made.record.id),
            world.service.contexts.delete(other.tenant_id, made.record.id),
            replace(world, caller=other).turn(
                [{"role": "user", "content": "x"}], FromContext(made.record.id)
            ),
        ):
            with pytest.raises(NotFound):
                await attempt
        views, more = await world.service.contexts.list(
            other.tenant_id, after=None, limit=10, descending=True
        )
        assert (views, more) == ([], False)

    async def test_an_empty_one_and_one_too_long(self, world: World) -> None:
        with pytest.raises(InvalidRequest, match="needs messages"):
            await world.service.contexts.create(
                world.caller, model=None, name="x", framing=Framing()
            )
        with pytest.raises(ContextOverflow):
            await world.service.contexts.create(
                world.caller,
                model=None,
                name="x",
                framing=Framing(),
                documents=[Document(TEXT * 20)],
            )
        assert await world.count() == (0, 0)


class TestTruncation:
    async def test_the_beginning_stays_and_so_does_the_cut(self, world: World) -> None:
        world.history.append({"role": "system", "content": "You are kind. " + TEXT})
        turns = []
        for number in range(16):
            turn = await world.say(
                f"{number} {TEXT}", truncation="auto", max_tokens=40, ignore_eos=True
            )
            turns.append(turn)
        cuts = [turn for turn in turns if turn.dropped is not None]
        assert 1 <= len(cuts) <= 4
        assert len({turn.session_id for turn in turns}) == 1
        system = len(world.worker._chat.encode_now(TEXT))
        for cut in cuts:
            assert cut.keep > system, "the system message is not computed again"
            assert cut.dropped is not None
            assert cut.dropped[0] == 1
        # The turn after a cut continues what is left of the log.
        after = turns[turns.index(cuts[0]) + 1]
        assert after.keep == cuts[0].log_tokens
        assert not after.rebased
        # From the catalog the log reads the same.
        world.service._context.logs._logs.clear()
        again = await world.say("last", truncation="auto", max_tokens=40)
        assert again.keep == turns[-1].log_tokens

    async def test_disabled_says_the_limit_and_the_count(self, world: World) -> None:
        with pytest.raises(ContextOverflow, match="4096") as raised:
            await world.say(TEXT * 20)
        assert raised.value.tokens > raised.value.limit == 4096
        assert await world.count() == (0, 0)

    async def test_megabytes_are_refused_before_they_are_tokenized(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def never(*_: object) -> list[int]:
            raise AssertionError("tokenized")

        monkeypatch.setattr(type(world.worker._chat), "encode", never)
        with pytest.raises(ContextOverflow, match="at least"):
            await world.say(TEXT * 20_000)

    async def test_a_last_message_that_is_too_long_by_itself(self, world: World) -> None:
        await world.say("short")
        with pytest.raises(ContextOverflow):
            await world.say(TEXT * 20, truncation="auto")
        assert await world.count() == (1, 1)


def plan() -> ResponsePlan:
    return ResponsePlan(new_id("resp"), "responses", {"model": "fake"})


class TestRetract:
    async def test_the_end_of_a_log_goes(self, world: World) -> None:
        tenant = world.caller.tenant_id
        first = await world.turn([{"role": "user", "content": TEXT}], plan=plan())
        second_plan = plan()
        second = await world.turn(
            [{"role": "user", "content": TEXT}], AfterTurn(first.id), plan=second_plan
        )
        await asyncio.sleep(0.2)
        async with world.catalog.transaction() as tx:
            await tx.responses.delete(tenant, second_plan.id)
        freed = await world.service.retract(tenant, second.id)
        assert freed.pages >= (second.log_tokens - first.log_tokens) // PAGE_TOKENS
        view = await world.service.get(tenant, first.session_id)
        assert (view.session.head_turn_id, view.session.tokens) == (first.id, first.log_tokens)
        assert (await world.count())[0] == 1
        third = await world.turn([{"role": "user", "content": "on"}], AfterTurn(first.id))
        assert third.session_id == first.session_id

    async def test_what_others_build_on_stays_until_they_go(self, world: World) -> None:
        tenant = world.caller.tenant_id
        first_plan, second_plan = plan(), plan()
        first = await world.turn([{"role": "user", "content": TEXT}], plan=first_plan)
        second = await world.turn(
            [{"role": "user", "content": TEXT}], AfterTurn(first.id), plan=second_plan
        )
        async with world.catalog.transaction() as tx:
            await tx.responses.delete(tenant, first_plan.id)
        await world.service.retract(tenant, first.id)
        assert (await world.count())[0] == 2
        async with world.catalog.transaction() as tx:
            await tx.responses.delete(tenant, second_plan.id)
        await world.service.retract(tenant, second.id)
        assert (await world.count())[0] == 0
        with pytest.raises(NotFound):
            await world.service.get(tenant, first.session_id)
        await asyncio.sleep(0.2)
        assert world.worker.pages.pages == {}


async def test_seconds_saved_come_from_what_was_measured(world: World) -> None:
    world.worker.engine.prefill_seconds_per_token = 0.001
    first = await world.say(TEXT)
    assert first.usage["seconds_saved"] is None
    cold = await world.turn([{"role": "user", "content": "x " + TEXT * 2}])
    assert cold.usage["seconds_saved"] is None or sum(cold.usage["cached_tokens"].values())
    warm = await world.say("again")
    cached = sum(warm.usage["cached_tokens"].values())
    assert cached > 100
    assert 0.5 * cached < 1000 * warm.usage["seconds_saved"] < 1.5 * cached
