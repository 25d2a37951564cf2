"""The cache as the client's types have it: terms, diagnostics, contexts."""

from __future__ import annotations

from typing import Any

import openai
import pytest
import support

NEWER = pytest.mark.skipif(openai.__version__.startswith("1."), reason="not in 1.x")


def own(usage: Any) -> dict[str, Any]:
    """agentmem's part of a usage object."""
    found: dict[str, Any] = usage.model_dump()["agentmem"]
    return found


@NEWER
@pytest.mark.parametrize(("ttl", "retention"), [("30m", "ephemeral"), ("12h", "standard")])
def check_terms(client: openai.OpenAI, model: str, ttl: Any, retention: str) -> None:
    options: Any = {"ttl": ttl}
    text = support.essay(100)
    chat = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": text}],
        max_tokens=4,
        prompt_cache_options=options,
    )
    assert own(chat.usage)["retention"] == retention
    made = client.responses.create(
        model=model, input=support.essay(100), max_output_tokens=16, prompt_cache_options=options
    )
    assert own(made.usage)["retention"] == retention
    assert made.usage is not None
    details = made.usage.input_tokens_details
    written = details.cache_write_tokens_details
    assert written is not None
    wanted = {"30m": written.ttl_30m_tokens, "12h": written.ttl_12h_tokens}
    assert wanted[ttl] == details.cache_write_tokens > 80


@pytest.mark.parametrize(("term", "retention"), [("in_memory", "ephemeral"), ("24h", "persistent")])
def check_the_deprecated_terms(
    client: openai.OpenAI, model: str, term: str, retention: str
) -> None:
    made = client.responses.create(
        model=model,
        input=support.reply("Kept."),
        extra_body={"prompt_cache_retention": term},
    )
    usage = own(made.usage)
    assert usage["retention"] == retention
    assert usage["kv_expires_at"] <= usage["expires_at"]


def check_tokens_by_tier(client: openai.OpenAI, model: str) -> None:
    first = client.responses.create(model=model, input=support.essay(200), max_output_tokens=16)
    second = client.responses.create(
        model=model, input="And?", previous_response_id=first.id, max_output_tokens=16
    )
    assert second.usage is not None
    tiers = own(second.usage)["cached_tokens"]
    assert sum(tiers.values()) == second.usage.input_tokens_details.cached_tokens > 150
    assert own(second.usage)["session_id"] == own(first.usage)["session_id"]


@NEWER
def check_why_a_prefix_missed(client: openai.OpenAI, model: str) -> None:
    tool: Any = {**support.RESPONSES_TOOL, "strict": False}
    first = client.responses.create(model=model, input=support.essay(200), max_output_tokens=16)
    hit = client.responses.create(
        model=model, input="On.", previous_response_id=first.id, max_output_tokens=16
    )
    assert hit.prompt_cache_diagnostics is not None
    assert hit.prompt_cache_diagnostics.type == "cache_hit"
    miss = client.responses.create(
        model=model,
        input="On.",
        previous_response_id=first.id,
        tools=[tool],
        max_output_tokens=16,
    )
    why: Any = miss.prompt_cache_diagnostics
    assert (why.type, why.reason) == ("cache_miss", "tools_changed")
    assert why.cache_missed_tokens > 150


def check_a_context(client: openai.OpenAI, model: str) -> None:
    """agentmem's own: a beginning that is computed once, for any number of conversations."""
    body: Any = {"documents": [{"title": "Rules", "text": support.essay(300)}]}
    context: Any = client.post("/contexts", body=body, cast_to=object)
    for number in range(3):
        made = client.responses.create(
            model=model,
            input=f"Question {number}?",
            max_output_tokens=16,
            extra_body={"context": context["id"]},
        )
        assert made.usage is not None
        cached = made.usage.input_tokens_details.cached_tokens
        assert cached >= 0.9 * context["tokens"]
    chat = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Question?"}],
        max_tokens=4,
        extra_body={"context": context["id"]},
    )
    assert support.chat_usage(chat.usage)[1] >= 0.9 * context["tokens"]
    client.delete(f"/contexts/{context['id']}", cast_to=object)
