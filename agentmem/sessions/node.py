"""The `Pages` port over a real node agent: its client blocks, so calls run in threads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from agentmem.core import ClaimTerms, PageKey, Tier
from agentmem.errors import (
    AgentmemError,
    InvalidRequest,
    NodeUnavailable,
    NotFound,
    StoreRefused,
)
from agentmem.node.address import Address
from agentmem.node.client import NodeClient
from agentmem.sessions.ports import Admitted, Freed, LostPage, NodeStats, PageResidency
from agentmem.telemetry import get_logger

_log = get_logger("agentmem.sessions.node")

T = TypeVar("T")

_CALL_SECONDS = 5.0
# A turn asks for the sequence before it runs: an agent that hangs may delay only one of them.
_SEQUENCE_SECONDS = 0.5
_SEQUENCE_PAUSE_SECONDS = 5.0
_THREADS = 32


class NodePages:
    """See `ports.Pages`. One per gateway; any number of calls at once, 32 of them waiting."""

    def __init__(self, address: Address) -> None:
        self._client = NodeClient(address, role="gateway", timeout_seconds=_CALL_SECONDS)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="node-client")
        self._no_sequence_until = 0.0

    async def claim(
        self,
        claim_id: str,
        keys: Sequence[PageKey],
        expires_at: float,
        *,
        terms: ClaimTerms | None = None,
    ) -> Admitted:
        """See `ports.Pages`."""
        promised = await self._call(
            lambda: self._client.claim(claim_id, keys, expires_at, terms=terms)
        )
        return Admitted(promised.pages, promised.reason)

    async def unclaim(self, claim_id: str, keys: Sequence[PageKey]) -> Freed:
        """See `ports.Pages`."""
        deleted = await self._call(lambda: self._client.unclaim(claim_id, keys))
        return Freed(deleted.pages, deleted.page_bytes)

    async def residency(self, keys: Sequence[PageKey]) -> list[PageResidency]:
        """See `ports.Pages`."""
        entries = await self._call(lambda: self._client.residency(keys))
        return [
            PageResidency(tuple(tier for tier in Tier if tier in entry.tiers), entry.durable)
            for entry in entries
        ]

    async def copy_page(self, source: PageKey, target: PageKey) -> None:
        """See `ports.Pages`."""
        await self._call(lambda: self._client.copy_page(source, target))

    async def wait_durable(self, keys: Sequence[PageKey], timeout_seconds: float) -> list[int]:
        """See `ports.Pages`."""
        return await self._call(lambda: self._client.wait_durable(keys, timeout_seconds))

    def begin_prefetch(self, keys: Sequence[PageKey]) -> None:
        """See `ports.Pages`."""
        self._threads.submit(self._prefetch, keys)

    def _prefetch(self, keys: Sequence[PageKey]) -> None:
        try:
            self._client.prefetch(keys, Tier.DISK, 0.0)
        except AgentmemError as error:
            _log.warning("pages are not prefetched", error=error.message)

    async def demote(self, keys: Sequence[PageKey], timeout_seconds: float) -> list[int]:
        """See `ports.Pages`."""

        def demote() -> list[int]:
            return self._client.demote(keys, release=True, timeout_seconds=timeout_seconds)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, demote)
        except StoreRefused as error:
            if error.reason == "no_object_tier":
                raise InvalidRequest(
                    "This deployment has no object tier.",
                    param="tier",
                    hint="Set AGENTMEM_OBJECT_URL, or hibernate to disk.",
                ) from error
            raise NodeUnavailable(f"the object tier took nothing: {error.message}") from error

    async def sequence(self) -> int:
        """See `ports.Pages`. After a failure it fails at once for a while."""
        if time.monotonic() < self._no_sequence_until:
            raise NodeUnavailable("the node agent did not answer a moment ago")
        try:
            loaded = await self._call(lambda: self._client.loads(timeout_seconds=_SEQUENCE_SECONDS))
        except NodeUnavailable:
            self._no_sequence_until = time.monotonic() + _SEQUENCE_PAUSE_SECONDS
            raise
        return loaded.seq

    async def loads(self, keys: Sequence[PageKey], since: int) -> dict[Tier, int]:
        """See `ports.Pages`."""
        loaded = await self._call(lambda: self._client.loads(keys, since))
        counts: dict[Tier, int] = {}
        for tier in loaded.tiers:
            if tier is not None:
                counts[tier] = counts.get(tier, 0) + 1
        return counts

    async def lost(self, after: int) -> list[LostPage]:
        """See `ports.Pages`."""
        losses = await self._call(lambda: self._client.dropped(after))
        return [LostPage(loss.seq, loss.claim_id) for loss in losses]

    async def stats(self) -> NodeStats:
        """See `ports.Pages`."""
        state = await self._call(lambda: self._client.state(timeout_seconds=_SEQUENCE_SECONDS))
        return NodeStats(state.gauges, state.counters, state.degraded)

    async def aclose(self) -> None:
        """Hangs up; calls still waiting fail with NodeUnavailable."""
        self._client.close()
        await asyncio.to_thread(self._threads.shutdown)

    async def _call(self, call: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except (InvalidRequest, NotFound, StoreRefused) as error:
            # What the agent refuses is between it and us: the caller's request is not at fault.
            raise NodeUnavailable(f"the node agent refused: {error.message}") from error
