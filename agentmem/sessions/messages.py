"""Messages of a conversation, and the hashes by which a resent history is recognised.

A message is what chat templates take: {"role", "content"} and, where there are any, "tool_calls"
([{"id", "type": "function", "function": {"name", "arguments"}}], arguments as JSON text),
"tool_call_id", "name", "reasoning_content". `content` is text, or None beside tool calls.

Clients change what they resend: thinking is dropped, replies are trimmed, a call's arguments come
with other white space and key order, ids are made anew. The canonical form leaves all that out, so
that it equals what was stored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = Mapping[str, Any]
Tool = Mapping[str, Any]
HASH_BYTES = 16

_ROLES = {"developer": "system", "function": "tool"}


@dataclass(frozen=True, slots=True)
class Framing:
    """What stands around the messages in the prompt: part of every turn, not of the history.

    `instructions` are rendered as a system message before all others, `tools` by the template.
    """

    instructions: str | None = None
    tools: tuple[Tool, ...] = ()
    reasoning_effort: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """As it is stored."""
        return {
            "instructions": self.instructions,
            "tools": [dict(tool) for tool in self.tools],
            "reasoning_effort": self.reasoning_effort,
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Framing:
        """From `as_dict`."""
        return cls(stored["instructions"], tuple(stored["tools"]), stored.get("reasoning_effort"))

    def same_prompt(self, other: Framing) -> bool:
        """Whether both say the same, whatever the order of the keys in their tools."""
        return (self.instructions, self.reasoning_effort) == (
            other.instructions,
            other.reasoning_effort,
        ) and canonical_json(self.tools) == canonical_json(other.tools)


NO_FRAMING = Framing()


def framed(framing: Framing, messages: Iterable[Message]) -> list[Message]:
    """The messages with the instructions before them, as the template gets them."""
    if framing.instructions is None:
        return list(messages)
    return [{"role": "system", "content": framing.instructions}, *messages]


def canonical_json(value: Any) -> str:
    """JSON that does not depend on key order or white space."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def seed_hash(model: str, tools: Sequence[Tool]) -> bytes:
    """The hash of no messages at all: 16 bytes; other tools make another prompt from the start."""
    return _digest(b"", f"{model}\n{canonical_json(list(tools))}")


def extend_hash(state: bytes, message: Message) -> bytes:
    """The hash of a conversation with one more message."""
    return _digest(state, _canonical(message))


def chain_hashes(model: str, framing: Framing, messages: Sequence[Message]) -> list[bytes]:
    """Hashes of the conversation up to each message: entry i covers messages [0, i]."""
    state = seed_hash(model, framing.tools)
    if framing.instructions is not None:
        state = extend_hash(state, {"role": "system", "content": framing.instructions})
    hashes = []
    for message in messages:
        state = extend_hash(state, message)
        hashes.append(state)
    return hashes


def _digest(state: bytes, text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(encoded, key=state, digest_size=HASH_BYTES).digest()


def _canonical(message: Message) -> str:
    role = _ROLES.get(message["role"], message["role"])
    content = message.get("content") or ""
    if role == "assistant":
        # Templates and clients trim replies; what a user wrote is theirs to the last blank.
        content = content.strip()
    calls = [
        [call["function"]["name"], _arguments(call["function"]["arguments"])]
        for call in message.get("tool_calls") or ()
    ]
    return canonical_json([role, message.get("name"), content, calls])


def _arguments(text: str) -> Any:
    """A call's arguments as a value; text that is no JSON stands for itself."""
    try:
        return [json.loads(text)]
    except (ValueError, RecursionError):
        return text
