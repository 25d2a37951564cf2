"""What time does to rows: each query finds what is due, in order, and nothing else."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from sqlalchemy import event, text

from agentmem.catalog import Catalog, Transaction
from agentmem.catalog.ids import new_id, now_us
from agentmem.catalog.records import Item, Response, RetryRecord, Session, Turn
from agentmem.core import TenantId
from agentmem.errors import NotFound
from tests.unit.catalog.conftest import make_session, make_turn, make_worker, on_sqlite


async def add_session(
    tx: Transaction, tenant: TenantId, **fields: Any
) -> tuple[Session, Turn | None]:
    """A session; `turn=True`: with one turn."""
    with_turn = fields.pop("turn", False)
    session = make_session(tenant, **fields)
    turn = None
    if with_turn:
        turn = make_turn(session, None)
        await tx.turns.insert(turn)
        session = replace(session, head_turn_id=turn.id, turns=1, tokens=turn.log_tokens)
    await tx.sessions.create(session)
    return session, turn


def make_response(tenant: TenantId, **fields: Any) -> Response:
    now = now_us()
    values: dict[str, Any] = {
        "id": new_id("resp"),
        "tenant_id": tenant,
        "surface": "responses",
        "status": "completed",
        "stored": True,
        "session_id": None,
        "turn_id": None,
        "previous_response_id": None,
        "conversation_id": None,
        "request": {},
        "error": None,
        "deltas": None,
        "created_at": now,
        "completed_at": now,
        "expires_at": 1,
    }
    return Response(**{**values, **fields})


async def test_active_sessions_in_batches_oldest_first(catalog: Catalog, tenant: TenantId) -> None:
    async with catalog.transaction() as tx:
        made = [(await add_session(tx, tenant, updated_at=at))[0] for at in (30, 10, 20, 20, 40)]
        await add_session(tx, tenant, updated_at=5, state="hibernated")
    found, last = list[Session](), None
    async with catalog.reading() as tx:
        while batch := await tx.lapsing.active(before_us=40, after=last, limit=2):
            found += batch
            last = batch[-1]
    assert found == sorted(made[:4], key=lambda session: (session.updated_at, session.id))


async def test_hibernated_only_as_it_was_seen(catalog: Catalog, tenant: TenantId) -> None:
    async with catalog.transaction() as tx:
        session, turn = await add_session(tx, tenant, turn=True)
        assert turn is not None
        assert not await tx.lapsing.set_hibernated(replace(session, updated_at=1), position=0)
        other = replace(session, head_turn_id=None)
        assert not await tx.lapsing.set_hibernated(other, position=0)
        assert await tx.lapsing.set_hibernated(session, position=12)
        assert not await tx.lapsing.set_hibernated(session, position=12)
        now = await tx.sessions.get(tenant, session.id)
        assert now == replace(session, state="hibernated", durable_position=12)
        again = make_turn(session, turn)
        await tx.turns.insert(again)
        await tx.sessions.advance(now, again, make_worker())
        assert (await tx.sessions.get(tenant, session.id)).state == "active"


async def test_expired_sessions_longest_over_first(catalog: Catalog, tenant: TenantId) -> None:
    async with catalog.transaction() as tx:
        ids = [(await add_session(tx, tenant, expires_at=at))[0].id for at in (3, 1, 2, 9)]
    async with catalog.reading() as tx:
        assert await tx.lapsing.expired(3, limit=9) == [(tenant, ids[n]) for n in (1, 2, 0)]
        assert await tx.lapsing.expired(3, limit=1) == [(tenant, ids[1])]


async def test_a_response_of_a_conversation_lives_as_long_as_it(
    catalog: Catalog, tenant: TenantId
) -> None:
    now = now_us()
    async with catalog.transaction() as tx:
        session, _ = await add_session(tx, tenant, expires_at=now + 1000)
        of_session = {"session_id": session.id}
        alone = make_response(tenant, **of_session)
        kept = make_response(tenant, **of_session, conversation_id="conv_x")
        gone = make_response(tenant, session_id="ses_gone", conversation_id="conv_y")
        later = make_response(tenant, expires_at=now + 1)
        for response in (alone, kept, gone, later):
            await tx.responses.insert(response)
        item = Item("msg_1", tenant, alone.id, None, "input", {}, now)
        await tx.items.append([item, replace(item, id="msg_2", response_id=kept.id)])
        assert await tx.lapsing.expire_responses(now, limit=100) == 2
        assert await tx.lapsing.expire_responses(now, limit=100) == 0
        assert (await tx.responses.get(tenant, kept.id)).expires_at == session.expires_at
        assert await tx.responses.get(tenant, later.id) == later
        for response in (alone, gone):
            try:
                await tx.responses.get(tenant, response.id)
            except NotFound:
                continue
            raise AssertionError(response)
        rows = await tx.items._connection.execute(text("SELECT id FROM items"))
        assert [row.id for row in rows] == ["msg_2"]
        assert await tx.lapsing.expire_responses(session.expires_at + 1, limit=1) == 1


async def test_retries(catalog: Catalog, tenant: TenantId) -> None:
    def retry(expires_at: int) -> RetryRecord:
        key = new_id("rty")
        return RetryRecord(key, tenant, "key", key, "00", 0, "turn_1", None, 1, expires_at)  # type: ignore[arg-type]

    now = now_us()
    async with catalog.transaction() as tx:
        records = [retry(at) for at in (1, 2, now + 10**9)]
        for record in records:
            await tx.retries.insert(record)
        assert await tx.lapsing.expire_retries(2, limit=1) == 1
        assert await tx.lapsing.expire_retries(2, limit=9) == 1
        assert await tx.lapsing.expire_retries(2, limit=9) == 0
        assert await tx.retries.find(tenant, "key", records[2].request_key) == [records[2]]


@on_sqlite
async def test_every_query_walks_an_index(catalog: Catalog, tenant: TenantId) -> None:
    """No query reads a whole table, however many rows are not due."""
    queries = {
        "SELECT * FROM sessions WHERE state = 'active' AND updated_at < 1"
        " ORDER BY updated_at, id LIMIT 5": "ix_sessions_state_updated_at",
        "SELECT id FROM sessions WHERE expires_at <= 1 ORDER BY expires_at LIMIT 5": (
            "ix_sessions_expires_at"
        ),
        "SELECT id FROM responses WHERE expires_at <= 1 ORDER BY expires_at LIMIT 5": (
            "ix_responses_expires_at"
        ),
        "SELECT id FROM retries WHERE expires_at <= 1 ORDER BY expires_at LIMIT 5": (
            "ix_retries_expires_at"
        ),
    }
    async with catalog.reading() as tx:
        for query, index in queries.items():
            plan = await tx.sessions._connection.execute(text(f"EXPLAIN QUERY PLAN {query}"))
            assert index in " ".join(str(row) for row in plan), query


async def test_what_is_behind_is_found_by_its_index(catalog: Catalog, tenant: TenantId) -> None:
    async with catalog.transaction() as tx:
        for _ in range(20):
            await add_session(tx, tenant, state="hibernated")
    asked: list[str] = []
    engine = catalog._engine.sync_engine
    listen = lambda _c, _cursor, statement, *_: asked.append(statement)  # noqa: E731
    event.listen(engine, "before_cursor_execute", listen)
    async with catalog.reading() as tx:
        assert await tx.lapsing.active(before_us=now_us(), behind=True, limit=5) == []
    event.remove(engine, "before_cursor_execute", listen)
    (query,) = (statement for statement in asked if "FROM sessions" in statement)
    sqlite = catalog.url.startswith("sqlite")
    for value in ("'active'", "1", "5", "0"):
        query = re.sub(r"\?|%\(\w+\)s", value, query, count=1)
    async with catalog._engine.connect() as connection:
        if not sqlite:
            await connection.exec_driver_sql("SET enable_seqscan = off")
        explain = "EXPLAIN QUERY PLAN" if sqlite else "EXPLAIN"
        plan = await connection.exec_driver_sql(f"{explain} {query}")
        assert "ix_sessions_behind" in " ".join(str(row) for row in plan)
