"""Makes pages again that the engine holds but will not offer.

SGLang offers a page for storage once. A page that the agent deleted or lost afterwards (say, since
a session with the same beginning was deleted) stays in HBM, so that neither another turn nor
waiting brings it back. But KV does not depend on the salt: computed under a salt of its own, which
misses every cache, the page is offered again, and the agent copies it under the right key.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from array import array
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import cast

from agentmem.catalog.ids import new_id
from agentmem.catalog.records import Session, Worker
from agentmem.core import ClaimTerms, PageKey
from agentmem.engine.base import CachedTokens, Engine, GenerateChunk, GenerateRequest, Sampling
from agentmem.errors import AgentmemError, EngineFailed
from agentmem.pages.keys import page_keys
from agentmem.sessions.context import Context, session_fingerprint
from agentmem.sessions.ports import Pages
from agentmem.telemetry import get_logger

_log = get_logger("agentmem.sessions.remaking")
_CLAIM_SECONDS = 600.0
_POLL_SECONDS = 0.05


async def remake_absent(
    context: Context,
    session: Session,
    ids: array[int],
    keys: Sequence[PageKey],
    *,
    seconds_max: float,
) -> bool:
    """Makes those pages of a session's log again that are in no tier; False when all are in some.

    What goes wrong is not raised: whoever needs the pages finds out what is still missing.
    """
    try:
        resident = await context.pages.residency(keys)
        absent = [index for index, entry in enumerate(resident) if not entry.tiers]
        if not absent:
            return False
        _log.info("pages are made again", session_id=session.id, pages=len(absent))
        context.metrics.pages_remade.inc(len(absent))
        worker = await context.router.choose(session.model, session.worker_id)
        if worker.fingerprint != session_fingerprint(session):
            return True
        async with (
            asyncio.timeout(max(0.0, seconds_max)),
            context.router.running_on(worker) as assignment,
            assignment.gate.hold(len(ids)),
        ):
            await remake_pages(
                assignment.engine,
                context.pages,
                worker,
                token_ids=ids,
                keys=keys,
                absent=absent,
            )
    except (AgentmemError, TimeoutError) as error:
        _log.warning("pages not made again", session_id=session.id, error=repr(error))
    return True


async def send_prompt(
    engine: Engine, token_ids: Sequence[int], *, salt: str, session_id: str | None = None
) -> CachedTokens:
    """Has the engine load or compute a prompt, and sample nothing. Returns what it found where.

    Raises EngineFailed when it did not finish.
    """
    request = GenerateRequest(
        request_id=new_id("warm"),
        token_ids=list(token_ids),
        sampling=Sampling(max_tokens=0),
        salt=salt,
        session_id=session_id,
    )
    cached: CachedTokens | None = None
    reason: str | None = None
    async with aclosing(
        cast("AsyncGenerator[GenerateChunk, None]", engine.generate(request))
    ) as stream:
        async for chunk in stream:
            cached, reason = chunk.cached or cached, chunk.finish_reason or reason
    if reason not in ("stop", "length"):
        raise EngineFailed(f"The worker did not finish the log ({reason or 'no reason'}).")
    return cached or CachedTokens()


async def remake_pages(
    engine: Engine,
    pages: Pages,
    worker: Worker,
    *,
    token_ids: Sequence[int],
    keys: Sequence[PageKey],
    absent: Sequence[int],
) -> None:
    """Has `worker` compute the log and puts its pages `absent` (indexes into `keys`) back.

    Pages before the first absent one are copied first, so that they are loaded instead of
    computed. Ends only when all have arrived: bound it. Raises EngineFailed or NodeUnavailable.

    Nothing here waits for durability. The claim on the scratch pages is what protects them from
    eviction until they are copied, so that a log larger than the dram tier can be made again; the
    agent may write some of them meanwhile.
    """
    salt = f"remake-{secrets.token_hex(16)}"
    scratch = page_keys(worker.fingerprint, salt, token_ids, worker.page_tokens)[: len(keys)]
    claim = new_id("remake")
    terms = ClaimTerms(retention="scratch")
    await pages.claim(claim, scratch, time.time() + _CLAIM_SECONDS, terms=terms)
    try:
        for index in range(absent[0]):
            await pages.copy_page(keys[index], scratch[index])
        await send_prompt(engine, token_ids, salt=salt)
        await _arrival(pages, [scratch[index] for index in absent])
        for index in absent:
            await pages.copy_page(scratch[index], keys[index])
    finally:
        await pages.unclaim(claim, scratch)


async def _arrival(pages: Pages, keys: Sequence[PageKey]) -> None:
    while not all(entry.tiers for entry in await pages.residency(keys)):
        await asyncio.sleep(_POLL_SECONDS)
