"""A client that gives up waiting and sends the same again gets the one answer that there is."""

from __future__ import annotations

from typing import Any

import openai
import pytest
import support
import wire

SLOW_TOKENS = 100
SECONDS_PER_TOKEN = 0.02
IMPATIENT_SECONDS = 0.8


def turns_of(client: openai.OpenAI, session_id: str) -> int:
    """How many turns a session has, by agentmem's own API."""
    session: Any = client.get(f"/sessions/{session_id}", cast_to=object)
    return int(session["turns"])


def sessions(client: openai.OpenAI) -> set[str]:
    listed: Any = client.get("/sessions", cast_to=object, options={"params": {"limit": 100}})
    return {session["id"] for session in listed["data"]}


def attempts(exchanges: wire.Wire) -> int:
    counts = [int(e.request_headers["x-stainless-retry-count"]) for e in exchanges.exchanges]
    return max(counts)


@pytest.mark.parametrize("surface", ["chat", "responses"])
def check_a_timeout(client: openai.OpenAI, model: str, exchanges: wire.Wire, surface: str) -> None:
    before = sessions(client)
    impatient = client.with_options(timeout=IMPATIENT_SECONDS, max_retries=10)
    text = support.slow(SECONDS_PER_TOKEN) + support.essay(10)
    extra = {"ignore_eos": True}
    made: Any
    if surface == "chat":
        made = impatient.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": text}],
            max_tokens=SLOW_TOKENS,
            extra_body=extra,
        )
        assert made.usage.completion_tokens == SLOW_TOKENS
    else:
        made = impatient.responses.create(
            model=model, input=text, max_output_tokens=SLOW_TOKENS, extra_body=extra
        )
        assert made.usage.output_tokens == SLOW_TOKENS
        assert client.responses.retrieve(made.id).output_text == made.output_text
    assert attempts(exchanges) >= 1, "it did give up waiting"
    new = sessions(client) - before
    assert len(new) == 1, "and it did not begin anew"
    assert turns_of(client, new.pop()) == 1


@pytest.mark.parametrize("surface", ["chat", "responses"])
def check_an_idempotency_key(client: openai.OpenAI, model: str, surface: str) -> None:
    key = {"Idempotency-Key": support.essay(1)}

    def send(text: str) -> Any:
        if surface == "chat":
            return client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": text}],
                max_tokens=20,
                extra_headers=key,
            )
        return client.responses.create(
            model=model, input=text, max_output_tokens=20, extra_headers=key
        )

    text = support.essay(10)
    first, again = send(text), send(text)
    assert first.id == again.id
    assert first.model_dump() == again.model_dump()
    with pytest.raises(openai.ConflictError) as caught:
        send(text + " And more.")
    assert caught.value.response.headers["x-should-retry"] == "false"


def check_the_same_again_without_a_key(client: openai.OpenAI, model: str) -> None:
    """Nothing says that it is a repeat: it is a new turn."""
    text = support.essay(10)
    one, other = [
        client.responses.create(model=model, input=text, max_output_tokens=16) for _ in range(2)
    ]
    assert one.id != other.id
