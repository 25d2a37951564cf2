"""Items of the Responses API, and the messages that they are.

An item is a dict as it is stored and shown: with `id` and `type`, contents always in parts.

    message                {"role", "status", "content": [{"type": "input_text" | "output_text" |
                           "refusal", ...}]}
    reasoning              {"summary": [], "content": [{"type": "reasoning_text", "text"}]}
    function_call          {"call_id", "name", "arguments"}
    function_call_output   {"call_id", "output": text or parts}
    compaction             {"encrypted_content"}

What a model said in one turn is several items and one message. The pure functions here go both
ways, so that a history that was sent again has the canonical hashes of the stored turns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from agentmem.catalog.ids import new_id
from agentmem.errors import InvalidRequest
from agentmem.sessions.messages import Message

Item = Mapping[str, Any]

_PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "compaction": "cmp",
}
_ID = re.compile(r"[a-z]{2,10}_[A-Za-z0-9_-]{1,64}\Z")
SUMMARY_HEADING = "Summary of the conversation so far:"


def numbered_items(items: Iterable[Item], taken: Iterable[str] = ()) -> list[dict[str, Any]]:
    """The items with ids: their own where they have good ones that nobody has yet, else new ones.

    `taken` are ids of items that they are put beside.
    """
    seen = set(taken)
    numbered = []
    for item in items:
        own = item.get("id")
        if not isinstance(own, str) or not is_item_id(own) or own in seen:
            own = new_id(_PREFIXES[item["type"]])
        seen.add(own)
        numbered.append({**item, "id": own})
    return numbered


def is_item_id(text: str) -> bool:
    """Whether an item could have this id: what else no query needs to see."""
    return _ID.match(text) is not None


def message_item(role: str, text: str) -> dict[str, Any]:
    """A message without an id, of one part."""
    part: dict[str, Any] = {"type": "input_text", "text": text}
    if role == "assistant":
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "message", "status": "completed", "role": role, "content": [part]}


class _Said:
    """What the model said in one turn, item by item."""

    def __init__(self) -> None:
        self.thinking: list[str] = []
        self.texts: list[str] = []
        self.calls: list[dict[str, Any]] = []

    @property
    def empty(self) -> bool:
        return not (self.thinking or self.texts or self.calls)

    def message(self) -> dict[str, Any]:
        """As a reply is stored (`sessions.reply`)."""
        text = "".join(self.texts)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if self.thinking:
            message["reasoning_content"] = "".join(self.thinking)
        if self.calls:
            message["content"] = text or None
            message["tool_calls"] = self.calls
        return message


def messages_of(
    items: Sequence[Item], unseal: Callable[[Item, int], str], *, first: int = 0
) -> tuple[Message, ...]:
    """The conversation that items make. Thinking, text and calls in a row are one reply.

    `unseal` opens the `encrypted_content` of an item (a compaction, or thinking that comes without
    its text), given with its number from `first` on, and raises InvalidRequest if it is not ours.
    """
    messages: list[Message] = []
    said = _Said()

    def end_reply() -> None:
        nonlocal said
        if not said.empty:
            messages.append(said.message())
            said = _Said()

    for index, item in enumerate(items, first):
        kind = item["type"]
        if kind == "reasoning":
            thinking = _thinking(item, unseal, index)
            if thinking:
                said.thinking.append(thinking)
        elif kind == "message" and item["role"] == "assistant":
            # One reply has no two messages side by side: they are two replies.
            if said.texts and items[index - first - 1]["type"] == "message":
                end_reply()
            said.texts.append(_text(item["content"]))
        elif kind == "function_call":
            said.calls.append(_call(item))
        else:
            end_reply()
            messages.append(_other(item, unseal, index))
    end_reply()
    return tuple(messages)


def reply_items(message: Message) -> list[dict[str, Any]]:
    """A reply as items, without ids: thinking, text, calls. The inverse of `messages_of`."""
    items: list[dict[str, Any]] = []
    if message.get("reasoning_content"):
        items.append(reasoning_item(message["reasoning_content"]))
    calls = message.get("tool_calls") or ()
    if message.get("content") or not calls:
        items.append(message_item("assistant", message.get("content") or ""))
    for call in calls:
        items.append(call_item(call))
    return items


def reasoning_item(text: str) -> dict[str, Any]:
    """What the model thought, without an id."""
    return {
        "type": "reasoning",
        "status": "completed",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": text}],
    }


def call_item(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call out of a message's `tool_calls`, without an id."""
    return {
        "type": "function_call",
        "status": "completed",
        "call_id": call["id"],
        "name": call["function"]["name"],
        "arguments": call["function"]["arguments"],
    }


def is_user_message(item: Item) -> bool:
    """Whether a user said it."""
    return bool(item["type"] == "message" and item["role"] == "user")


def _other(item: Item, unseal: Callable[[Item, int], str], index: int) -> Message:
    kind = item["type"]
    if kind == "message":
        role = "system" if item["role"] == "developer" else item["role"]
        return {"role": role, "content": _text(item["content"], "\n")}
    if kind == "function_call_output":
        output = item["output"]
        text = output if isinstance(output, str) else _text(output, "\n")
        return {"role": "tool", "tool_call_id": item["call_id"], "content": text}
    if kind == "compaction":
        summary = unseal(item, index)
        return {"role": "user", "content": f"{SUMMARY_HEADING}\n{summary}"}
    raise InvalidRequest(f"Items of type {kind!r} are not supported.", param=f"input[{index}].type")


def _thinking(item: Item, unseal: Callable[[Item, int], str], index: int) -> str:
    parts = item.get("content") or item.get("summary")
    if parts:
        return "".join(part["text"] for part in parts)
    return unseal(item, index) if item.get("encrypted_content") else ""


def _call(item: Item) -> dict[str, Any]:
    return {
        "id": item["call_id"],
        "type": "function",
        "function": {"name": item["name"], "arguments": item["arguments"]},
    }


def _text(parts: Sequence[Mapping[str, Any]], between: str = "") -> str:
    """A reply in parts is one text; parts that somebody put together stay apart."""
    return between.join(
        part["refusal"] if part["type"] == "refusal" else part["text"] for part in parts
    )
