"""What the API answers: one model per object, for the document, and functions that make them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from agentmem.catalog.records import Turn
from agentmem.core import SessionId
from agentmem.sessions.hibernation import Hibernated, Resumed
from agentmem.sessions.ports import Freed
from agentmem.sessions.service import SessionResidency, SessionView

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
    kv_retention_seconds: int
    log_retention_seconds: int


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

    `recomputed_tokens`: tokens of the log before the turn that had KV and were computed again.
    """

    prompt_tokens: int
    output_tokens: int
    cached_tokens: TierTokensObject
    recomputed_tokens: int
    ttft_seconds: float
    total_seconds: float


class MessageObject(BaseModel):
    """One message."""

    role: str
    content: str


class TurnObject(BaseModel):
    """A committed turn. `output_ids` are the sampled ids, the end-of-sequence id included."""

    id: str
    object: Literal["turn"]
    session_id: str
    number: int
    messages: list[MessageObject]
    message: MessageObject
    output_ids: list[int]
    logprobs: list[float] | None = Field(description="Per id, where they were asked for.")
    finish_reason: Literal["stop", "length"]
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
        "kv_retention_seconds": session.kv_retention_seconds,
        "log_retention_seconds": session.log_retention_seconds,
    }


def turn_object(turn: Turn, session_id: SessionId | str) -> dict[str, Any]:
    """See `TurnObject`. A turn inherited by a fork shows the session that it is read through."""
    return {
        "id": turn.id,
        "object": "turn",
        "session_id": session_id,
        "number": turn.number,
        "messages": list(turn.messages),
        "message": dict(turn.reply),
        "output_ids": turn.output_ids.tolist(),
        "logprobs": turn.logprobs,
        "finish_reason": turn.finish_reason,
        "usage": dict(turn.usage),
        "rebased": turn.rebased,
        "created_at": turn.created_at // _US,
    }


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


def deletion_object(session_id: str, freed: Freed) -> dict[str, Any]:
    """See `DeletionObject`."""
    return {
        "id": session_id,
        "object": "session.deleted",
        "deleted": True,
        "pages_deleted": freed.pages,
        "bytes_deleted": freed.bytes,
    }
