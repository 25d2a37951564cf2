"""Rows of the catalog as frozen values. Times are microseconds since the epoch (UTC)."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agentmem.catalog.ids import default_project
from agentmem.core import Fingerprint, ProjectId, SessionId, TenantId, TurnId, WorkerId

WORKER_STATES = ("starting", "ready", "draining", "dead")


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who owns sessions."""

    id: TenantId
    name: str
    created_at: int
    default_model: str | None = None
    model_aliases: list[str] | None = None
    suspended_at: int | None = None


@dataclass(frozen=True, slots=True)
class Project:
    """A part of what a tenant does, told apart in lists and usage. Keys belong to one."""

    id: ProjectId
    tenant_id: TenantId
    name: str
    created_at: int


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key's row: never the key, only an HMAC of it. `scopes` are separated by spaces.

    `rotated_from`: the key that it took over from. `last_used_at` is up to a minute behind.
    """

    id: str
    tenant_id: TenantId
    name: str
    prefix: str
    hash: bytes = field(repr=False)
    created_at: int
    revoked_at: int | None = None
    project_id: ProjectId | None = None
    scopes: str = "inference sessions:read"
    expires_at: int | None = None
    last_used_at: int | None = None
    rotated_from: str | None = None


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
    origin: str = "session"
    context_id: str | None = None
    retention: str | None = None
    expires_at: int = 0
    asked_retention: str | None = None
    promised_pages: int | None = None
    promise_reason: str | None = None
    project_id: ProjectId | None = None

    @property
    def project(self) -> ProjectId:
        """Its project: the default one where none is named."""
        return self.project_id or default_project(self.tenant_id)


@dataclass(frozen=True, slots=True)
class Turn:
    """One committed turn; immutable. `reply` is None for a context's, which has messages only.

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
    messages: list[dict[str, Any]]
    reply: dict[str, Any] | None
    finish_reason: str
    sampling: Mapping[str, Any]
    usage: Mapping[str, Any]
    logprobs: list[float] | None
    body_hash: str
    created_at: int
    framing: Mapping[str, Any] | None = None
    prefix_hash: bytes | None = None
    dropped: tuple[int, int] | None = None
    top_logprobs: list[list[tuple[int, float]]] | None = None

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
    parser_address: str = ""
    tool_parser: str = ""
    reasoning_parser: str = ""


@dataclass(frozen=True, slots=True)
class PendingUnclaim:
    """Keys whose claim a node agent has yet to be told to drop."""

    id: str
    tenant_id: TenantId
    claim_id: str
    keys: tuple[bytes, ...]
    attempts: int


@dataclass(frozen=True, slots=True)
class Response:
    """A response object's row; what it says is in its turn and its items.

    `status` is "completed", "incomplete", "failed" or "cancelled"; only the first two have a turn.
    """

    id: str
    tenant_id: TenantId
    surface: str
    status: str
    stored: bool
    session_id: SessionId | None
    turn_id: TurnId | None
    previous_response_id: str | None
    conversation_id: str | None
    request: Mapping[str, Any]
    error: Mapping[str, Any] | None
    deltas: bytes | None
    created_at: int
    completed_at: int | None
    expires_at: int
    project_id: ProjectId | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a response or a conversation. `position` orders all items of a catalog."""

    id: str
    tenant_id: TenantId
    response_id: str | None
    conversation_id: str | None
    kind: str
    data: Mapping[str, Any]
    created_at: int
    position: int = 0


@dataclass(frozen=True, slots=True)
class UsageEvent:
    """What one turn used, in tokens: input = uncached + read + written, reasoning in output."""

    id: str
    tenant_id: TenantId
    api_key_id: str | None
    session_id: SessionId | None
    turn_id: TurnId
    response_id: str | None
    surface: str
    model: str
    retention: str | None
    input_tokens: int
    uncached_tokens: int
    read_tokens: int
    written_tokens: int
    output_tokens: int
    reasoning_tokens: int
    read_by_tier: Mapping[str, int]
    recomputed_tokens: int
    created_at: int
    project_id: ProjectId | None = None


@dataclass(frozen=True, slots=True)
class RetryRecord:
    """The answer to a request that may come again until `expires_at`."""

    id: str
    tenant_id: TenantId
    api_key_id: str
    request_key: str
    body_hash: str
    attempt: int
    turn_id: TurnId
    response_id: str | None
    created_at: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class ContextRecord:
    """A beginning that many sessions share."""

    id: str
    tenant_id: TenantId
    session_id: SessionId
    name: str
    metadata: Mapping[str, str]
    created_at: int


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One act of administration: who (`actor`) did what (`action`) to what (`target`), by ids.

    `sequence` counts from 1 without gaps. `details` is canonical JSON without secrets or content;
    `hash` is the SHA-256 over all of it and the `previous_hash` (see `catalog.audit`).
    """

    sequence: int
    at: int
    actor: str
    action: str
    target: str
    tenant_id: TenantId | None
    details: str
    previous_hash: bytes = field(repr=False)
    hash: bytes = field(repr=False)
