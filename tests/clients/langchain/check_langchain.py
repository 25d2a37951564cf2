"""langchain-openai: ChatOpenAI over Chat Completions and over Responses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import openai
import pydantic
import pytest
import support
import wire
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

Maker = Callable[..., ChatOpenAI]


@tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return support.reply(f"It is 21 degrees in {city}.")


@pytest.fixture
def make(url: str, key: str, model: str, exchanges: wire.Wire) -> Iterator[Maker]:
    http = openai.DefaultHttpxClient(transport=wire.Transport(exchanges))

    def made(**options: Any) -> ChatOpenAI:
        options = {"http_client": http, **options}
        return ChatOpenAI(base_url=f"{url}/v1", api_key=key, model=model, **options)

    yield made
    http.close()


@pytest.fixture(params=[False, True], ids=["chat", "responses"])
def chat(request: Any, make: Maker) -> ChatOpenAI:
    return make(use_responses_api=request.param)


def usage_of(message: Any) -> tuple[int, int, int]:
    found = message.usage_metadata
    cached = found["input_token_details"]["cache_read"]
    return found["input_tokens"], cached, found["total_tokens"]


def check_invoke(chat: ChatOpenAI) -> None:
    answer = chat.invoke([("system", "You greet."), ("user", support.reply("Hello there."))])
    assert answer.text == "Hello there."
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] > 0


def check_stream(chat: ChatOpenAI) -> None:
    parts = list(chat.stream(support.reply("One, two, three.")))
    whole: Any = parts[0]
    for part in parts[1:]:
        whole = whole + part
    assert whole.text == "One, two, three."
    assert len([part for part in parts if part.text]) > 1


def check_tools(chat: ChatOpenAI) -> None:
    bound = chat.bind_tools([get_weather])
    messages: list[Any] = [
        SystemMessage(support.essay(150)),
        HumanMessage(support.call("get_weather", '{"city": "Paris"}')),
    ]
    asked: AIMessage = bound.invoke(messages)
    (called,) = asked.tool_calls
    assert (called["name"], called["args"]) == ("get_weather", {"city": "Paris"})
    messages += [asked, ToolMessage(get_weather.invoke(called["args"]), tool_call_id=called["id"])]
    answered = bound.invoke(messages)
    assert answered.text == "It is 21 degrees in Paris."
    continuity = support.Continuity()
    continuity.turn(usage_of(asked))
    continuity.turn(usage_of(answered))


class City(pydantic.BaseModel):
    """A city."""

    name: str
    inhabitants: int


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def check_structured_output(chat: ChatOpenAI, method: Any) -> None:
    found = chat.with_structured_output(City, method=method).invoke("Describe a city.")
    assert isinstance(found, City)


def check_a_growing_history(chat: ChatOpenAI) -> None:
    """As LangChain's agents do it: all messages, every time."""
    short = chat.bind(max_tokens=30)
    messages: list[Any] = [SystemMessage(support.essay(200))]
    continuity = support.Continuity()
    written = []
    for turn in range(4):
        messages.append(HumanMessage(f"Question {turn}: {support.essay(10)}"))
        answer = short.invoke(messages)
        continuity.turn(usage_of(answer))
        written.append(answer.usage_metadata["input_token_details"]["cache_creation"])
        messages.append(answer)
    assert written[0] > 200, "the first turn writes the cache"
    assert all(0 <= tokens < written[0] for tokens in written[1:])


def check_previous_response_id(make: Maker) -> None:
    """Only what comes after the last answer is sent."""
    chat = make(use_responses_api=True, use_previous_response_id=True)
    messages: list[Any] = [SystemMessage(support.essay(200))]
    continuity = support.Continuity()
    for turn in range(4):
        messages.append(HumanMessage(f"Question {turn}: {support.essay(10)}"))
        answer = chat.invoke(messages, max_tokens=30)
        assert answer.response_metadata["id"].startswith("resp_")
        continuity.turn(usage_of(answer))
        messages.append(answer)


def check_usage_of_a_stream(chat: ChatOpenAI) -> None:
    whole: Any = None
    counting = chat.model_copy(update={"stream_usage": True})
    for part in counting.stream(support.reply("Counted.") + support.essay(30)):
        whole = part if whole is None else whole + part
    assert whole.usage_metadata["input_tokens"] > 30
    assert "cache_read" in whole.usage_metadata["input_token_details"]


def check_an_unknown_model(make: Maker) -> None:
    for responses in (False, True):
        chat = make(use_responses_api=responses, max_retries=0)
        with pytest.raises(openai.NotFoundError):
            chat.invoke("Hello.", model="no-such-model")


@pytest.mark.anyio
async def check_async(make: Maker) -> None:
    """Both in one event loop: LangChain shares one connection pool between all its objects."""
    for responses in (False, True):
        chat = make(use_responses_api=responses)
        answer = await chat.ainvoke(support.reply("Here."))
        assert answer.text == "Here."
        text = ""
        async for part in chat.astream(support.reply("And there.")):
            text += part.text
        assert text == "And there."
