"""Chat Completions through the openai client, newest and 1.x."""

from __future__ import annotations

import concurrent.futures
import json
import time
from typing import Any

import openai
import pydantic
import support
import wire


def say(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def check_a_completion(client: openai.OpenAI, model: str) -> None:
    made = client.chat.completions.create(model=model, messages=say(support.reply("Grüße, 世界!")))
    choice = made.choices[0]
    assert choice.message.content == "Grüße, 世界!"
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert made.model == model
    assert made.id.startswith("chatcmpl-")
    assert made.usage is not None
    assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens
    details = made.usage.prompt_tokens_details
    assert details is not None
    assert details.cached_tokens == 0 or details.cached_tokens is not None


def check_the_default_alias(client: openai.OpenAI, model: str) -> None:
    """An agent written for OpenAI names a model of OpenAI's."""
    made = client.chat.completions.create(model="gpt-4.1", messages=say(support.reply("Yes.")))
    assert made.choices[0].message.content == "Yes."


def check_a_stream_joins_to_the_reply(client: openai.OpenAI, model: str) -> None:
    text = "One, two, three; and a line\nbreak."
    stream = client.chat.completions.create(
        model=model, messages=say(support.reply(text)), stream=True
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == text
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["stop"]
    assert all(chunk.usage is None for chunk in chunks)


def check_usage_of_a_stream(client: openai.OpenAI, model: str) -> None:
    messages = say(support.reply("Hello.") + support.essay(40))
    stream = client.chat.completions.create(
        model=model, messages=messages, stream=True, stream_options={"include_usage": True}
    )
    *others, last = list(stream)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.prompt_tokens > 40
    assert last.usage.prompt_tokens_details is not None
    assert all(chunk.usage is None for chunk in others)


def check_stop(client: openai.OpenAI, model: str) -> None:
    made = client.chat.completions.create(
        model=model, messages=say(support.reply("one two three")), stop=[" two"]
    )
    assert made.choices[0].message.content == "one"
    assert made.choices[0].finish_reason == "stop"


def check_length(client: openai.OpenAI, model: str) -> None:
    made = client.chat.completions.create(
        model=model, messages=say(support.essay(5)), max_completion_tokens=3
    )
    assert made.choices[0].finish_reason in ("length", "stop")
    assert made.usage is not None
    assert made.usage.completion_tokens <= 3


def check_several_choices(client: openai.OpenAI, model: str) -> None:
    messages = say(support.essay(20))
    alone = client.chat.completions.create(model=model, messages=messages, max_tokens=6)
    made = client.chat.completions.create(
        model=model, messages=messages, n=3, max_tokens=6, temperature=1.0
    )
    assert [choice.index for choice in made.choices] == [0, 1, 2]
    assert made.usage is not None
    assert alone.usage is not None
    assert made.usage.prompt_tokens == alone.usage.prompt_tokens, "the prompt is counted once"
    assert made.usage.completion_tokens >= 3


def check_several_choices_streamed(client: openai.OpenAI, model: str) -> None:
    stream = client.chat.completions.create(
        model=model, messages=say(support.reply("Twice.")), n=2, stream=True
    )
    texts = {0: "", 1: ""}
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == {0: "Twice.", 1: "Twice."}


def check_seed(client: openai.OpenAI, model: str) -> None:
    messages = say(support.essay(10))

    def sample(seed: int) -> str | None:
        made = client.chat.completions.create(
            model=model, messages=messages, seed=seed, max_tokens=12, temperature=1.0
        )
        return made.choices[0].message.content

    assert sample(7) == sample(7)
    assert sample(7) != sample(8)


def check_logprobs(client: openai.OpenAI, model: str) -> None:
    text = "Grüße you."
    made = client.chat.completions.create(
        model=model,
        messages=say(support.reply(text)),
        logprobs=True,
        top_logprobs=3,
    )
    logprobs = made.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    joined = b"".join(bytes(token.bytes or []) for token in logprobs.content)
    assert joined.decode().startswith(text)
    for token in logprobs.content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3


class City(pydantic.BaseModel):
    name: str
    inhabitants: int


def check_parse(client: openai.OpenAI, model: str) -> None:
    made = client.chat.completions.parse(
        model=model, messages=say("Describe a city."), response_format=City
    )
    assert isinstance(made.choices[0].message.parsed, City)


def check_json_object(client: openai.OpenAI, model: str) -> None:
    made = client.chat.completions.create(
        model=model,
        messages=say("Answer in JSON."),
        response_format={"type": "json_object"},
    )
    assert isinstance(json.loads(made.choices[0].message.content or ""), dict)


def check_a_round_trip_of_tools(client: openai.OpenAI, model: str) -> None:
    messages = [
        {"role": "system", "content": support.essay(150)},
        *say(support.call("get_weather", '{"city": "Paris"}')),
    ]
    tools: Any = [support.CHAT_TOOL]
    asked = client.chat.completions.create(model=model, messages=messages, tools=tools)
    message = asked.choices[0].message
    assert asked.choices[0].finish_reason == "tool_calls"
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    messages += [
        message.model_dump(exclude_none=True),
        {
            "role": "tool",
            "tool_call_id": call.id,
            "content": support.reply("It is 21 degrees in Paris."),
        },
    ]
    answered = client.chat.completions.create(model=model, messages=messages, tools=tools)
    assert answered.choices[0].message.content == "It is 21 degrees in Paris."
    continuity = support.Continuity()
    continuity.turn(support.chat_usage(asked.usage))
    continuity.turn(support.chat_usage(answered.usage))


def check_tools_streamed(client: openai.OpenAI, model: str) -> None:
    tools: Any = [support.CHAT_TOOL]
    prompt = support.call("get_weather", '{"city": "Zürich"}')
    two = prompt + support.call("get_weather", '{"city": "Rome"}')
    with client.chat.completions.stream(model=model, messages=say(two), tools=tools) as stream:
        for _event in stream:
            pass
        made = stream.get_final_completion()
    calls = made.choices[0].message.tool_calls
    assert calls is not None
    assert [json.loads(c.function.arguments)["city"] for c in calls] == ["Zürich", "Rome"]
    assert len({c.id for c in calls}) == 2


def check_tool_choice(client: openai.OpenAI, model: str) -> None:
    tools: Any = [support.CHAT_TOOL]
    made = client.chat.completions.create(
        model=model,
        messages=say("Hello."),
        tools=tools,
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
    )
    calls = made.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].function.name == "get_weather"
    assert "city" in json.loads(calls[0].function.arguments)


def check_raw_response(client: openai.OpenAI, model: str) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=say(support.reply("Hi."))
    )
    assert raw.headers["x-request-id"].startswith("req_")
    assert int(raw.headers["openai-processing-ms"]) >= 0
    assert "x-agentmem-cache" in raw.headers
    assert raw.parse().choices[0].message.content == "Hi."


def check_a_resent_history_goes_on_from_the_cache(client: openai.OpenAI, model: str) -> None:
    """A client that sets nothing, and sends all it has every time."""
    messages: list[Any] = [{"role": "system", "content": support.essay(200)}]
    continuity = support.Continuity()
    sessions = set()
    for turn in range(5):
        messages += say(f"Question {turn}: {support.essay(15)}")
        made = client.chat.completions.create(model=model, messages=messages, max_tokens=20)
        continuity.turn(support.chat_usage(made.usage))
        sessions.add(made.model_dump()["usage"]["agentmem"]["session_id"])
        messages.append(made.choices[0].message.model_dump(exclude_none=True))
    assert len(sessions) == 1, f"one conversation, {len(sessions)} sessions"


def check_eight_calls_of_one_history_at_once(
    client: openai.OpenAI, model: str, exchanges: wire.Wire
) -> None:
    """None waits for another: each forks, and goes on."""
    messages: list[Any] = [{"role": "system", "content": support.essay(200)}]
    messages += say("Begin.")
    first = client.chat.completions.create(model=model, messages=messages, max_tokens=20)
    messages.append(first.choices[0].message.model_dump(exclude_none=True))

    def go_on(number: int) -> list[Any]:
        own = [*messages, *say(f"{support.slow(0.02)}Branch {number}.")]
        usages = []
        for _ in range(2):
            made = client.with_options(max_retries=0).chat.completions.create(
                model=model, messages=own, max_tokens=20, extra_body={"ignore_eos": True}
            )
            usages.append(support.chat_usage(made.usage))
            own += [
                made.choices[0].message.model_dump(exclude_none=True),
                *say(f"{support.slow(0.02)}And on."),
            ]
        return usages

    begun = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        branches = list(pool.map(go_on, range(8)))
    one_after_another = 8 * 2 * 20 * 0.02
    assert time.monotonic() - begun < one_after_another / 2, "they ran side by side"
    for usages in branches:
        continuity = support.Continuity()
        continuity.turn(support.chat_usage(first.usage))
        for usage in usages:
            continuity.turn(usage)


def check_stored_completions(client: openai.OpenAI, model: str) -> None:
    made = client.chat.completions.create(
        model=model, messages=say(support.reply("Keep me.")), store=True, metadata={"a": "b"}
    )
    found = client.chat.completions.retrieve(made.id)
    assert found.choices[0].message.content == "Keep me."
    listed = list(client.chat.completions.messages.list(made.id))
    assert [message.role for message in listed] == ["user"]
    assert client.chat.completions.delete(made.id).deleted
    try:
        client.chat.completions.retrieve(made.id)
    except openai.NotFoundError:
        return
    raise AssertionError("it was deleted")
