"""What a turn used: tokens by source and seconds. Pure, but for asking the agent for loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agentmem.core import PageKey, Tier, TierTokens
from agentmem.engine.base import CachedTokens
from agentmem.errors import NodeUnavailable
from agentmem.sessions.ports import Pages
from agentmem.telemetry import Metrics, get_logger

_log = get_logger("agentmem.sessions.usage")
# Where loaded tokens are counted whose tier the agent did not tell, fastest last: the slowest
# durable tier of one host, so that the report never looks better than it was.
UNTOLD_TIER = Tier.DISK


@dataclass(frozen=True, slots=True)
class Usage:
    """One turn's usage: integers of tokens, and seconds.

    `recomputed_tokens`: tokens of the log before the turn (the part of it that the turn kept)
    that had KV and were computed again all the same: everything from the end of what was cached
    to the end of the old log. Its last sampled token never had KV and does not count; the part
    of a page at the log's end does, so that up to one page is normal.
    `written_tokens`: prompt tokens that were computed and whose pages are kept from now on.
    `seconds_saved`: see `savings`; None where no speed has been measured yet.
    `expires_at` and `kv_expires_at`: until when the log is valid and the KV promised, in seconds
    since the epoch, unless the session is used again; None where nothing of the turn is kept.
    `asked_retention`: the class that was asked for, where the tenant's plan does not have it.
    """

    prompt_tokens: int
    output_tokens: int
    cached: TierTokens
    recomputed_tokens: int
    ttft_seconds: float
    total_seconds: float
    written_tokens: int = 0
    reasoning_tokens: int = 0
    seconds_saved: float | None = None
    retention: str | None = None
    expires_at: int | None = None
    kv_expires_at: int | None = None
    asked_retention: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """As it is stored and shown."""
        asked = {} if self.asked_retention is None else {"asked_retention": self.asked_retention}
        return {
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "cached_tokens": self.cached.as_dict(),
            "cache_write_tokens": self.written_tokens,
            "reasoning_tokens": self.reasoning_tokens,
            "recomputed_tokens": self.recomputed_tokens,
            "ttft_seconds": round(self.ttft_seconds, 6),
            "total_seconds": round(self.total_seconds, 6),
            "seconds_saved": None if self.seconds_saved is None else round(self.seconds_saved, 6),
            "retention": self.retention,
            "expires_at": self.expires_at,
            "kv_expires_at": self.kv_expires_at,
            **asked,
        }


def recomputed_tokens(*, kept: int, log_tokens: int, cached: int) -> int:
    """See `Usage`. `kept` of the old log's `log_tokens` tokens begin the new prompt."""
    with_kv = min(kept, max(0, log_tokens - 1))
    return max(0, with_kv - cached)


def written_tokens(*, prompt_tokens: int, cached: int, page_tokens: int, kept: bool) -> int:
    """Prompt tokens in full pages that were computed now, if the turn is kept."""
    if not kept:
        return 0
    return max(0, prompt_tokens - prompt_tokens % page_tokens - cached)


def split_tiers(cached: CachedTokens, loads: dict[Tier, int], page_tokens: int) -> TierTokens:
    """Tokens by tier: the engine's own device and host, and what it loaded, as the agent told.

    `loads` counts pages. An agent may have read more pages than the engine used (it reads ahead)
    or told of fewer; the engine's number is the one that holds.
    """
    left = cached.storage
    told: dict[Tier, int] = {}
    for tier in (Tier.DRAM, Tier.DISK, Tier.OBJECT):
        told[tier] = min(left, loads.get(tier, 0) * page_tokens)
        left -= told[tier]
    told[UNTOLD_TIER] += left
    return TierTokens(
        hbm=cached.device,
        dram=cached.host + told[Tier.DRAM],
        disk=told[Tier.DISK],
        object=told[Tier.OBJECT],
    )


class LoadWatch:
    """Asks the agent which tiers the pages of one prompt came from."""

    def __init__(self, pages: Pages, metrics: Metrics) -> None:
        self._pages = pages
        self._metrics = metrics
        self._since: int | None = None

    async def start(self) -> None:
        """Call before the prompt is sent. An agent that does not answer costs only the split."""
        try:
            self._since = await self._pages.sequence()
        except NodeUnavailable as error:
            self._metrics.node_failures.labels("sequence").inc()
            _log.warning("the node agent did not answer", error=error.message)

    async def tiers(
        self, cached: CachedTokens, keys: Sequence[PageKey], page_tokens: int
    ) -> TierTokens:
        """The prompt's cached tokens by tier; asks the agent only when something was loaded."""
        loads: dict[Tier, int] = {}
        if cached.storage and self._since is not None:
            try:
                loads = await self._pages.loads(keys, self._since)
            except NodeUnavailable as error:
                self._metrics.node_failures.labels("loads").inc()
                _log.warning("the node agent did not answer", error=error.message)
        untold = cached.storage - sum(loads.values()) * page_tokens
        if untold > 0:
            self._metrics.unattributed.inc(untold)
        return split_tiers(cached, loads, page_tokens)
