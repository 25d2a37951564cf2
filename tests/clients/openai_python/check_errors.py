"""Errors arrive as the client's typed exceptions, and what can be retried is retried."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import openai
import pytest
import support
import wire


def say(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def check_models(client: openai.OpenAI, model: str) -> None:
    listed = list(client.models.list())
    assert model in [one.id for one in listed]
    assert client.models.retrieve(model).id == model
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("no-such-model")
    assert caught.value.code == "model_not_found"


def check_an_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="no-such-model", messages=say("Hello."))
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert "no-such-model" in caught.value.message
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.create(model="no-such-model", input="Hello.")
    assert caught.value.code == "model_not_found"


def check_a_conversation_that_is_too_long(client: openai.OpenAI, model: str) -> None:
    text = support.essay(40_000)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=say(text))
    assert caught.value.code == "context_length_exceeded"
    assert any(character.isdigit() for character in caught.value.message)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=model, input=text)
    assert caught.value.code == "context_length_exceeded"


def check_a_wrong_key(client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="am_wrong").models.list()


@pytest.mark.parametrize(
    ("surface", "given", "param"),
    [
        ("chat", {"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
        ("chat", {"web_search_options": {}}, "web_search_options"),
        ("chat", {"n": 99}, "n"),
        ("chat", {"temperature": 3}, "temperature"),
        ("chat", {"extra_body": {"no_such_parameter": 1}}, "no_such_parameter"),
        ("responses", {"background": True}, "background"),
        ("responses", {"tools": [{"type": "web_search"}]}, "tools"),
        ("responses", {"prompt": {"id": "pmpt_1"}}, "prompt"),
        ("responses", {"extra_body": {"no_such_parameter": 1}}, "no_such_parameter"),
    ],
)
def check_what_is_refused_is_named(
    client: openai.OpenAI, model: str, surface: str, given: dict[str, Any], param: str
) -> None:
    calls: dict[str, Any] = {
        "chat": lambda: client.chat.completions.create(
            model=model, messages=say("Hello."), **given
        ),
        "responses": lambda: client.responses.create(model=model, input="Hello.", **given),
    }
    with pytest.raises(openai.BadRequestError) as caught:
        calls[surface]()
    assert (caught.value.param or "").startswith(param), caught.value.body
    assert len(caught.value.message) > 20, "and it says why"


def check_an_unknown_previous_response(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(
            model=model, input="Go on.", previous_response_id="resp_" + "0" * 26
        )
    assert caught.value.code == "previous_response_not_found"
    assert caught.value.param == "previous_response_id"


def check_both_kinds_of_state_at_once(client: openai.OpenAI, model: str) -> None:
    conversation = client.conversations.create()
    first = client.responses.create(model=model, input=support.reply("Hi."))
    with pytest.raises(openai.BadRequestError):
        client.responses.create(
            model=model,
            input="Both.",
            conversation=conversation.id,
            previous_response_id=first.id,
        )


def check_a_busy_conversation(
    client: openai.OpenAI,
    model: str,
    exchanges: wire.Wire,
    without_retries: Callable[[], openai.OpenAI],
) -> None:
    """A named busy conversation is a 409; the client's own retries get through in the end."""
    conversation = client.conversations.create()
    long: Any = {
        "model": model,
        "conversation": conversation.id,
        "max_output_tokens": 300,
        "extra_body": {"ignore_eos": True},
    }
    begun = threading.Event()

    def occupy() -> None:
        with client.responses.create(input=support.slow(0.01), stream=True, **long) as stream:
            for _event in stream:
                begun.set()

    occupier = threading.Thread(target=occupy)
    occupier.start()
    assert begun.wait(30)
    with pytest.raises(openai.ConflictError) as caught:
        without_retries().responses.create(model=model, input="Now.", conversation=conversation.id)
    assert "retry-after" in caught.value.response.headers
    patient = client.with_options(max_retries=10)
    made = patient.responses.create(
        model=model, input=support.reply("At last."), conversation=conversation.id
    )
    assert made.output_text == "At last."
    counts = [
        int(exchange.request_headers["x-stainless-retry-count"])
        for exchange in exchanges.exchanges
        if b"At last." in exchange.sent
    ]
    assert counts[-1] >= 1, "it was busy, and the client came back"
    occupier.join()


def check_operations_that_are_refused_by_name(client: openai.OpenAI, model: str) -> None:
    made = client.chat.completions.create(model=model, messages=say("Hello."), store=True)
    refused: dict[str, Callable[[], Any]] = {
        "listing": client.chat.completions.list,
        "changing": lambda: client.chat.completions.update(made.id, metadata={"a": "b"}),
        "models": lambda: client.models.delete(model),
    }
    for what, operation in refused.items():
        with pytest.raises(openai.BadRequestError) as caught:
            operation()
        assert (caught.value.code or "").startswith("unsupported"), (what, caught.value.body)
        assert len(caught.value.message) > 30, what


def check_operations_that_there_are_none_of(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model=model, input="Hello.")
    assert caught.value.code == "unknown_route"
