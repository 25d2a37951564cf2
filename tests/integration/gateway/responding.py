"""Responses and conversations as tests call them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from agentmem.testing.gateway import Client

RESPONSES = "/v1/responses"
CONVERSATIONS = "/v1/conversations"
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
    "strict": None,
}
Event = tuple[str, dict[str, Any]]


def user(text: str) -> dict[str, Any]:
    """A user's message without id and type, as many clients send it."""
    return {"role": "user", "content": text}


def reply(text: str) -> str:
    """What makes the fake engine say exactly this."""
    return f"[[reply: {text}]]"


async def post(
    client: Client, given: Any, *, headers: dict[str, str] | None = None, **body: Any
) -> httpx2.Response:
    """The raw response."""
    body = {"input": given, "max_output_tokens": 300, **body}
    return await client.http.post(RESPONSES, json=body, headers=headers)


async def respond(client: Client, given: Any, **body: Any) -> dict[str, Any]:
    """The response object."""
    response = await post(client, given, **body)
    assert response.status_code == 200, response.text
    made: dict[str, Any] = response.json()
    return made


async def get(client: Client, path: str, **query: Any) -> dict[str, Any]:
    """What is read at a path below /v1."""
    response = await client.http.get(f"/v1/{path}", params=query)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def text_of(response: dict[str, Any]) -> str:
    """All text of a response's output."""
    return "".join(
        part["text"]
        for item in response["output"]
        if item["type"] == "message"
        for part in item["content"]
    )


def cached(response: dict[str, Any]) -> int:
    """Prompt tokens that were not computed."""
    count: int = response["usage"]["input_tokens_details"]["cached_tokens"]
    return count


def parse(text: str) -> list[Event]:
    """The events of a whole stream; it must end as streams do."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert blocks[-1] == "data: [DONE]"
    events = []
    for block in blocks[:-1]:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append((event["type"], event))
    return events


async def stream(client: Client, given: Any, **body: Any) -> list[Event]:
    """All events of a response, whose numbers are checked."""
    response = await post(client, given, stream=True, **body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    events = parse(response.text)
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
    return events


@asynccontextmanager
async def streaming(
    client: Client, given: Any, **body: Any
) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """The events as they come; leaving breaks the connection."""
    body = {"input": given, "max_output_tokens": 300, "stream": True, **body}
    async with client.http.stream("POST", RESPONSES, json=body) as response:
        assert response.status_code == 200, (await response.aread()).decode()
        yield _events(response)


async def _events(response: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))
