"""What a turn used, as every surface shows it besides its own counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentmem.catalog.records import Turn

CACHE_HEADER = "x-agentmem-cache"
_NO_TIER = "none"


def agentmem_usage(turn: Turn) -> dict[str, Any]:
    """The `agentmem` object beside OpenAI's counts. A turn of which nothing is kept has neither
    a session nor a time until which it is."""
    usage = turn.usage
    kept = usage.get("expires_at") is not None
    asked = usage.get("asked_retention")
    return {
        "cached_tokens": dict(usage["cached_tokens"]),
        "recomputed_tokens": usage["recomputed_tokens"],
        "seconds_saved": usage.get("seconds_saved"),
        "ttft_seconds": usage["ttft_seconds"],
        "total_seconds": usage["total_seconds"],
        "session_id": turn.session_id if kept else None,
        "turn": turn.number if kept else None,
        "turn_id": turn.id if kept else None,
        "retention": usage.get("retention"),
        "expires_at": usage.get("expires_at"),
        "kv_expires_at": usage.get("kv_expires_at"),
        **({} if asked is None else {"asked_retention": asked}),
    }


def cached_total(usage: Mapping[str, Any]) -> int:
    """Prompt tokens that were not computed, of whatever tier."""
    return sum(usage["cached_tokens"].values())


def cache_header(turn: Turn) -> str:
    """`tier=disk;restored=4096;recomputed=12`: the tier that most of the prompt's known tokens
    came from (`none`: there were none), how many were known, and how many were computed again."""
    cached: Mapping[str, int] = turn.usage["cached_tokens"]
    restored = sum(cached.values())
    tier = max(cached, key=lambda name: cached[name]) if restored else _NO_TIER
    return f"tier={tier};restored={restored};recomputed={turn.usage['recomputed_tokens']}"
