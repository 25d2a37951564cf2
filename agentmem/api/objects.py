"""What the API answers: one model per object, for the document, and functions that make them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, Field

from agentmem.catalog.records import Session, Turn
from agentmem.core import SessionId
from agentmem.plans.classes import RetentionName
from agentmem.sessions.hibernation import Hibernated, Resumed
from agentmem.sessions.ports import Freed
from agentmem.sessions.views import SessionResidency, SessionView

_US = 1_000_000


class ErrorDetail(BaseModel):
    """What went wrong; `param` names the field at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorObject(BaseModel):
    """Every error has this shape."""

    error: ErrorDetail


class ParentObject(BaseModel):
    """Where a fork came from."""

    session_id: str
    turn: int


class SessionObject(BaseModel):
    """A session. `durable_position` and `tokens` count tokens of its log, `pages` full pages."""

    id: str
    object: Literal["session"]
    created_at: int = Field(description="Seconds since the epoch.")
    updated_at: int
    model: str
    state: Literal["active", "running", "hibernated"]
    turns: int
    tokens: int
    durable_position: int
    pages: int
    parent: ParentObject | None
    rebases: int
    metadata: dict[str, str]
    origin: Literal["session", "conversation", "context", "request"] = Field(
        description="What made it; `request`: nobody named it."
    )
    context: str | None = Field(description="The context that it began with.")
    project: str = Field(description="That of the key which made it.")
    retention: RetentionName | None = Field(
        description="The class that the terms are of; null: they were given one by one."
    )
    asked_retention: RetentionName | None = Field(
        description="The class that was asked for, where the tenant's plan does not have it."
    )
    promise: PromiseObject
    kv_retention_seconds: int
    log_retention_seconds: int
    expires_at: int = Field(
        description="Its id, text and log are valid until then, unless it is used again."
    )
    kv_expires_at: int = Field(
        description="Its pages come back without recomputing until then, unless it is used again."
    )


class PromiseObject(BaseModel):
    """How many of a session's pages will not be evicted before `kv_expires_at`, counted from the
    first one, and why no more are; the others are kept as cache."""

    pages: int
    reason: Literal["capacity", "quota", "gap"] | None = Field(
        description="capacity: the node has no more room for promises; quota: the tenant has none "
        "left; gap: pages before these are not promised."
    )


class SessionList(BaseModel):
    """A part of the tenant's sessions."""

    object: Literal["list"]
    data: list[SessionObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class TierTokensObject(BaseModel):
    """Tokens by the tier that they came from."""

    hbm: int
    dram: int
    disk: int
    object: int


class UsageObject(BaseModel):
    """Tokens and seconds of one turn.

    `cache_write_tokens`: prompt tokens that were computed and are kept from now on.
    `recomputed_tokens`: tokens of the log before the turn that had KV and were computed again.
    `seconds_saved`: what computing the whole prompt would have taken longer, by the speed that
    this worker was seen to have; null while none was seen.
    `asked_retention`: there only where the tenant's plan lacks the class that was asked for.
    `pages`: there only where pages of the log did not reach the node agent soon after the turn.
    """

    prompt_tokens: int
    output_tokens: int
    cached_tokens: TierTokensObject
    cache_write_tokens: int
    reasoning_tokens: int
    recomputed_tokens: int
    ttft_seconds: float
    total_seconds: float
    seconds_saved: float | None
    retention: RetentionName | None
    expires_at: int | None
    kv_expires_at: int | None
    asked_retention: RetentionName | None = Field(default=None)
    pages: PagesObject | None = Field(default=None)


class PagesObject(BaseModel):
    """Pages that the log should have had below the GPU, and those that it had."""

    expected: int
    received: int


class FunctionCallObject(BaseModel):
    """A function's name and its arguments as JSON text."""

    name: str
    arguments: str


class ToolCallObject(BaseModel):
    """A call that the model made."""

    id: str
    type: Literal["function"]
    function: FunctionCallObject


class MessageObject(BaseModel):
    """One message. What it has not is left out."""

    role: str
    content: str | None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallObject] | None = None
    tool_call_id: str | None = None


class AlternativeObject(BaseModel):
    """Another token that might have been sampled."""

    token_id: int
    logprob: float


class TurnObject(BaseModel):
    """A committed turn. `output_ids` are the sampled ids, the end-of-sequence id included."""

    id: str
    object: Literal["turn"]
    session_id: str
    number: int
    messages: list[MessageObject]
    message: MessageObject | None = Field(description="The reply; null: a context has none.")
    output_ids: list[int]
    logprobs: list[float] | None = Field(description="Per id, where they were asked for.")
    top_logprobs: list[list[AlternativeObject]] | None = Field(
        description="Per id, where they were asked for."
    )
    finish_reason: Literal["stop", "length", "tool_calls"]
    usage: UsageObject
    rebased: bool
    created_at: int


class TurnList(BaseModel):
    """A part of a session's turns."""

    object: Literal["list"]
    data: list[TurnObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class HibernationObject(BaseModel):
    """All pages are durable and the GPU is let go of."""

    id: str
    object: Literal["session.hibernated"]
    state: Literal["hibernated"]
    pages: int
    bytes: int
    tokens: int
    durable_position: int
    seconds: float


class ResumptionObject(BaseModel):
    """The session's log is in HBM."""

    id: str
    object: Literal["session.resumed"]
    state: Literal["active"]
    tokens: int
    cached_tokens: TierTokensObject
    recomputed_tokens: int
    seconds: float
    worker: str


class TierShareObject(BaseModel):
    """What one tier holds of a session."""

    pages: int
    tokens: int
    bytes: int


class ResidencyObject(BaseModel):
    """Where a session's pages lie below the GPU. What HBM holds, only the next turn can tell."""

    id: str
    object: Literal["session.residency"]
    tokens: int
    pages: int
    durable_pages: int
    durable_position: int
    tiers: dict[Literal["dram", "disk", "object"], TierShareObject]


class DeletionObject(BaseModel):
    """Pages and bytes that no other session holds and that were therefore freed."""

    id: str
    object: Literal["session.deleted"]
    deleted: Literal[True]
    pages_deleted: int
    bytes_deleted: int


def session_object(view: SessionView) -> dict[str, Any]:
    """See `SessionObject`."""
    session = view.session
    parent = None
    if session.parent_session_id is not None:
        parent = {"session_id": session.parent_session_id, "turn": session.fork_turn}
    return {
        "id": session.id,
        "object": "session",
        "created_at": session.created_at // _US,
        "updated_at": session.updated_at // _US,
        "model": session.model,
        "state": "running" if view.running else session.state,
        "turns": session.turns,
        "tokens": session.tokens,
        "durable_position": session.durable_position,
        "pages": view.pages,
        "parent": parent,
        "rebases": session.rebases,
        "metadata": dict(session.metadata),
        "origin": session.origin,
        "context": session.context_id,
        "project": session.project,
        "retention": session.retention,
        "asked_retention": session.asked_retention,
        "promise": {
            "pages": view.pages if session.promised_pages is None else session.promised_pages,
            "reason": session.promise_reason,
        },
        "kv_retention_seconds": session.kv_retention_seconds,
        "log_retention_seconds": session.log_retention_seconds,
        "expires_at": session.expires_at // _US,
        "kv_expires_at": kv_expires_at(session),
    }


def turn_object(turn: Turn, session_id: SessionId | str) -> dict[str, Any]:
    """See `TurnObject`. A turn inherited by a fork shows the session that it is read through."""
    return {
        "id": turn.id,
        "object": "turn",
        "session_id": session_id,
        "number": turn.number,
        "messages": list(turn.messages),
        "message": None if turn.reply is None else dict(turn.reply),
        "output_ids": turn.output_ids.tolist(),
        "logprobs": turn.logprobs,
        "top_logprobs": None
        if turn.top_logprobs is None
        else [alternatives(one) for one in turn.top_logprobs],
        "finish_reason": _finish_reason(turn),
        "usage": dict(turn.usage),
        "rebased": turn.rebased,
        "created_at": turn.created_at // _US,
    }


def alternatives(likeliest: Iterable[tuple[int, float]]) -> list[dict[str, Any]]:
    """See `AlternativeObject`."""
    return [{"token_id": token, "logprob": logprob} for token, logprob in likeliest]


def list_object(items: list[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """A part of a list, with the ids to go on from."""
    return {
        "object": "list",
        "data": items,
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": has_more,
    }


def hibernation_object(session_id: str, done: Hibernated) -> dict[str, Any]:
    """See `HibernationObject`."""
    return {
        "id": session_id,
        "object": "session.hibernated",
        "state": "hibernated",
        "pages": done.pages,
        "bytes": done.bytes,
        "tokens": done.tokens,
        "durable_position": done.durable_position,
        "seconds": round(done.seconds, 6),
    }


def resumption_object(session_id: str, done: Resumed) -> dict[str, Any]:
    """See `ResumptionObject`."""
    return {
        "id": session_id,
        "object": "session.resumed",
        "state": "active",
        "tokens": done.tokens,
        "cached_tokens": done.cached.as_dict(),
        "recomputed_tokens": done.recomputed_tokens,
        "seconds": round(done.seconds, 6),
        "worker": done.worker_id,
    }


def residency_object(session_id: str, found: SessionResidency) -> dict[str, Any]:
    """See `ResidencyObject`."""
    return {
        "id": session_id,
        "object": "session.residency",
        "tokens": found.tokens,
        "pages": found.pages,
        "durable_pages": found.durable_pages,
        "durable_position": found.durable_position,
        "tiers": {
            tier.value: {"pages": share.pages, "tokens": share.tokens, "bytes": share.bytes}
            for tier, share in found.tiers.items()
        },
    }


def deletion_object(
    deleted_id: str, freed: Freed, kind: Literal["session", "context"] = "session"
) -> dict[str, Any]:
    """See `DeletionObject` and `ContextDeletionObject`."""
    return {
        "id": deleted_id,
        "object": f"{kind}.deleted",
        "deleted": True,
        "pages_deleted": freed.pages,
        "bytes_deleted": freed.bytes,
    }


def kv_expires_at(session: Session) -> int:
    """Until when the session's KV is promised, in seconds since the epoch."""
    return session.updated_at // _US + session.kv_retention_seconds


def _finish_reason(turn: Turn) -> str:
    called = turn.reply is not None and turn.reply.get("tool_calls")
    return "tool_calls" if called and turn.finish_reason == "stop" else turn.finish_reason
