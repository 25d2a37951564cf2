"""Projects and keys in the catalog, and what the migration makes of those from before."""

from __future__ import annotations

from alembic import command
from sqlalchemy import text

from agentmem.catalog import Catalog
from agentmem.catalog.ids import default_project, now_us
from agentmem.catalog.keys import USE_WRITTEN_EVERY_US
from agentmem.core import TenantId
from tests.unit.catalog.conftest import alembic, make_session, on_sqlite


async def test_what_was_there_before_projects_is_the_defaults(catalog: Catalog) -> None:
    tenant = TenantId("ten_01m87y8r24vqk6tcrffb0r88gw")
    await alembic(catalog, command.downgrade, "0003")
    async with catalog._engine.begin() as connection:
        digest = "x'00'" if connection.dialect.name == "sqlite" else r"'\x00'"
        for statement in (
            f"INSERT INTO tenants (id, name, created_at) VALUES ('{tenant}', 'old', 7)",
            "INSERT INTO api_keys (id, tenant_id, name, prefix, hash, created_at) "
            f"VALUES ('key_1', '{tenant}', '', 'am_old', {digest}, 8)",
            "INSERT INTO sessions (id, tenant_id, model, metadata, state, turns, tokens, "
            "durable_position, rebases, kv_retention_seconds, log_retention_seconds, created_at, "
            f"updated_at) VALUES ('ses_1', '{tenant}', 'm', '{{}}', 'active', 0, 0, 0, 0, 1, 1, "
            "1, 1)",
        ):
            # Not `text`: colons are part of JSON.
            await connection.exec_driver_sql(statement)
    await alembic(catalog, command.upgrade, "head")
    async with catalog.reading() as tx:
        (project,) = await tx.projects.list(tenant)
        assert (project.id, project.name) == (default_project(tenant), "default")
        found = await tx.keys.find_by_prefix("am_old")
        assert found is not None
        assert (found[0].scopes, found[0].expires_at) == ("inference sessions:read", None)
        (session,) = await tx.sessions.list(tenant, after=None, limit=9, project_id=project.id)
        assert (session.id, session.project_id) == ("ses_1", None)


@on_sqlite
async def test_a_filter_by_project_walks_its_index(catalog: Catalog, tenant: TenantId) -> None:
    async with catalog.transaction() as tx:
        project = await tx.projects.create(tenant, "research")
        for number in range(3):
            await tx.sessions.create(
                make_session(tenant, project_id=project.id if number else None)
            )
    async with catalog.reading() as tx:
        found = await tx.sessions.list(tenant, after=None, limit=9, project_id=project.id)
        assert len(found) == 2
        default = default_project(tenant)
        assert len(await tx.sessions.list(tenant, after=None, limit=9, project_id=default)) == 1
    async with catalog._engine.connect() as connection:
        plan = await connection.execute(
            text(
                "EXPLAIN QUERY PLAN SELECT * FROM sessions WHERE tenant_id = 'a' "
                "AND project_id = 'b' ORDER BY created_at DESC, id DESC LIMIT 5"
            )
        )
        steps = " ".join(row[3] for row in plan)
    assert "ix_sessions_project_id_created_at" in steps
    assert "TEMP B-TREE" not in steps


async def test_last_use_is_written_once_a_minute(catalog: Catalog, tenant: TenantId) -> None:
    async with catalog.transaction() as tx:
        key = await tx.keys.create(tenant, name="", prefix="am_1", key_hash=bytes(32))
    now = now_us()

    async def note(at: int) -> int | None:
        async with catalog.transaction() as tx:
            await tx.keys.note_uses({key.id: at, "key_gone": at})
            return (await tx.keys.get(tenant, key.id)).last_used_at

    assert await note(now) == now
    assert await note(now + USE_WRITTEN_EVERY_US - 1) == now
    assert await note(now + USE_WRITTEN_EVERY_US) == now + USE_WRITTEN_EVERY_US
    # One whose clock is behind takes nothing back.
    assert await note(now) == now + USE_WRITTEN_EVERY_US
