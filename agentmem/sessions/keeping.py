"""What every turn should have left below the GPU: counted, and made again where it is missing.

SGLang offers a page once, and drops it without a word when its host pool is full. So a moment
after each turn the node agent is asked which of the log's floor((L-1)/page) pages it has. What does
not come is made again, one session at a time, while its worker has nothing else to do; so is what
the agent had to drop later, though it was claimed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from agentmem.catalog.records import Worker
from agentmem.core import PageKey, SessionId, TenantId, TurnId, durable_pages
from agentmem.errors import AgentmemError, NodeUnavailable, NotFound
from agentmem.sessions.context import Context, session_fingerprint
from agentmem.sessions.remaking import remake_absent
from agentmem.telemetry import get_logger

_log = get_logger("agentmem.sessions.keeping")

EXPECTED_MAX = 10_000
MISSED_MAX = 10_000
LOOKS_MAX = 3
ATTEMPTS_MAX = 3
_LOOK_SECONDS = 0.25
_BATCH = 200
_GIVE_UP_SECONDS = 120.0
_REMAKE_SECONDS_MAX = 120.0
_BUSY_POLL_SECONDS = 0.05
_OWNERS_MAX = 500


@dataclass(slots=True)
class Expected:
    """The pages that should be below the GPU after a turn."""

    tenant_id: TenantId
    session_id: SessionId
    turn_id: TurnId
    keys: Sequence[PageKey]
    begun: float = 0.0
    due: float = 0.0
    looks: int = 0


class Keeping:
    """See the module's docstring.

    `first_seconds` after a turn its pages are looked for, `again_seconds` later those that had not
    come yet, twice; `pause_seconds` lie between two sessions whose pages are made again. Each
    `lost_seconds` the agent is asked what it lost.
    """

    def __init__(
        self,
        context: Context,
        *,
        first_seconds: float = 1.0,
        again_seconds: float = 4.0,
        pause_seconds: float = 5.0,
        lost_seconds: float = 30.0,
    ) -> None:
        self._context = context
        self.first_seconds = first_seconds
        self.again_seconds = again_seconds
        self.pause_seconds = pause_seconds
        self.lost_seconds = lost_seconds
        self._lost_number = 0
        self._expected: OrderedDict[TurnId, Expected] = OrderedDict()
        # In the order in which they are made again; with attempts so far.
        self._missed: OrderedDict[SessionId, TenantId] = OrderedDict()
        self._attempts: Counter[SessionId] = Counter()
        self._any_expected = asyncio.Event()
        self._any_missed = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Turns whose pages were not all seen yet, and sessions with pages to be made again."""
        return len(self._expected) + len(self._missed)

    def expect(self, item: Expected) -> None:
        """A turn was committed. The oldest is forgotten when there are too many to look after."""
        if not item.keys:
            return
        item.begun = time.monotonic()
        item.due = item.begun + self.first_seconds
        self._expected[item.turn_id] = item
        self._any_expected.set()
        if len(self._expected) > EXPECTED_MAX:
            self._expected.popitem(last=False)

    async def run(self) -> None:
        """Works until cancelled."""
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._look_around())
            loops.create_task(self._make_around())
            loops.create_task(self._ask_around())

    async def _look_around(self) -> None:
        while True:
            if not self._expected:
                self._any_expected.clear()
                await self._any_expected.wait()
            await asyncio.sleep(_LOOK_SECONDS)
            now = time.monotonic()
            due = [item for item in self._expected.values() if item.due <= now][:_BATCH]
            for item in due:
                if not await self._look(item):
                    break

    async def _look(self, item: Expected) -> bool:
        """Counts what has arrived; False when the agent does not answer."""
        now = time.monotonic()
        item.due = now + self.again_seconds
        try:
            resident = await self._context.pages.residency(item.keys)
        except NodeUnavailable as error:
            self._context.metrics.node_failures.labels("residency").inc()
            _log.warning("pages not counted", turn_id=item.turn_id, error=error.message)
            if now - item.begun > _GIVE_UP_SECONDS:
                self._expected.pop(item.turn_id, None)
            return False
        missing = sum(not entry.tiers for entry in resident)
        item.looks += 1
        if not missing or item.looks >= LOOKS_MAX:
            self._expected.pop(item.turn_id, None)
            await self._settle(item, missing)
        return True

    async def _settle(self, item: Expected, missing: int) -> None:
        expected = len(item.keys)
        if missing and not await self._note(item, expected, expected - missing):
            return
        metrics = self._context.metrics
        metrics.pages_expected.inc(expected)
        metrics.pages_received.inc(expected - missing)
        if not missing:
            return
        metrics.pages_missing.inc(missing)
        _log.warning(
            "pages of a turn did not arrive",
            session_id=item.session_id,
            turn_id=item.turn_id,
            expected=expected,
            missing=missing,
        )
        self._miss(item.tenant_id, item.session_id)

    def _miss(self, tenant_id: TenantId, session_id: SessionId) -> None:
        self._missed[session_id] = tenant_id
        self._any_missed.set()
        if len(self._missed) > MISSED_MAX:
            self._missed.popitem(last=False)

    async def _ask_around(self) -> None:
        while True:
            try:
                await self.take_losses()
            except AgentmemError as error:
                _log.warning("losses not known", error=error.message)
            await asyncio.sleep(self.lost_seconds)

    async def take_losses(self) -> None:
        """Asks the agent what it lost since the last time. Raises AgentmemError."""
        lost = await self._context.pages.lost(self._lost_number)
        claims = sorted({page.claim_id for page in lost})
        for start in range(0, len(claims), _OWNERS_MAX):
            async with self._context.catalog.reading() as tx:
                owners = await tx.lapsing.owners(claims[start : start + _OWNERS_MAX])
            for tenant_id, session_id in owners:
                self._miss(tenant_id, session_id)
        self._lost_number = max((page.number for page in lost), default=self._lost_number)

    async def _note(self, item: Expected, expected: int, received: int) -> bool:
        """Writes it down with the turn. False when the log ends with that turn no more: it was
        deleted, whose pages are meant to be gone, or went on, whose next turn counts them."""
        try:
            async with self._context.catalog.transaction(durable=False) as tx:
                session = await tx.sessions.get(item.tenant_id, item.session_id)
                if session.head_turn_id != item.turn_id:
                    return False
                await tx.turns.note_pages(
                    item.tenant_id, item.turn_id, expected=expected, received=received
                )
        except NotFound:
            return False
        except AgentmemError as error:
            _log.warning("missing pages not recorded", turn_id=item.turn_id, error=error.message)
        return True

    async def _make_around(self) -> None:
        while True:
            if not self._missed:
                self._any_missed.clear()
                await self._any_missed.wait()
            await asyncio.sleep(self.pause_seconds)
            for session_id, tenant_id in list(self._missed.items()):
                try:
                    tried = await self._make(tenant_id, session_id)
                except NotFound:
                    self._forget(session_id)
                    continue
                except AgentmemError as error:
                    _log.warning("pages not made yet", session_id=session_id, error=error.message)
                    tried = False
                if tried:
                    break

    def _forget(self, session_id: SessionId) -> None:
        self._missed.pop(session_id, None)
        self._attempts.pop(session_id, None)

    async def _make(self, tenant_id: TenantId, session_id: SessionId) -> bool:
        """Makes a session's missing pages again; False when its worker has other things to do.

        Raises NotFound for a session that is gone, and what `Router.choose` raises.
        """
        context = self._context
        async with context.catalog.reading() as tx:
            session = await tx.sessions.get(tenant_id, session_id)
        fingerprint, page_tokens = session_fingerprint(session), session.page_tokens
        worker = await context.router.choose(session.model, session.worker_id)
        if fingerprint is None or page_tokens is None or worker.fingerprint != fingerprint:
            self._forget(session_id)  # its pages would be other pages now
            return False
        if context.router.running(worker):
            return False
        ids = await context.log_ids(session)
        keys = context.keys(tenant_id, fingerprint, ids, page_tokens)
        keys = keys[: durable_pages(len(ids), page_tokens)]
        making = asyncio.create_task(
            remake_absent(context, session, ids, keys, seconds_max=_REMAKE_SECONDS_MAX)
        )
        if await self._while_idle(making, worker):
            self._attempts[session_id] += 1
            resident = await context.pages.residency(keys)
            whole = all(entry.tiers for entry in resident)
            if whole or self._attempts[session_id] >= ATTEMPTS_MAX:
                self._forget(session_id)
            else:
                self._missed.move_to_end(session_id)
        return True

    async def _while_idle(self, making: asyncio.Task[bool], worker: Worker) -> bool:
        """Whether it came to its end before the worker got something else to do."""
        try:
            while not making.done():
                await asyncio.wait([making], timeout=_BUSY_POLL_SECONDS)
                if not making.done() and self._context.router.running(worker) > 1:
                    return False
            return True
        finally:
            making.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await making
