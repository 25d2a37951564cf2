"""The engine boundary: token ids in, token ids and log-probabilities out, streamed.

Implementations: `engine.fake` (deterministic, no torch), `engine.sglang.client` (SGLang over HTTP).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from agentmem.engine.output import OutputParser, OutputSpec


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the sampled text must match. `value` is a JSON schema, a regular expression, an EBNF
    grammar or a structural tag (the last three in SGLang's and xgrammar's words). With
    `after_thinking`, only what comes after the model's thoughts must."""

    kind: Literal["json_schema", "regex", "ebnf", "structural_tag"]
    value: str
    after_thinking: bool = False


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. `max_tokens` 0 computes (and stores) the prompt's KV and samples nothing.

    `logit_bias` maps token ids to what is added to their logits.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = -1
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One call of the engine.

    `request_id` names it for `abort`. `salt` seeds the page keys (never empty: SGLang treats an
    empty salt as none, and tenants would share pages). `session_id` is the preference for
    keeping its pages in HBM; None for requests outside of any session. `top_logprobs` is how many
    alternatives to tell for each sampled token (only with `logprobs`).
    """

    request_id: str
    token_ids: tuple[int, ...] | list[int]
    sampling: Sampling
    salt: str
    session_id: str | None = None
    logprobs: bool = False
    top_logprobs: int = 0


@dataclass(frozen=True, slots=True)
class CachedTokens:
    """Prompt tokens that the engine did not compute, by where *it* found them."""

    device: int = 0
    host: int = 0
    storage: int = 0

    @property
    def total(self) -> int:
        return self.device + self.host + self.storage


Alternatives = tuple[tuple[int, float], ...]
"""The likeliest ids at one position with their log-probabilities, likeliest first."""


@dataclass(frozen=True, slots=True)
class GenerateChunk:
    """A piece of the stream: newly sampled ids (the end-of-sequence id included).

    `logprobs` is as long as `token_ids` when asked for, else empty; so is `top_logprobs`. The last
    chunk has `finish_reason` ("stop", "length", "abort") and `cached`.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    finish_reason: str | None = None
    prompt_tokens: int = 0
    cached: CachedTokens | None = None
    top_logprobs: tuple[Alternatives, ...] = ()


class Engine(Protocol):
    """What computes. All methods raise `errors.EngineFailed` when the worker dies or errs."""

    def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateChunk]:
        """Streams the reply. Closing the iterator early aborts the request in the engine."""
        ...

    async def open_parser(self, spec: OutputSpec) -> OutputParser:
        """A parser for one reply in the model's own format; close it."""
        ...

    async def tool_constraint(self, spec: OutputSpec) -> Constraint | None:
        """What makes the model call a tool as `spec.tool_choice` demands; None: nothing needed.

        Raises InvalidRequest when the tools' schemas cannot be made a grammar.
        """
        ...

    async def schema_constraint(self, spec: OutputSpec, schema: str) -> Constraint:
        """What makes the visible reply match a JSON schema; thoughts before it are free."""
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
