"""What every part of the sessions service works with."""

from __future__ import annotations

import asyncio
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from agentmem.catalog import Catalog
from agentmem.catalog.records import Session, Turn, Worker
from agentmem.core import ClaimTerms, Fingerprint, PageKey, TenantId, TurnId
from agentmem.errors import NotFound
from agentmem.pages.keys import page_keys
from agentmem.plans.classes import RetentionName, class_of
from agentmem.plans.service import Plans
from agentmem.router.registry import Router
from agentmem.sessions.chat import Chat
from agentmem.sessions.limits import Limits
from agentmem.sessions.log import Log, LogCache, empty_log, read_log
from agentmem.sessions.ports import Pages
from agentmem.sessions.secrets import Secrets
from agentmem.telemetry import Metrics

# Another gateway may have made the last turns of a log that is in memory here.
_TAIL_TURNS = 8


@dataclass(slots=True)
class Context:
    """Shared collaborators, plus the two caches: chats by model path and logs by turn."""

    catalog: Catalog
    router: Router
    pages: Pages
    secrets: Secrets
    limits: Limits
    metrics: Metrics
    owner: str
    logs: LogCache = field(init=False)
    plans: Plans = field(init=False)
    _chats: dict[str, Chat] = field(default_factory=dict)
    _loading: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self.logs = LogCache(self.limits.log_cache_bytes)
        self.plans = Plans(self.catalog)

    async def chat(self, worker: Worker) -> Chat:
        """The chat format of a worker's model; loaded once."""
        chat = self._chats.get(worker.model_path)
        if chat is None:
            async with self._loading:
                chat = self._chats.get(worker.model_path)
                if chat is None:
                    chat = await asyncio.to_thread(Chat.load, Path(worker.model_path))
                    self._chats[worker.model_path] = chat
        return chat

    async def log_at(
        self, tenant_id: TenantId, turn_id: TurnId | None, chat: Chat, *, now_us: int
    ) -> Log:
        """The log up to a turn, from memory or from the catalog. Raises NotFound."""
        if turn_id is None:
            return empty_log(now_us)
        log = self.logs.get(turn_id)
        if log is None:
            async with self.catalog.reading() as tx:
                chain = await tx.turns.chain(tenant_id, turn_id, last=_TAIL_TURNS)
                if not chain:
                    raise NotFound("turn", turn_id)
                base, chain = self._known(chain)
                if base is None and chain[0].parent_turn_id is not None:
                    chain = await tx.turns.chain(tenant_id, turn_id)
            log = await asyncio.to_thread(read_log, chain, chat, base)
            self.logs.put(log)
        return log

    def _known(self, chain: list[Turn]) -> tuple[Log | None, list[Turn]]:
        """The longest log in memory that the end of a chain goes on from, and what comes after."""
        for index in range(len(chain) - 1, -1, -1):
            parent = chain[index].parent_turn_id
            base = None if parent is None else self.logs.get(parent)
            if base is not None:
                return base, chain[index:]
        return None, chain

    async def log_ids(self, session: Session) -> array[int]:
        """The log's ids alone, which needs no tokenizer, hence no worker."""
        if session.head_turn_id is None:
            return array("I")
        log = self.logs.get(session.head_turn_id)
        if log is not None:
            return log.ids
        async with self.catalog.reading() as tx:
            return await tx.turns.token_ids(session.tenant_id, session.head_turn_id)

    async def claim_terms(self, session: Session) -> ClaimTerms:
        """What a claim on the session's pages says of them. Raises CatalogUnavailable."""
        plan = await self.plans.of(session.tenant_id)
        return ClaimTerms(
            self.secrets.tenant_tag(session.tenant_id),
            cast("RetentionName | None", session.retention)
            or class_of(session.kv_retention_seconds),
            self.limits.disk_encrypted,
            quota_bytes=plan.definition.promised_bytes,
        )

    def keys(
        self, tenant_id: TenantId, fingerprint: Fingerprint, ids: array[int], page_tokens: int
    ) -> list[PageKey]:
        """Keys of all full pages of `ids` (also of those that have no KV yet)."""
        return page_keys(fingerprint, self.secrets.tenant_salt(tenant_id), ids, page_tokens)


def session_fingerprint(session: Session) -> Fingerprint | None:
    """The fingerprint that the session's pages were last made under; None before its first turn."""
    return None if session.fingerprint is None else Fingerprint(bytes.fromhex(session.fingerprint))
