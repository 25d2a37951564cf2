"""Projects: parts of what a tenant does. Keys belong to one; sessions and usage carry it."""

from __future__ import annotations

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from agentmem.catalog import admin_tables as tables
from agentmem.catalog.ids import default_project, new_id, now_us
from agentmem.catalog.records import Project
from agentmem.core import ProjectId, TenantId
from agentmem.errors import InvalidRequest, NotFound

DEFAULT_NAME = "default"
PROJECTS_MAX = 1_000


class Projects:
    """Statements on `projects`; see `database.Transaction`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def create(self, tenant_id: TenantId, name: str) -> Project:
        """Raises InvalidRequest when the name is none or taken, or there are too many."""
        if not name.strip() or len(name) > 200 or "\x00" in name:
            raise InvalidRequest("A project's name has 1 to 200 characters.", param="name")
        known = await self.list(tenant_id)
        if any(project.name == name for project in known):
            raise InvalidRequest(f"A project named {name!r} exists.", param="name")
        if len(known) >= PROJECTS_MAX:
            raise InvalidRequest(f"A tenant has {PROJECTS_MAX} projects at most.", param="name")
        # The first one is the default: its id follows from the tenant's.
        project_id = ProjectId(new_id("prj")) if known else default_project(tenant_id)
        project = Project(project_id, tenant_id, name, now_us())
        await self._connection.execute(
            insert(tables.projects).values(
                id=project.id,
                tenant_id=tenant_id,
                name=project.name,
                created_at=project.created_at,
            )
        )
        return project

    async def get(self, tenant_id: TenantId, name_or_id: str) -> Project:
        """A project by its name or id. Raises NotFound, for those of other tenants alike."""
        table = tables.projects
        row = (
            await self._connection.execute(
                select(table).where(
                    table.c.tenant_id == tenant_id,
                    (table.c.id == name_or_id) | (table.c.name == name_or_id),
                )
            )
        ).first()
        if row is None:
            raise NotFound("project", name_or_id)
        return Project(**row._mapping)

    async def list(self, tenant_id: TenantId) -> list[Project]:
        """A tenant's projects, oldest first."""
        table = tables.projects
        rows = await self._connection.execute(
            select(table)
            .where(table.c.tenant_id == tenant_id)
            .order_by(table.c.created_at, table.c.id)
        )
        return [Project(**row._mapping) for row in rows]
