"""What the demo reads behind the API: a session's log and the page keys that follow from it."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from agentmem.catalog import Catalog
from agentmem.catalog.records import Turn, Worker
from agentmem.config import Settings
from agentmem.core import PageKey, TenantId, durable_pages
from agentmem.pages.keys import page_keys
from agentmem.sessions.log import join_ids
from agentmem.sessions.secrets import load_secrets


@dataclass(frozen=True, slots=True)
class SessionPages:
    """A log of `tokens` ids and the keys of its durable pages, `page_bytes` each."""

    token_ids: array[int]
    keys: tuple[PageKey, ...]
    page_bytes: int
    page_tokens: int
    first_prompt_tokens: int


def the_worker(settings: Settings) -> Worker:
    """The one worker of the demo's system, as the catalog knows it."""
    return asyncio.run(_worker(settings))


async def _worker(settings: Settings) -> Worker:
    catalog = Catalog(settings.catalog_url)
    try:
        async with catalog.reading() as tx:
            (worker,) = await tx.workers.list()
            return worker
    finally:
        await catalog.aclose()


def session_pages(settings: Settings, tenant: str, session: str) -> SessionPages:
    """The pages of a session, derived from its log as the control plane derives them."""
    chain = asyncio.run(_chain(settings, tenant, session))
    ids = join_ids(chain)
    worker = the_worker(settings)
    return SessionPages(
        token_ids=ids,
        keys=keys_of(settings, worker, tenant, ids),
        page_bytes=worker.page_tokens * worker.kv_bytes_per_token,
        page_tokens=worker.page_tokens,
        first_prompt_tokens=chain[0].prompt_tokens,
    )


def keys_of(
    settings: Settings, worker: Worker, tenant: str, token_ids: Sequence[int]
) -> tuple[PageKey, ...]:
    """Keys of the pages that exist after a turn left the log at `token_ids`."""
    salt = load_secrets(settings.secrets_dir).tenant_salt(TenantId(tenant))
    keys = page_keys(worker.fingerprint, salt, token_ids, worker.page_tokens)
    return tuple(keys[: durable_pages(len(token_ids), worker.page_tokens)])


async def _chain(settings: Settings, tenant: str, session: str) -> list[Turn]:
    catalog = Catalog(settings.catalog_url)
    try:
        async with catalog.reading() as tx:
            found = await tx.sessions.get(TenantId(tenant), session)
            if found is None or found.head_turn_id is None:
                raise LookupError(f"session {session} has no turns")
            return await tx.turns.chain(TenantId(tenant), found.head_turn_id)
    finally:
        await catalog.aclose()
