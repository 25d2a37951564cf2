"""Chat Completions as tests call them."""

from __future__ import annotations

import json
from typing import Any

import httpx2

from agentmem.testing.gateway import Client

CHAT = "/v1/chat/completions"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


def user(content: Any) -> dict[str, Any]:
    """A user's message."""
    return {"role": "user", "content": content}


async def post(
    client: Client, *messages: dict[str, Any], headers: dict[str, str] | None = None, **body: Any
) -> httpx2.Response:
    """The raw response."""
    body = {"messages": list(messages), "max_tokens": 40, **body}
    return await client.http.post(CHAT, json=body, headers=headers)


async def complete(client: Client, *messages: dict[str, Any], **body: Any) -> dict[str, Any]:
    """The completion."""
    response = await post(client, *messages, **body)
    assert response.status_code == 200, response.text
    completion: dict[str, Any] = response.json()
    return completion


async def stream(client: Client, *messages: dict[str, Any], **body: Any) -> list[dict[str, Any]]:
    """All chunks of a stream that ends as it should."""
    response = await post(client, *messages, stream=True, **body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


def text_of(chunks: list[dict[str, Any]], choice: int = 0) -> str:
    """The text that a choice's deltas make."""
    return "".join(
        one["delta"].get("content") or ""
        for chunk in chunks
        for one in chunk.get("choices", ())
        if one["index"] == choice
    )
