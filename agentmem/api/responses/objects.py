"""Response objects: what a request asked for, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from agentmem.api.chat.objects import SERVICE_TIER
from agentmem.api.usage import agentmem_usage, cached_total
from agentmem.catalog.records import Turn

ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed", "cancelled"]
_US = 1_000_000
_ECHOED = (
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "metadata",
    "model",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning",
    "safety_identifier",
    "store",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
    "truncation",
    "user",
    "presence_penalty",
    "frequency_penalty",
)


class InputDetails(BaseModel):
    """How many of the prompt's tokens were known already, and how many are kept from now on."""

    cached_tokens: int
    cache_write_tokens: int
    cache_write_tokens_details: dict[str, int]


class OutputDetails(BaseModel):
    """How many of the reply's tokens were thinking."""

    reasoning_tokens: int


class ResponseUsageObject(BaseModel):
    """Tokens of a response; `agentmem` says where they came from."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int
    agentmem: dict[str, Any]


class ResponseObject(BaseModel):
    """A response."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["response"]
    created_at: int = Field(description="Seconds since the epoch.")
    completed_at: int | None
    expires_at: int | None = Field(description="Until when it can be read; null: it cannot.")
    status: ResponseStatus
    model: str
    output: list[dict[str, Any]]
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None
    previous_response_id: str | None
    conversation: dict[str, Any] | None
    usage: ResponseUsageObject | None
    prompt_cache_diagnostics: dict[str, Any] | None


class ResponseDeletionObject(BaseModel):
    """A response is gone, with its turn's text, log and KV where nothing else builds on them."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ItemList(BaseModel):
    """A part of the items."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class InputTokensObject(BaseModel):
    """How many tokens the prompt has."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class CompactionObject(BaseModel):
    """A conversation in short: what users said, and a sealed summary of all of it."""

    id: str
    object: Literal["response.compaction"]
    created_at: int
    output: list[dict[str, Any]]
    usage: ResponseUsageObject


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of a response before its turn runs. `request` is what it echoes (see
    `schemas`), `created_at` in microseconds since the epoch."""

    id: str
    request: Mapping[str, Any]
    created_at: int = 0
    previous_response_id: str | None = None
    conversation_id: str | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """How a response ended. Times in seconds since the epoch; `error` as the object shows it."""

    status: ResponseStatus
    turn: Turn | None = None
    error: Mapping[str, Any] | None = None
    completed_at: int | None = None
    expires_at: int | None = None
    diagnostics: Mapping[str, Any] | None = None


def ended_with(turn: Turn, *, diagnostics: Mapping[str, Any] | None = None) -> Ending:
    """The ending that a committed turn is; the same whenever it is asked for."""
    seconds = turn.created_at / _US + turn.usage["total_seconds"]
    return Ending(
        status="incomplete" if turn.finish_reason == "length" else "completed",
        turn=turn,
        completed_at=int(seconds),
        expires_at=turn.usage.get("expires_at"),
        diagnostics=diagnostics,
    )


def response_object(
    head: Head, ending: Ending | None, output: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """See `ResponseObject`. Without an ending it is in progress."""
    ending = ending or Ending("in_progress")
    conversation = None if head.conversation_id is None else {"id": head.conversation_id}
    incomplete = {"reason": "max_output_tokens"} if ending.status == "incomplete" else None
    return {
        "id": head.id,
        "object": "response",
        "created_at": head.created_at // _US,
        "completed_at": ending.completed_at if ending.status == "completed" else None,
        "expires_at": ending.expires_at if head.request["store"] else None,
        "status": ending.status,
        "background": False,
        "error": ending.error,
        "incomplete_details": incomplete,
        "output": list(output),
        "previous_response_id": head.previous_response_id,
        "conversation": conversation,
        "service_tier": SERVICE_TIER,
        "usage": None if ending.turn is None else response_usage(ending.turn),
        "prompt_cache_diagnostics": ending.diagnostics,
        **{name: head.request[name] for name in _ECHOED},
    }


def response_usage(turn: Turn) -> dict[str, Any]:
    """See `ResponseUsageObject`."""
    usage = turn.usage
    written = usage.get("cache_write_tokens", 0)
    short = usage.get("retention") == "ephemeral"
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {
            "cached_tokens": cached_total(usage),
            "cache_write_tokens": written,
            "cache_write_tokens_details": {
                "ttl_30m_tokens": written if short else 0,
                "ttl_12h_tokens": 0 if short else written,
            },
        },
        "output_tokens": usage["output_tokens"],
        "output_tokens_details": {"reasoning_tokens": usage.get("reasoning_tokens", 0)},
        "total_tokens": usage["prompt_tokens"] + usage["output_tokens"],
        "agentmem": agentmem_usage(turn),
    }


def compaction_object(
    compaction_id: str, turn: Turn, output: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """See `CompactionObject`; `turn` is the one that made the summary."""
    return {
        "id": compaction_id,
        "object": "response.compaction",
        "created_at": turn.created_at // _US,
        "output": list(output),
        "usage": response_usage(turn),
    }
