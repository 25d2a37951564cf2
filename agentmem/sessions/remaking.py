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
from collections.abc import Sequence

from agentmem.catalog.ids import new_id
from agentmem.catalog.records import Worker
from agentmem.core import ClaimTerms, PageKey
from agentmem.engine.base import Engine, GenerateRequest, Sampling
from agentmem.errors import EngineFailed
from agentmem.pages.keys import page_keys
from agentmem.sessions.ports import Pages

_CLAIM_SECONDS = 600.0
_POLL_SECONDS = 0.05


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
        await _compute(engine, token_ids, salt)
        await _arrival(pages, [scratch[index] for index in absent])
        for index in absent:
            await pages.copy_page(scratch[index], keys[index])
    finally:
        await pages.unclaim(claim, scratch)


async def _compute(engine: Engine, token_ids: Sequence[int], salt: str) -> None:
    request = GenerateRequest(
        request_id=new_id("warm"),
        token_ids=list(token_ids),
        sampling=Sampling(max_tokens=0),
        salt=salt,
    )
    reason = None
    async for chunk in engine.generate(request):
        reason = chunk.finish_reason or reason
    if reason not in ("stop", "length"):
        raise EngineFailed(f"The worker did not finish the log ({reason or 'no reason'}).")


async def _arrival(pages: Pages, keys: Sequence[PageKey]) -> None:
    while not all(entry.tiers for entry in await pages.residency(keys)):
        await asyncio.sleep(_POLL_SECONDS)
