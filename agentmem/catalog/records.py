"""Rows of the catalog as frozen values. Times are microseconds since the epoch (UTC)."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agentmem.core import Fingerprint, SessionId, TenantId, TurnId, WorkerId

WORKER_STATES = ("starting", "ready", "draining", "dead")


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who owns sessions."""

    id: TenantId
    name: str
    created_at: int


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key's row: never the key, only an HMAC of it."""

    id: str
    tenant_id: TenantId
    name: str
    prefix: str
    hash: bytes = field(repr=False)
    created_at: int
    revoked_at: int | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation's row. `head_turn_id` names the end of its chain of turns."""

    id: SessionId
    tenant_id: TenantId
    model: str
    metadata: Mapping[str, str]
    state: str
    head_turn_id: TurnId | None
    turns: int
    tokens: int
    durable_position: int
    rebases: int
    parent_session_id: SessionId | None
    fork_turn: int | None
    kv_retention_seconds: int
    log_retention_seconds: int
    worker_id: WorkerId | None
    worker_generation: int | None
    fingerprint: str | None
    page_tokens: int | None
    created_at: int
    updated_at: int


@dataclass(frozen=True, slots=True)
class Turn:
    """One committed turn; immutable.

    The log up to this turn is log(parent)[:keep] + tokens. Of the whole log, [0, prompt_tokens)
    was the prompt and [prompt_tokens, log_tokens) was sampled.
    """

    id: TurnId
    tenant_id: TenantId
    session_id: SessionId
    parent_turn_id: TurnId | None
    number: int
    keep: int
    tokens: array[int]
    prompt_tokens: int
    log_tokens: int
    rebased: bool
    messages: list[dict[str, str]]
    reply: dict[str, str]
    finish_reason: str
    sampling: Mapping[str, Any]
    usage: Mapping[str, Any]
    logprobs: list[float] | None
    body_hash: str
    created_at: int

    @property
    def output_ids(self) -> array[int]:
        """The sampled ids, as sampled."""
        return self.tokens[len(self.tokens) - (self.log_tokens - self.prompt_tokens) :]


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to extend one session's log, until `expires_at`."""

    tenant_id: TenantId
    session_id: SessionId
    owner: str
    generation: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class Worker:
    """One engine, as its worker process last described it.

    Tokens are counts; `kv_bytes_per_token` is bytes over all layers; `context_tokens` is the most
    that prompt and output may have together. `generation` grows by one at every start.
    """

    id: WorkerId
    url: str
    model: str
    model_path: str
    fingerprint: Fingerprint
    page_tokens: int
    context_tokens: int
    kv_bytes_per_token: int
    hbm_tokens: int
    host_pool_tokens: int
    node_socket: str
    state: str
    pid: int
    generation: int = 0
    heartbeat_at: int = 0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class PendingUnclaim:
    """Keys whose claim a node agent has yet to be told to drop."""

    id: str
    tenant_id: TenantId
    claim_id: str
    keys: tuple[bytes, ...]
    attempts: int
