"""The engine boundary: token ids in, token ids and log-probabilities out, streamed.

Implementations: `engine.fake` (deterministic, no torch), `engine.sglang.client` (SGLang over HTTP).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. `max_tokens` 0 computes (and stores) the prompt's KV and samples nothing."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = -1
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One call of the engine.

    `request_id` names it for `abort`. `salt` seeds the page keys (never empty: SGLang treats an
    empty salt as none, and tenants would share pages). `session_id` is the preference for
    keeping its pages in HBM; None for requests outside of any session.
    """

    request_id: str
    token_ids: tuple[int, ...] | list[int]
    sampling: Sampling
    salt: str
    session_id: str | None = None
    logprobs: bool = False


@dataclass(frozen=True, slots=True)
class CachedTokens:
    """Prompt tokens that the engine did not compute, by where *it* found them."""

    device: int = 0
    host: int = 0
    storage: int = 0

    @property
    def total(self) -> int:
        return self.device + self.host + self.storage


@dataclass(frozen=True, slots=True)
class GenerateChunk:
    """A piece of the stream: newly sampled ids (the end-of-sequence id included).

    `logprobs` is as long as `token_ids` when asked for, else empty. The last chunk has
    `finish_reason` ("stop", "length", "abort") and `cached`.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    finish_reason: str | None = None
    prompt_tokens: int = 0
    cached: CachedTokens | None = None


class Engine(Protocol):
    """What computes. All methods raise `errors.EngineFailed` when the worker dies or errs."""

    def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateChunk]:
        """Streams the reply. Closing the iterator early aborts the request in the engine."""
        ...

    async def abort(self, request_id: str) -> None:
        """Ends a running request; unknown ids are ignored."""
        ...

    async def open_session(self, session_id: str) -> None:
        """Registers a session, so that the HBM evicts pages of unreferenced ones first."""
        ...

    async def close_session(self, session_id: str) -> None:
        """Dereferences a session in HBM; its pages are evicted when room is needed."""
        ...

    async def aclose(self) -> None:
        """Lets go of connections."""
        ...
