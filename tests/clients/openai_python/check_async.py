"""The asynchronous client: the same paths once more, and many at a time."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
import support

pytestmark = pytest.mark.anyio


@pytest.fixture
async def async_model(async_client: openai.AsyncOpenAI) -> str:
    return (await async_client.models.list()).data[0].id


async def check_chat(async_client: openai.AsyncOpenAI, async_model: str) -> None:
    messages: Any = [{"role": "user", "content": support.reply("Hello there.")}]
    made = await async_client.chat.completions.create(model=async_model, messages=messages)
    assert made.choices[0].message.content == "Hello there."
    text = ""
    stream = await async_client.chat.completions.create(
        model=async_model, messages=messages, stream=True
    )
    async for chunk in stream:
        text += chunk.choices[0].delta.content or ""
    assert text == "Hello there."


async def check_responses(async_client: openai.AsyncOpenAI, async_model: str) -> None:
    made = await async_client.responses.create(model=async_model, input=support.reply("One."))
    text = ""
    stream = await async_client.responses.create(
        model=async_model,
        input=support.reply("Two."),
        previous_response_id=made.id,
        stream=True,
    )
    async for event in stream:
        if event.type == "response.output_text.delta":
            text += event.delta
    assert text == "Two."
    items = [item async for item in async_client.responses.input_items.list(made.id)]
    assert len(items) == 1
    await async_client.responses.delete(made.id)


async def check_conversations(async_client: openai.AsyncOpenAI, async_model: str) -> None:
    made = await async_client.conversations.create()
    response = await async_client.responses.create(
        model=async_model, conversation=made.id, input=support.reply("Here.")
    )
    assert response.output_text == "Here."
    listed = [item async for item in async_client.conversations.items.list(made.id, order="asc")]
    assert len(listed) == 2


async def check_many_at_once(async_client: openai.AsyncOpenAI, async_model: str) -> None:
    async def one(number: int) -> str:
        stream = await async_client.responses.create(
            model=async_model, input=support.reply(f"Number {number}."), stream=True
        )
        text = ""
        async for event in stream:
            if event.type == "response.output_text.delta":
                text += event.delta
        return text

    texts = await asyncio.gather(*map(one, range(24)))
    assert texts == [f"Number {number}." for number in range(24)]


async def check_a_client_that_leaves(async_client: openai.AsyncOpenAI, async_model: str) -> None:
    """The stream of a stored response may be left: the turn ends, and can be read."""
    stream = await async_client.responses.create(
        model=async_model,
        input=support.slow(0.005) + support.essay(5),
        stream=True,
        max_output_tokens=200,
        extra_body={"ignore_eos": True},
    )
    response_id = ""
    async for event in stream:
        if event.type == "response.created":
            response_id = event.response.id
        if event.type == "response.output_text.delta":
            break
    await stream.close()
    async with asyncio.timeout(20):
        while (await async_client.responses.retrieve(response_id)).status == "in_progress":
            await asyncio.sleep(0.05)
    assert (await async_client.responses.retrieve(response_id)).status == "incomplete"
