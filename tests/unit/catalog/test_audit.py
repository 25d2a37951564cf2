"""The audit log: a chain that shows what was done to it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from agentmem.administration.audit import AuditService, Verification
from agentmem.catalog import Catalog
from agentmem.errors import InvalidRequest


async def append(catalog: Catalog, number: int, **fields: Any) -> None:
    async with catalog.transaction() as tx:
        await tx.audit.append(
            actor="cli:me", action="test", target=f"t{number}", details={"n": number}, **fields
        )


async def filled(catalog: Catalog, entries: int = 5) -> None:
    for number in range(1, entries + 1):
        await append(catalog, number)


async def tamper(catalog: Catalog, *statements: str) -> None:
    """As whoever owns the database can: without the triggers."""
    async with catalog._engine.begin() as connection:
        dropping = ["DROP TRIGGER audit_log_no_update", "DROP TRIGGER audit_log_no_delete"]
        if connection.dialect.name == "postgresql":
            dropping = ["DROP TRIGGER audit_log_no_change ON audit_log"]
        for statement in dropping:
            await connection.execute(text(statement))
        for statement in statements:
            await connection.execute(text(statement))


async def verified(catalog: Catalog, expected_head: str | None = None) -> Verification:
    return await AuditService(catalog).verify(expected_head=expected_head)


async def test_a_chain_is_whole_and_grows(catalog: Catalog) -> None:
    empty = await verified(catalog)
    assert (empty.entries, empty.whole, empty.head) == (0, True, "00" * 32)
    await filled(catalog)
    first = await verified(catalog, empty.head)
    assert (first.entries, first.whole) == (5, True)
    await filled(catalog)
    assert (await verified(catalog, first.head)).whole
    newest = await AuditService(catalog).list(limit=2)
    assert [entry.sequence for entry in newest] == [10, 9]
    older = await AuditService(catalog).list(before=9, limit=2, target="t3")
    assert [entry.sequence for entry in older] == [8, 3]


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        ("UPDATE audit_log SET actor = 'cli:you' WHERE sequence = 3", "Entry 3 was changed"),
        ("UPDATE audit_log SET details = '{}' WHERE sequence = 3", "Entry 3 was changed"),
        ("UPDATE audit_log SET tenant_id = 'ten_x' WHERE sequence = 3", "Entry 3 was changed"),
        ("UPDATE audit_log SET at = at + 1 WHERE sequence = 1", "Entry 1 was changed"),
        ("DELETE FROM audit_log WHERE sequence = 3", "entry 3 is missing"),
        ("DELETE FROM audit_log WHERE sequence = 1", "entry 1 is missing"),
        ("DELETE FROM audit_log WHERE sequence = 5", "should end with entry 5"),
        ("DELETE FROM audit_log", "should end with entry 5"),
        (
            "INSERT INTO audit_log SELECT 6, at, actor, action, target, tenant_id, details, "
            "previous_hash, hash FROM audit_log WHERE sequence = 5",
            "Entry 6 does not follow",
        ),
    ],
)
async def test_what_was_done_to_it_is_found(catalog: Catalog, statement: str, finding: str) -> None:
    await filled(catalog)
    await tamper(catalog, statement)
    done = await verified(catalog)
    assert not done.whole
    assert any(finding in one for one in done.findings), done.findings


async def test_a_chain_made_anew_lacks_the_hash_that_was_kept(catalog: Catalog) -> None:
    sqlite = catalog.url.startswith("sqlite")
    zeros = "zeroblob(32)" if sqlite else "decode(repeat('00', 32), 'hex')"
    await filled(catalog)
    kept = (await verified(catalog)).head
    await tamper(
        catalog,
        "DELETE FROM audit_log",
        f"UPDATE audit_head SET sequence = 0, hash = {zeros}",
    )
    await filled(catalog, 3)
    assert (await verified(catalog)).whole
    assert kept in (await verified(catalog, kept)).findings[0]


@pytest.mark.parametrize(
    "statement", ["UPDATE audit_log SET actor = 'cli:you'", "DELETE FROM audit_log"]
)
async def test_the_table_takes_neither_updates_nor_deletes(
    catalog: Catalog, statement: str
) -> None:
    await filled(catalog)
    with pytest.raises(IntegrityError, match="append-only"):
        async with catalog._engine.begin() as connection:
            await connection.execute(text(statement))
    assert (await verified(catalog)).entries == 5


async def test_an_act_that_failed_leaves_no_entry_and_no_gap(catalog: Catalog) -> None:
    await filled(catalog, 1)

    async def fail() -> None:
        async with catalog.transaction() as tx:
            await tx.audit.append(actor="cli:me", action="test", target="t")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    with pytest.raises(InvalidRequest, match="8000"):
        await too_long(catalog)
    await filled(catalog, 1)
    done = await verified(catalog)
    assert (done.entries, done.whole) == (2, True)


async def too_long(catalog: Catalog) -> None:
    async with catalog.transaction() as tx:
        await tx.audit.append(actor="a", action="b", target="c", details={"x": "y" * 8_000})


async def test_several_gateways_append_to_one_chain(catalog: Catalog, url: str) -> None:
    other = Catalog(url)
    await asyncio.gather(*(append(one, n) for n in range(20) for one in (catalog, other)))
    await other.aclose()
    done = await verified(catalog)
    assert (done.entries, done.whole) == (40, True)
