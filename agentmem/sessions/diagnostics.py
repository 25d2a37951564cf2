"""Why a prompt's beginning was known or not: compared, token by token, with an earlier response.

What counts is the tokens: a reason is looked for only where they differ. `prompt_cache_key`, the
text's format and the service tier never change what is known here, so they are never the reason.
"""

from __future__ import annotations

from array import array
from typing import Any

from agentmem.catalog import Catalog, Transaction
from agentmem.catalog.records import Response, Turn
from agentmem.core import TenantId, TurnId
from agentmem.errors import NotFound
from agentmem.sessions.log import common_prefix
from agentmem.sessions.messages import canonical_json
from agentmem.sessions.requests import ResponsePlan

# Where the page size is not known any more: pages are not larger.
_PAGE_TOKENS_MAX = 256


async def diagnosis(
    catalog: Catalog, tenant_id: TenantId, plan: ResponsePlan, turn: Turn, other_id: str
) -> dict[str, Any]:
    """`prompt_cache_diagnostics` of the response `plan`, whose turn is `turn`."""
    async with catalog.reading() as tx:
        try:
            row = await tx.responses.get(tenant_id, other_id)
        except NotFound:
            return {"type": "comparison_response_not_found"}
        if row.turn_id is None:
            return {"type": "unavailable"}
        other = await tx.turns.get(tenant_id, TurnId(row.turn_id))
        session = await tx.sessions.of_turn(tenant_id, other.id)
        same_model = row.request["model"] == plan.request["model"]
        shared = await _shared_tokens(tx, turn, other) if same_model else 0
    page_tokens = (session.page_tokens if session else None) or _PAGE_TOKENS_MAX
    # The last token of a log has no KV yet.
    if shared >= other.log_tokens - 1:
        cached = sum(turn.usage["cached_tokens"].values())
        # What was there and is not any more has no reason of its own; `agentmem` counts it.
        return {"type": "cache_hit" if cached + page_tokens >= shared else "unavailable"}
    return {
        "type": "cache_miss",
        "reason": _reason(plan, row),
        "cache_missed_tokens": turn.prompt_tokens - shared,
        "comparison_reusable_tokens": shared,
    }


async def _shared_tokens(tx: Transaction, turn: Turn, other: Turn) -> int:
    """Length of what the other's log and this prompt begin with."""
    if turn.parent_turn_id == other.id and turn.keep == other.log_tokens:
        return other.log_tokens
    ids = array("I")
    if turn.parent_turn_id is not None and turn.keep:
        ids = await tx.turns.token_ids(turn.tenant_id, turn.parent_turn_id)
    del ids[turn.keep :]
    ids.extend(turn.tokens)
    del ids[turn.prompt_tokens :]
    return common_prefix(ids, await tx.turns.token_ids(turn.tenant_id, other.id))


def _reason(plan: ResponsePlan, row: Response) -> str:
    now, then = plan.request, row.request
    if now["model"] != then["model"]:
        return "model_changed"
    if canonical_json(now["tools"]) != canonical_json(then["tools"]):
        return "tools_changed"
    if now["reasoning"]["effort"] != then["reasoning"]["effort"]:
        return "reasoning_effort_changed"
    if now.get("compacted"):
        return "context_compacted"
    return "input_changed"
