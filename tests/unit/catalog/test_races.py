"""Two transactions at once on PostgreSQL, where there is no one writer: each race, step by step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from agentmem.catalog import Catalog, Transaction
from agentmem.catalog.ids import new_id, now_us
from agentmem.catalog.records import RetryRecord, Session, Turn
from agentmem.core import TenantId
from agentmem.errors import CatalogConflict, InvalidRequest
from tests.unit.catalog.conftest import make_session, make_turn, make_worker
from tests.unit.catalog.test_lapsing import make_response

pytestmark = pytest.mark.parametrize("url", ["postgresql"], indirect=True)


@pytest.fixture
async def other(catalog: Catalog) -> AsyncIterator[Catalog]:
    """Another gateway's."""
    made = Catalog(catalog.url)
    yield made
    await made.aclose()


async def waits(task: asyncio.Task[object]) -> None:
    """The task is waiting for a lock."""
    await asyncio.sleep(0.2)
    assert not task.done()


async def started(
    catalog: Catalog, work: Callable[[Transaction], Awaitable[object]]
) -> asyncio.Task[object]:
    task: asyncio.Task[object] = asyncio.create_task(catalog.attempt(work))
    await asyncio.sleep(0)
    return task


async def log(catalog: Catalog, tenant: TenantId, turns: int = 2) -> tuple[Session, list[Turn]]:
    """A session with turns."""
    session, made = make_session(tenant), list[Turn]()
    async with catalog.transaction() as tx:
        for _ in range(turns):
            made.append(make_turn(session, made[-1] if made else None))
            await tx.turns.insert(made[-1])
        session = replace(session, head_turn_id=made[-1].id, turns=turns)
        await tx.sessions.create(session)
    return session, made


async def delete(tx: Transaction, session: Session) -> int:
    assert session.head_turn_id is not None
    await tx.sessions.delete(session.tenant_id, session.id)
    return await tx.turns.prune(session.tenant_id, session.head_turn_id)


class TestLeases:
    async def test_one_of_two_gets_it(
        self, catalog: Catalog, other: Catalog, tenant: TenantId
    ) -> None:
        session, _ = await log(catalog, tenant)
        async with catalog.transaction() as tx:
            assert await tx.leases.acquire(tenant, session.id, "a", seconds=60)
            second = await started(
                other, lambda tx: tx.leases.acquire(tenant, session.id, "b", seconds=60)
            )
            await waits(second)
        assert await second is None

    async def test_a_commit_is_not_overtaken(
        self, catalog: Catalog, other: Catalog, tenant: TenantId
    ) -> None:
        """The lease has expired; who checked it first commits, the next owner comes after."""
        session, turns = await log(catalog, tenant)
        async with catalog.transaction() as tx:
            lease = await tx.leases.acquire(tenant, session.id, "a", seconds=-1)
        assert lease is not None
        async with catalog.transaction() as tx:
            assert await tx.leases.is_current(lease)
            second = await started(
                other, lambda tx: tx.leases.acquire(tenant, session.id, "b", seconds=60)
            )
            await waits(second)
            turn = make_turn(session, turns[-1])
            await tx.turns.insert(turn)
            assert await tx.sessions.advance(session, turn, make_worker()) is not None
        assert await second is not None
        async with catalog.transaction() as tx:
            assert not await tx.leases.is_current(lease)

    async def test_none_is_taken_while_it_is_looked_at(
        self, catalog: Catalog, other: Catalog, tenant: TenantId
    ) -> None:
        session, _ = await log(catalog, tenant)
        async with catalog.transaction() as tx:
            assert await tx.leases.find(tenant, session.id, lock=True) is None
            second = await started(
                other, lambda tx: tx.leases.acquire(tenant, session.id, "b", seconds=60)
            )
            await waits(second)
        assert await second is not None


class TestTurns:
    async def test_what_is_built_upon_is_not_deleted(
        self, catalog: Catalog, other: Catalog, tenant: TenantId
    ) -> None:
        session, turns = await log(catalog, tenant, 3)
        async with catalog.transaction() as tx:
            assert await tx.turns.pin(tenant, turns[1].id)
            deleting = await started(other, lambda tx: delete(tx, session))
            await waits(deleting)
            branch = make_session(tenant, head_turn_id=turns[1].id)
            await tx.sessions.create(branch)
        assert await deleting == 1
        async with catalog.reading() as tx:
            assert len(await tx.turns.chain(tenant, turns[1].id)) == 2

    async def test_what_is_deleted_is_not_built_upon(
        self, catalog: Catalog, other: Catalog, tenant: TenantId
    ) -> None:
        session, turns = await log(catalog, tenant)
        async with catalog.transaction() as tx:
            await delete(tx, session)
            pinning = await started(other, lambda tx: tx.turns.pin(tenant, turns[0].id))
            await waits(pinning)
        assert await pinning is False

    @pytest.mark.parametrize("function", ["prune_leaf", "prune_abandoned"])
    async def test_a_leaf_that_gets_a_child(
        self, catalog: Catalog, other: Catalog, tenant: TenantId, function: str
    ) -> None:
        session, (turn,) = await log(catalog, tenant, 1)
        async with catalog.transaction() as tx:
            await tx.sessions.delete(tenant, session.id)
        async with catalog.transaction() as tx:
            assert await tx.turns.pin(tenant, turn.id)
            of = turn.id if function == "prune_leaf" else session.id
            pruning = await started(other, lambda tx: getattr(tx.turns, function)(tenant, of))
            await waits(pruning)
            await tx.turns.insert(make_turn(make_session(tenant), turn))
        await pruning
        async with catalog.reading() as tx:
            assert await tx.turns.exists(tenant, turn.id)

    async def test_two_deletions_of_logs_with_a_common_beginning(
        self, catalog: Catalog, other: Catalog, tenant: TenantId
    ) -> None:
        session, turns = await log(catalog, tenant, 3)
        async with catalog.transaction() as tx:
            branch = make_session(tenant, head_turn_id=turns[1].id)
            await tx.sessions.create(branch)
        async with catalog.transaction() as tx:
            await delete(tx, session)
            second = await started(other, lambda tx: delete(tx, branch))
            await waits(second)
        assert await second == 2
        async with catalog.reading() as tx:
            assert await tx.turns.count(tenant) == 0


async def test_a_name_is_taken_once(catalog: Catalog, other: Catalog) -> None:
    async with catalog.transaction() as tx:
        await tx.tenants.create("acme")
        second = await started(other, lambda tx: tx.tenants.create("acme"))
        await waits(second)
    with pytest.raises(InvalidRequest, match="exists"):
        await second


async def test_one_answer_to_a_key(catalog: Catalog, other: Catalog, tenant: TenantId) -> None:
    name = (tenant, "key", "ab")
    now = now_us()
    record = RetryRecord(new_id("rty"), *name, "00", 0, "turn", None, now, now + 10**9)

    async def answer(tx: Transaction) -> bool:
        await tx.retries.lock(*name)
        if await tx.retries.find(*name):
            return False
        await tx.retries.insert(replace(record, id=new_id("rty")))
        return True

    async with catalog.transaction() as tx:
        assert await answer(tx)
        second = await started(other, answer)
        await waits(second)
    assert await second is False


async def test_what_another_deletes_is_not_waited_for(
    catalog: Catalog, other: Catalog, tenant: TenantId
) -> None:
    async with catalog.transaction() as tx:
        for _ in range(3):
            await tx.responses.insert(make_response(tenant))
    async with catalog.transaction() as tx:
        assert await tx.lapsing.expire_responses(now_us(), limit=2) == 2
        async with asyncio.timeout(5), other.transaction() as second:
            assert await second.lapsing.expire_responses(now_us(), limit=10) == 1


async def test_a_response_is_noted_once(catalog: Catalog, other: Catalog, tenant: TenantId) -> None:
    response = make_response(tenant)
    async with catalog.transaction() as tx:
        assert await tx.responses.insert_first(response)
        second = await started(other, lambda tx: tx.responses.insert_first(response))
        await waits(second)
    assert await second is False


async def test_a_deadlock_is_tried_again(
    catalog: Catalog, other: Catalog, tenant: TenantId
) -> None:
    sessions = [(await log(catalog, tenant))[0] for _ in range(2)]
    met, tries = asyncio.Barrier(2), 0

    async def crosswise(tx: Transaction, order: list[Session]) -> None:
        nonlocal tries
        tries += 1
        for session in order:
            await tx.sessions.renew(session)
            if tries <= 2 and session is order[0]:
                await met.wait()

    await asyncio.gather(
        catalog.attempt(lambda tx: crosswise(tx, sessions)),
        other.attempt(lambda tx: crosswise(tx, sessions[::-1])),
    )
    assert tries == 3


async def test_a_missing_row_is_a_conflict(catalog: Catalog, tenant: TenantId) -> None:
    with pytest.raises(CatalogConflict, match="changed meanwhile"):
        async with catalog.transaction() as tx:
            await tx.sessions.create(make_session(tenant, head_turn_id="turn_gone"))


async def test_a_reader_sees_one_state(catalog: Catalog, tenant: TenantId) -> None:
    async with catalog.reading() as tx:
        assert len(await tx.tenants.list()) == 1
        async with catalog.transaction() as writing:
            await writing.tenants.create("later")
        assert len(await tx.tenants.list()) == 1
