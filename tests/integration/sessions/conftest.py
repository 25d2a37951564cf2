"""The sessions service over a real catalog and the fake engine, without HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agentmem.catalog import Catalog, migrate
from agentmem.catalog.ids import new_id
from agentmem.catalog.records import Turn
from agentmem.core import TenantId
from agentmem.router.registry import Router
from agentmem.sessions.context import Context
from agentmem.sessions.limits import Limits
from agentmem.sessions.messages import Message
from agentmem.sessions.owner import make_owner
from agentmem.sessions.requests import (
    Caller,
    LongestPrefix,
    ResponsePlan,
    RetryKey,
    Target,
    TurnRequest,
)
from agentmem.sessions.secrets import load_secrets
from agentmem.sessions.service import SessionsService
from agentmem.telemetry import Metrics
from agentmem.testing.fake_worker import FakeWorker
from agentmem.testing.models import TOOLS_TEMPLATE, write_tokenizer

PAGE_TOKENS = 16


@dataclass(slots=True)
class World:
    """A service, what is behind it, and a tenant."""

    service: SessionsService
    catalog: Catalog
    worker: FakeWorker
    caller: Caller
    history: list[Message] = field(default_factory=list)

    async def turn(
        self,
        messages: Sequence[Message],
        target: Target | None = None,
        *,
        retry: RetryKey | None = None,
        plan: ResponsePlan | None = None,
        **fields: Any,
    ) -> Turn:
        """Runs a turn to its end; by default as chat completions do."""
        fields = {"max_tokens": 120, **fields}
        listener = await self.service.begin(
            self.caller,
            target or LongestPrefix("fake"),
            TurnRequest(tuple(messages), **fields),
            retry=retry,
            plan=plan,
        )
        try:
            return await listener.result()
        finally:
            listener.close()

    async def say(self, text: str, target: Target | None = None, **fields: Any) -> Turn:
        """Resends the whole history with one more message, as most clients do."""
        self.history.append({"role": "user", "content": text})
        turn = await self.turn(self.history, target, **fields)
        assert turn.reply is not None
        self.history.append(turn.reply)
        return turn

    async def count(self) -> tuple[int, int]:
        """Turns and usage events of the tenant."""
        async with self.catalog.reading() as tx:
            tenant = self.caller.tenant_id
            return await tx.turns.count(tenant), await tx.usage_events.count(tenant)


async def make_caller(catalog: Catalog, name: str) -> Caller:
    """A caller of a new tenant."""
    async with catalog.transaction() as tx:
        tenant = await tx.tenants.create(name)
    return Caller(TenantId(tenant.id), new_id("key"))


@pytest.fixture
async def world(empty_url: str, tmp_path: Path) -> AsyncIterator[World]:
    url = empty_url
    await migrate(url)
    catalog = Catalog(url)
    worker = FakeWorker(
        write_tokenizer(tmp_path / "model", template=TOOLS_TEMPLATE),
        page_tokens=PAGE_TOKENS,
        context_tokens=4096,
    )
    router = Router(catalog, worker.engine_for, silence_seconds_max=10.0)
    context = Context(
        catalog=catalog,
        router=router,
        pages=worker.pages,
        secrets=load_secrets(tmp_path / "secrets"),
        limits=Limits(retry_grace_seconds=1.0, model_aliases=("gpt-*",)),
        metrics=Metrics(),
        owner=make_owner(),
    )
    service = SessionsService(context)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(catalog.aclose)
        await stack.enter_async_context(worker.running(catalog))
        await stack.enter_async_context(service.running(drain_seconds=5.0))
        yield World(service, catalog, worker, await make_caller(catalog, "acme"))
