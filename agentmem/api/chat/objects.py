"""Chat completion objects, from committed turns."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from agentmem import __version__
from agentmem.api.usage import agentmem_usage, cached_total
from agentmem.catalog.records import Turn
from agentmem.engine.base import Alternatives

TokenText = Callable[[int], bytes]
SERVICE_TIER = "default"
_US = 1_000_000


class TokenDetails(BaseModel):
    """How many of the prompt's tokens were known already, and how many are kept from now on."""

    cached_tokens: int
    cache_write_tokens: int
    audio_tokens: int


class CompletionDetails(BaseModel):
    """How many of the reply's tokens were thinking."""

    reasoning_tokens: int
    audio_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class ChatUsageObject(BaseModel):
    """Tokens of a completion; `agentmem` says where they came from."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: TokenDetails
    completion_tokens_details: CompletionDetails
    agentmem: dict[str, Any]


class ChoiceObject(BaseModel):
    """One reply."""

    index: int
    message: dict[str, Any]
    finish_reason: Literal["stop", "length", "tool_calls", "function_call"]
    logprobs: dict[str, Any] | None


class ChatCompletionObject(BaseModel):
    """A completion."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["chat.completion"]
    created: int = Field(description="Seconds since the epoch.")
    model: str
    choices: list[ChoiceObject]
    usage: ChatUsageObject
    service_tier: str
    system_fingerprint: str
    metadata: dict[str, str] | None


class ChatDeletionObject(BaseModel):
    """A stored completion is gone, with its turn's text, log and KV."""

    id: str
    object: Literal["chat.completion.deleted"]
    deleted: Literal[True]


class ChatMessageList(BaseModel):
    """Messages that a stored completion was made from."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


def system_fingerprint(model: str) -> str:
    """Changes with the version that answers, and with the model."""
    digest = hashlib.sha256(f"{__version__}\n{model}".encode()).hexdigest()
    return f"fp_{digest[:12]}"


def completion_object(
    completion_id: str,
    model: str,
    turns: Sequence[Turn],
    *,
    legacy: bool,
    metadata: Mapping[str, str] | None,
    token_text: TokenText | None,
) -> dict[str, Any]:
    """See `ChatCompletionObject`; `turns` has one turn for each choice. `token_text` is None where
    no log-probabilities were asked for."""
    return {
        "id": completion_id,
        "object": "chat.completion",
        "created": turns[0].created_at // _US,
        "model": model,
        "choices": [
            {
                "index": index,
                "message": _message(turn, legacy=legacy),
                "finish_reason": finish_reason(turn, legacy=legacy),
                "logprobs": None if token_text is None else _turn_logprobs(turn, token_text),
            }
            for index, turn in enumerate(turns)
        ],
        "usage": chat_usage(turns),
        "service_tier": SERVICE_TIER,
        "system_fingerprint": system_fingerprint(model),
        "metadata": None if metadata is None else dict(metadata),
    }


def finish_reason(turn: Turn, *, legacy: bool) -> str:
    """Why the reply ended. One that was cut short is that, even in the middle of a call."""
    called = turn.reply is not None and turn.reply.get("tool_calls")
    if called and turn.finish_reason == "stop":
        return "function_call" if legacy else "tool_calls"
    return turn.finish_reason


def chat_usage(turns: Sequence[Turn]) -> dict[str, Any]:
    """Tokens of all choices; the prompt counts once, as the first one met it."""
    usages = [turn.usage for turn in turns]
    first = usages[0]
    output = sum(usage["output_tokens"] for usage in usages)
    agentmem = agentmem_usage(turns[0])
    if len(turns) > 1:
        agentmem["choices"] = [
            {name: one[name] for name in ("session_id", "turn", "turn_id")}
            for one in map(agentmem_usage, turns)
        ]
    return {
        "prompt_tokens": first["prompt_tokens"],
        "completion_tokens": output,
        "total_tokens": first["prompt_tokens"] + output,
        "prompt_tokens_details": {
            "cached_tokens": cached_total(first),
            "cache_write_tokens": first.get("cache_write_tokens", 0),
            "audio_tokens": 0,
        },
        "completion_tokens_details": {
            "reasoning_tokens": sum(usage.get("reasoning_tokens", 0) for usage in usages),
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
        "agentmem": agentmem,
    }


def token_logprobs(
    ids: Sequence[int],
    logprobs: Sequence[float],
    alternatives: Sequence[Alternatives | Sequence[Any]],
    token_text: TokenText,
) -> list[dict[str, Any]]:
    """One entry per sampled token. `alternatives` is empty where none were asked for."""
    entries = []
    for index, (token, logprob) in enumerate(zip(ids, logprobs, strict=False)):
        entry = _token(token_text(token), logprob)
        others = alternatives[index] if index < len(alternatives) else ()
        entry["top_logprobs"] = [_token(token_text(other), value) for other, value in others]
        entries.append(entry)
    return entries


def _token(text: bytes, logprob: float) -> dict[str, Any]:
    return {"token": text.decode("utf-8", "replace"), "bytes": list(text), "logprob": logprob}


def _turn_logprobs(turn: Turn, token_text: TokenText) -> dict[str, Any]:
    content = token_logprobs(
        turn.output_ids, turn.logprobs or (), turn.top_logprobs or (), token_text
    )
    return {"content": content, "refusal": None}


def _message(turn: Turn, *, legacy: bool) -> dict[str, Any]:
    reply: Mapping[str, Any] = turn.reply or {}
    message: dict[str, Any] = {
        "role": "assistant",
        "content": reply.get("content"),
        "refusal": None,
        "annotations": [],
    }
    if reply.get("reasoning_content"):
        message["reasoning_content"] = reply["reasoning_content"]
    calls = reply.get("tool_calls")
    if calls and legacy:
        message["function_call"] = dict(calls[0]["function"])
    elif calls:
        message["tool_calls"] = [dict(call) for call in calls]
    return message
