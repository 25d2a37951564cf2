from __future__ import annotations

import asyncio

import pytest

from agentmem.catalog import Catalog
from agentmem.catalog.ids import now_us
from agentmem.core import TenantId
from agentmem.errors import InvalidRequest, NotFound
from agentmem.plans.book import DEFAULT_PLAN, PlanBook, read_plan
from agentmem.plans.definition import DEFAULT
from agentmem.plans.operators import assign_plan, create_plan, list_plans, show_plan


async def test_a_change_is_a_new_version(catalog: Catalog) -> None:
    first, changes = await create_plan(catalog, "pro", {"sessions": 5})
    assert (first.version, changes) == (1, [("sessions", None, 5)])
    second, changes = await create_plan(catalog, "pro", {"sessions": 5, "contexts": 1})
    assert (second.version, changes) == (2, [("contexts", None, 1)])
    assert (await show_plan(catalog, "pro")).id == second.id
    assert (await show_plan(catalog, "pro@1")).definition.contexts is None
    assert (await show_plan(catalog, first.id or "")).version == 1
    listed = [(one.name, one.version) for one in await list_plans(catalog)]
    assert listed == [("default", 0), ("pro", 2), ("pro", 1)]


@pytest.mark.parametrize("name", ["default", "", "Pro", "a b", "x" * 101])
async def test_names_that_can_be_none(catalog: Catalog, name: str) -> None:
    with pytest.raises(InvalidRequest):
        await create_plan(catalog, name, {})


async def test_a_tenant_stays_with_its_version(catalog: Catalog, tenant: TenantId) -> None:
    await create_plan(catalog, "pro", {"sessions": 5})
    done = await assign_plan(catalog, "acme", "pro", overrides={"contexts": 2})
    assert done.changes == [("contexts", None, 2), ("sessions", None, 5)]
    await create_plan(catalog, "pro", {"sessions": 6})
    async with catalog.reading() as tx:
        plan = await read_plan(tx, tenant)
    assert (plan.name, plan.version, plan.definition.sessions) == ("pro", 1, 5)
    moved = await assign_plan(catalog, "acme", "pro")
    assert (moved.plan.version, moved.plan.definition.contexts) == (2, 2), "overrides stay"
    back = await assign_plan(catalog, "acme", "default", overrides={})
    assert back.plan.definition == DEFAULT


async def test_a_dry_run_changes_nothing(catalog: Catalog, tenant: TenantId) -> None:
    await create_plan(catalog, "pro", {"sessions": 5})
    told = await assign_plan(catalog, "acme", "pro", dry_run=True)
    assert told.changes == [("sessions", None, 5)]
    async with catalog.reading() as tx:
        assert await read_plan(tx, tenant) == DEFAULT_PLAN


async def test_what_is_not_there(catalog: Catalog, tenant: TenantId) -> None:
    for who, what in (("acme", "gold"), ("nobody", "default"), ("acme", "pro@7")):
        with pytest.raises(NotFound):
            await assign_plan(catalog, who, what)
    with pytest.raises(InvalidRequest):
        await show_plan(catalog, "pro@new")


async def test_the_book_asks_once_a_second(
    catalog: Catalog, tenant: TenantId, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmem.plans.book.CACHE_SECONDS", 0.05)
    await create_plan(catalog, "pro", {"sessions": 5})
    book = PlanBook(catalog)
    assert await book.of(tenant) is DEFAULT_PLAN
    await assign_plan(catalog, "acme", "pro")
    assert await book.of(tenant) is DEFAULT_PLAN, "remembered"
    await asyncio.sleep(0.06)
    assert (await book.of(tenant)).definition.sessions == 5
    await assign_plan(catalog, "acme", "default")
    book.forget(tenant)
    assert (await book.of(tenant)).definition == DEFAULT


async def test_a_lapse_moves_once(catalog: Catalog, tenant: TenantId) -> None:
    now = now_us()
    async with catalog.transaction() as tx:
        assert await tx.plans.move(
            tenant, before="active", state="notice", reason="unpaid", due_at=now
        )
        assert [one.tenant_id for one in await tx.plans.due(now)] == [tenant]
    steps = {"before": "notice", "state": "grace", "reason": "unpaid", "due_at": now + 10**9}
    async with catalog.transaction() as tx:
        assert not await tx.plans.move(tenant, due_by=now - 1, **steps), "not due yet"
        assert await tx.plans.move(tenant, due_by=now, **steps)
        assert not await tx.plans.move(tenant, due_by=now, **steps), "another was quicker"
        assert await tx.plans.due(now) == []
        assert [one.state for one in await tx.plans.in_state("grace")] == ["grace"]
    async with catalog.reading() as tx:
        plan = await read_plan(tx, tenant)
    assert (plan.state, plan.reason, plan.due_at) == ("grace", "unpaid", now + 10**9)
    await assign_plan(catalog, "acme", "default")
    async with catalog.reading() as tx:
        assert (await read_plan(tx, tenant)).state == "grace", "a plan does not end a lapse"
