"""Proof that pages really leave the engine and really come back, with the bytes they had.

SGLang's storage threads can die while `/health` stays 200, and a plugin that SGLang failed to load
is only a line in its log. So a page is computed and seen to arrive at the node agent; then it is
copied under the key that another salt gives it, which the engine can have from storage only.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from agentmem.core import ClaimTerms, Fingerprint, PageKey
from agentmem.engine.base import CachedTokens, Engine, GenerateRequest, Sampling
from agentmem.errors import AgentmemError
from agentmem.pages.keys import page_keys

_POLL_SECONDS = 0.05
_CLAIM_SECONDS = 300.0


class CanaryFailed(AgentmemError):
    """Storing or loading does not work in this engine; `message` says which."""


class CanaryPages(Protocol):
    """What the canary needs of the node agent (see `node.client.NodeClient`). All calls block."""

    def claim(
        self,
        claim_id: str,
        keys: Sequence[PageKey],
        expires_at: float,
        *,
        terms: ClaimTerms | None = None,
    ) -> object:
        """Registers interest, so that the pages can be let go of by `unclaim`."""

    def unclaim(self, claim_id: str, keys: Sequence[PageKey]) -> object:
        """Deletes the pages."""

    def missing(self, keys: Sequence[PageKey]) -> Sequence[bool]:
        """Which pages are in no tier."""

    def copy_page(self, source: PageKey, target: PageKey) -> object:
        """Stores the bytes of one page under another key."""


@dataclass(frozen=True, slots=True)
class _Sample:
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    cached: CachedTokens


class Canary:
    """One per worker; `prove` may be called at any time, also under load."""

    def __init__(
        self,
        engine: Engine,
        pages: CanaryPages,
        *,
        fingerprint: Fingerprint,
        page_tokens: int,
        vocabulary: int,
        deadline_seconds: float = 30.0,
    ) -> None:
        self._engine = engine
        self._pages = pages
        self._fingerprint = fingerprint
        self._page_tokens = page_tokens
        self._vocabulary = vocabulary
        self._deadline_seconds = deadline_seconds

    async def prove(self) -> None:
        """Stores a page, loads it, compares. Raises CanaryFailed or EngineFailed.

        What is compared are two requests of equal shape, one with the page in HBM and one that
        loads it: kernels round differently for other shapes, so the request that computed the
        page would be no measure.
        """
        tokens = self._fresh_tokens()
        first, second = self._fresh_salt(), self._fresh_salt()
        source, target = self._key(first, tokens), self._key(second, tokens)
        claim = f"canary-{secrets.token_hex(8)}"
        expires_at = time.time() + _CLAIM_SECONDS
        await self._claim(claim, [source, target], expires_at)
        try:
            await self._sample(tokens, first)
            await self._arrival(source)
            held = await self._sample(tokens, first)
            await asyncio.to_thread(self._pages.copy_page, source, target)
            loaded = await self._sample(tokens, second)
        finally:
            await asyncio.to_thread(self._pages.unclaim, claim, [source, target])
        if loaded.cached.storage < self._page_tokens:
            raise CanaryFailed(
                f"a stored page was not loaded again: {loaded.cached.storage} of "
                f"{self._page_tokens} tokens came from storage"
            )
        if held.cached.device < self._page_tokens:
            raise CanaryFailed("a page that was just computed was not found in HBM")
        if (loaded.token_ids, loaded.logprobs) != (held.token_ids, held.logprobs):
            raise CanaryFailed("a loaded page gave another result than the one in HBM")

    async def store_barrier(self) -> None:
        """Returns when everything that SGLang had queued for storage before has been handed over.

        SGLang stores in order, with one thread: a page of now that arrived means that all before
        did. SIGTERM would drop that queue. Raises CanaryFailed when it does not arrive.
        """
        tokens, salt = self._fresh_tokens(), self._fresh_salt()
        key = self._key(salt, tokens)
        claim = f"canary-{secrets.token_hex(8)}"
        await self._claim(claim, [key], time.time() + _CLAIM_SECONDS)
        try:
            await self._sample(tokens, salt)
            await self._arrival(key)
        finally:
            await asyncio.to_thread(self._pages.unclaim, claim, [key])

    async def _claim(self, claim: str, keys: list[PageKey], expires_at: float) -> None:
        terms = ClaimTerms(retention="scratch")
        await asyncio.to_thread(self._pages.claim, claim, keys, expires_at, terms=terms)

    async def _sample(self, tokens: list[int], salt: str) -> _Sample:
        request = GenerateRequest(
            request_id=f"canary-{secrets.token_hex(8)}",
            token_ids=tokens,
            sampling=Sampling(max_tokens=1, ignore_eos=True),
            salt=salt,
            logprobs=True,
        )
        ids: tuple[int, ...] = ()
        logprobs: tuple[float, ...] = ()
        cached = CachedTokens()
        async with asyncio.timeout(self._deadline_seconds):
            async for chunk in self._engine.generate(request):
                ids += chunk.token_ids
                logprobs += chunk.logprobs
                cached = chunk.cached or cached
        return _Sample(ids, logprobs, cached)

    async def _arrival(self, key: PageKey) -> None:
        deadline = time.monotonic() + self._deadline_seconds
        while (await asyncio.to_thread(self._pages.missing, [key]))[0]:
            if time.monotonic() > deadline:
                raise CanaryFailed(
                    f"a computed page did not reach the node agent in {self._deadline_seconds:g} s"
                )
            await asyncio.sleep(_POLL_SECONDS)

    def _fresh_tokens(self) -> list[int]:
        # One page and the token after it, without which the page would not be looked up.
        return [secrets.randbelow(self._vocabulary) for _ in range(self._page_tokens + 1)]

    def _fresh_salt(self) -> str:
        return f"canary-{secrets.token_hex(16)}"

    def _key(self, salt: str, tokens: list[int]) -> PageKey:
        return page_keys(self._fingerprint, salt, tokens, self._page_tokens)[0]
