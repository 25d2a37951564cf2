"""What most programs do, on whatever model there is: also run against the real engine."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
import support

pytestmark = pytest.mark.real

YES_OR_NO: dict[str, Any] = {
    "type": "object",
    "properties": {"answer": {"type": "string", "enum": ["yes", "no"]}},
    "required": ["answer"],
    "additionalProperties": False,
}
TOOL = {"name": "decide", "description": "Says yes or no.", "parameters": YES_OR_NO}


def say(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def check_models(client: openai.OpenAI, model: str) -> None:
    assert client.models.retrieve(model).id == model


def check_chat(client: openai.OpenAI, model: str) -> None:
    made = client.chat.completions.create(
        model="gpt-4.1", messages=say("What is the sea?"), max_tokens=12, temperature=0
    )
    assert made.choices[0].finish_reason in ("stop", "length")
    assert made.usage is not None
    assert 0 < made.usage.completion_tokens <= 12


def check_a_stream_says_the_same(client: openai.OpenAI, model: str) -> None:
    given: Any = {
        "model": model,
        "messages": say("What is a river?"),
        "max_tokens": 12,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**given).choices[0].message.content
    chunks = client.chat.completions.create(
        stream=True, stream_options={"include_usage": True}, **given
    )
    text = ""
    for chunk in chunks:
        for choice in chunk.choices:
            text += choice.delta.content or ""
    assert text == (whole or "")


def check_several_choices_and_a_seed(client: openai.OpenAI, model: str) -> None:
    given: Any = {
        "model": model,
        "messages": say("Name a colour."),
        "max_tokens": 8,
        "seed": 7,
        "n": 2,
    }
    texts = [
        [choice.message.content for choice in client.chat.completions.create(**given).choices]
        for _ in range(2)
    ]
    assert texts[0] == texts[1]


def check_logprobs(client: openai.OpenAI, model: str) -> None:
    made = client.chat.completions.create(
        model=model,
        messages=say("What is a stone?"),
        max_tokens=6,
        logprobs=True,
        top_logprobs=2,
    )
    logprobs = made.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert made.usage is not None
    assert len(logprobs.content) <= made.usage.completion_tokens
    assert all(len(token.top_logprobs) == 2 for token in logprobs.content)


def check_a_schema(client: openai.OpenAI, model: str) -> None:
    schema: Any = {"name": "decision", "schema": YES_OR_NO, "strict": True}
    made = client.chat.completions.create(
        model=model,
        messages=say("Yes or no?"),
        max_tokens=60,
        response_format={"type": "json_schema", "json_schema": schema},
    )
    assert json.loads(made.choices[0].message.content or "")["answer"] in ("yes", "no")
    response = client.responses.create(
        model=model,
        input="Yes or no?",
        max_output_tokens=60,
        text={"format": {"type": "json_schema", **schema}},
    )
    assert json.loads(response.output_text)["answer"] in ("yes", "no")


def check_a_required_tool(client: openai.OpenAI, model: str) -> None:
    tools: Any = [{"type": "function", "function": TOOL}]
    messages = say("Decide.")
    made = client.chat.completions.create(
        model=model, messages=messages, max_tokens=120, tools=tools, tool_choice="required"
    )
    message = made.choices[0].message
    assert message.tool_calls
    call = message.tool_calls[0]
    assert json.loads(call.function.arguments)["answer"] in ("yes", "no")
    messages += [
        message.model_dump(exclude_none=True),
        *[
            {"role": "tool", "tool_call_id": one.id, "content": "noted"}
            for one in message.tool_calls
        ],
    ]
    after = client.chat.completions.create(
        model=model, messages=messages, max_tokens=10, tools=tools
    )
    assert after.choices[0].finish_reason in ("stop", "length", "tool_calls")


def check_responses(client: openai.OpenAI, model: str) -> None:
    first = client.responses.create(model=model, input="What is a garden?", max_output_tokens=16)
    events = list(
        client.responses.create(
            model=model,
            input="And a meadow?",
            previous_response_id=first.id,
            max_output_tokens=16,
            stream=True,
        )
    )
    last: Any = events[-1]
    found = client.responses.retrieve(last.response.id)
    assert found.output_text == last.response.output_text
    rest = list(client.responses.retrieve(found.id, stream=True, starting_after=2))
    assert [e.model_dump() for e in rest] == [e.model_dump() for e in events[3:]]
    items = list(client.responses.input_items.list(found.id, order="asc"))
    assert len(items) == 3
    client.responses.delete(found.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(found.id)


def check_conversations(client: openai.OpenAI, model: str) -> None:
    talk = client.conversations.create()
    for text in ("What is winter?", "And then?"):
        client.responses.create(model=model, conversation=talk.id, input=text, max_output_tokens=16)
    assert len(list(client.conversations.items.list(talk.id))) == 4
    assert client.conversations.delete(talk.id).deleted


def check_a_resent_history(client: openai.OpenAI, model: str) -> None:
    messages: list[Any] = [{"role": "system", "content": support.essay(900)}]
    continuity = support.Continuity()
    for turn in range(4):
        messages += say(f"Question {turn}?")
        made = client.chat.completions.create(model=model, messages=messages, max_tokens=12)
        continuity.turn(support.chat_usage(made.usage))
        messages.append(made.choices[0].message.model_dump(exclude_none=True))
