"""Repeats of requests: whoever sends the same again gets the answer that is running or done.

A request with an Idempotency-Key is the same for 24 hours, whatever it is sent for; with another
body it is a conflict. A client that only counts its attempts (`x-stainless-retry-count`) is
recognised by its API key, route and body for 10 minutes; each attempt takes one answer that no
later attempt has taken, so that two equal requests, both sent again, are still two.

What runs is remembered here; what was committed is in the catalog (`retries`), written with the
turn, so that a gateway that died in between changes nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import deque
from dataclasses import dataclass, field

from agentmem.catalog import Catalog
from agentmem.catalog.ids import new_id, now_us
from agentmem.catalog.records import RetryRecord, Turn
from agentmem.core import TenantId
from agentmem.errors import IdempotencyConflict
from agentmem.sessions.requests import Caller, ResponsePlan, RetryKey
from agentmem.sessions.runs import TurnRun, finished_run

IDEMPOTENCY_SECONDS = 86_400
ATTEMPT_SECONDS = 600
# Answers that nothing is stored of stay here, as long as an attempt may come and up to so many.
_UNSTORED_MAX = 500


@dataclass(slots=True, eq=False)
class Attempt:
    """One request under way: `run` is set when its turn has begun, or None when it never did."""

    name: tuple[str, str, str]
    body_hash: str
    number: int
    begun: float = field(default_factory=time.monotonic)
    run: asyncio.Future[TurnRun | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    unstored: bool = False

    def starts(self, run: TurnRun | None) -> None:
        """The turn runs, or (None) there will be none."""
        if not self.run.done():
            self.run.set_result(run)


class Retries:
    """See the module's docstring."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._attempts: dict[tuple[str, str, str], list[Attempt]] = {}
        self._unstored: deque[Attempt] = deque()

    def open(self, caller: Caller, key: RetryKey) -> Attempt:
        """Notes a request the moment that it is there: its repeat may overtake it."""
        name = (caller.tenant_id, caller.api_key_id, request_key(key))
        attempt = Attempt(name, key.body_hash, key.attempt)
        self._attempts.setdefault(name, []).append(attempt)
        return attempt

    def close(self, attempt: Attempt) -> None:
        """Forgets a request: it failed, or the catalog knows of it from now on."""
        attempt.starts(None)
        known = self._attempts.get(attempt.name, [])
        if attempt in known:
            known.remove(attempt)
        if not known:
            self._attempts.pop(attempt.name, None)

    def keep_unstored(self, attempt: Attempt) -> None:
        """The catalog knows nothing of this answer: it is kept here for a while."""
        attempt.unstored = True
        self._unstored.append(attempt)
        horizon = time.monotonic() - ATTEMPT_SECONDS
        while self._unstored and (
            len(self._unstored) > _UNSTORED_MAX or self._unstored[0].begun < horizon
        ):
            self.close(self._unstored.popleft())

    async def find(self, attempt: Attempt, key: RetryKey) -> TurnRun | None:
        """The run, or the replay, of an earlier request that this one repeats.

        Raises IdempotencyConflict when the key came with another body before.
        """
        if key.idempotency_key is None and key.attempt == 0:
            return None
        while True:
            earlier = self._earlier(attempt, key)
            if earlier is None:
                break
            run = await asyncio.shield(earlier.run)
            if run is not None and not await run.failed():
                earlier.number = max(earlier.number, key.attempt)
                return run
            self.close(earlier)
        return await self._committed(attempt, key)

    def _earlier(self, attempt: Attempt, key: RetryKey) -> Attempt | None:
        for other in self._attempts.get(attempt.name, []):
            if other is attempt:
                return None
            if key.idempotency_key is not None:
                _check_body(key, other.body_hash)
                return other
            if other.number < key.attempt:
                return other
        return None

    async def _committed(self, attempt: Attempt, key: RetryKey) -> TurnRun | None:
        tenant, api_key, request_key = attempt.name
        async with self._catalog.reading() as tx:
            found = await tx.retries.find(TenantId(tenant), api_key, request_key)
        for record in found:
            if key.idempotency_key is not None:
                _check_body(key, record.body_hash)
            elif record.attempt >= key.attempt:
                continue
            async with self._catalog.transaction(durable=False) as tx:
                if key.idempotency_key is None and not await tx.retries.take(record, key.attempt):
                    continue
                turn = await tx.turns.get(record.tenant_id, record.turn_id)
                return finished_run(turn, record.response_id)
        return None


def retry_record(
    caller: Caller, key: RetryKey, attempt: Attempt, turn: Turn, plan: ResponsePlan | None
) -> RetryRecord:
    """The row that goes with a turn: it is what the newest attempt so far has got."""
    seconds = ATTEMPT_SECONDS if key.idempotency_key is None else IDEMPOTENCY_SECONDS
    now = now_us()
    return RetryRecord(
        id=new_id("rty"),
        tenant_id=caller.tenant_id,
        api_key_id=caller.api_key_id,
        request_key=request_key(key),
        body_hash=key.body_hash,
        attempt=attempt.number,
        turn_id=turn.id,
        response_id=None if plan is None else plan.id,
        created_at=now,
        expires_at=now + seconds * 1_000_000,
    )


def request_key(key: RetryKey) -> str:
    """What a request is found by among others of its API key: hex SHA-256."""
    named = f"key {key.idempotency_key}" if key.idempotency_key else f"body {key.body_hash}"
    described = f"{key.scope}\n{named}\n{key.choice}"
    return hashlib.sha256(described.encode()).hexdigest()


def _check_body(key: RetryKey, body_hash: str) -> None:
    if body_hash != key.body_hash:
        raise IdempotencyConflict
