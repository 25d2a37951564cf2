"""The canary against an engine and an agent that can be broken in one way each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest

from agentmem.core import ClaimTerms, Fingerprint, PageKey
from agentmem.engine.base import CachedTokens, GenerateChunk, GenerateRequest
from agentmem.engine.sglang.canary import Canary, CanaryFailed
from agentmem.pages.keys import page_keys

FINGERPRINT = Fingerprint(bytes(16))
PAGE = 4


class Pages:
    """Pages by key; the bytes are the tokens they were made of."""

    def __init__(self) -> None:
        self.stored: dict[PageKey, bytes] = {}

    def claim(
        self,
        claim_id: str,
        keys: Sequence[PageKey],
        expires_at: float,
        *,
        terms: ClaimTerms | None = None,
    ) -> None:
        assert terms == ClaimTerms(retention="scratch")
        self.claimed = tuple(keys)

    def unclaim(self, claim_id: str, keys: Sequence[PageKey]) -> None:
        for key in keys:
            self.stored.pop(key, None)

    def missing(self, keys: Sequence[PageKey]) -> list[bool]:
        return [key not in self.stored for key in keys]

    def copy_page(self, source: PageKey, target: PageKey) -> None:
        self.stored[target] = self.stored[source]


class Engine:
    """Stores a page of each prompt and loads it, unless told not to."""

    def __init__(self, pages: Pages, *, stores: bool = True, loads: bool = True) -> None:
        self.pages, self.stores, self.loads, self.garbles = pages, stores, loads, False
        self.hbm: set[PageKey] = set()

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateChunk]:
        key = page_keys(FINGERPRINT, request.salt, request.token_ids, PAGE)[0]
        held = key in self.hbm
        hit = self.loads and not held and key in self.pages.stored
        if not held and not hit and self.stores:
            self.pages.stored[key] = b"page"
        self.hbm.add(key)
        token = 9 if hit and self.garbles else 8
        cached = CachedTokens(device=PAGE if held else 0, storage=PAGE if hit else 0)
        yield GenerateChunk((token,), (-1.0,), "length", len(request.token_ids), cached)

    async def abort(self, request_id: str) -> None: ...
    async def open_session(self, session_id: str) -> None: ...
    async def close_session(self, session_id: str) -> None: ...
    async def aclose(self) -> None: ...


def canary(engine: Engine, pages: Pages) -> Canary:
    return Canary(
        engine,
        pages,
        fingerprint=FINGERPRINT,
        page_tokens=PAGE,
        vocabulary=100,
        deadline_seconds=0.2,
    )


async def test_passes_and_leaves_nothing() -> None:
    pages = Pages()
    await canary(Engine(pages), pages).prove()
    assert pages.stored == {}


async def test_notices_that_nothing_is_stored() -> None:
    pages = Pages()
    with pytest.raises(CanaryFailed, match="did not reach the node agent"):
        await canary(Engine(pages, stores=False), pages).prove()


async def test_notices_that_nothing_is_loaded() -> None:
    pages = Pages()
    with pytest.raises(CanaryFailed, match="was not loaded"):
        await canary(Engine(pages, loads=False), pages).prove()
    assert pages.stored == {}


async def test_notices_other_bytes() -> None:
    pages = Pages()
    engine = Engine(pages)
    engine.garbles = True
    with pytest.raises(CanaryFailed, match="another result"):
        await canary(engine, pages).prove()


async def test_barrier_waits_for_the_page() -> None:
    pages = Pages()
    await canary(Engine(pages), pages).store_barrier()
    with pytest.raises(CanaryFailed):
        await canary(Engine(pages, stores=False), pages).store_barrier()
