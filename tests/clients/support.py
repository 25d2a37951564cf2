"""What the clients' tests share: texts, tools, and how much of a prompt came from the cache."""

from __future__ import annotations

import random
import uuid
from typing import Any

CACHED_SHARE_MIN = 0.9

_WORDS = (
    "session",
    "token",
    "page",
    "memory",
    "device",
    "host",
    "disk",
    "store",
    "resume",
    "agent",
    "turn",
    "river",
    "stone",
    "garden",
    "winter",
    "signal",
    "harbour",
    "copper",
    "meadow",
)

WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
# The same function as Chat Completions and as Responses take it.
CHAT_TOOL: dict[str, Any] = {"type": "function", "function": WEATHER}
RESPONSES_TOOL: dict[str, Any] = {"type": "function", "strict": True, **WEATHER}


def essay(words: int) -> str:
    """So many words that no other call returns: nothing of another test can be in the cache."""
    unique = uuid.uuid4().hex
    source = random.Random(unique)
    return f"{unique} " + " ".join(source.choice(_WORDS) for _ in range(words))


def reply(text: str) -> str:
    """A prompt that makes the scripted engine say exactly `text`."""
    return f"[[reply: {text}]]"


def call(name: str, arguments: str) -> str:
    """A prompt that makes the scripted engine call a tool with JSON arguments."""
    return f"[[call: {name} {arguments}]]"


def slow(seconds: float) -> str:
    """A part of a prompt that makes the scripted engine take so long per token."""
    return f"[[pace: {seconds}]] "


def chat_usage(usage: Any) -> tuple[int, int, int]:
    """(prompt, cached, total) tokens of a chat completion's usage."""
    details = usage.prompt_tokens_details
    return usage.prompt_tokens, details.cached_tokens, usage.total_tokens


def response_usage(usage: Any) -> tuple[int, int, int]:
    """(prompt, cached, total) tokens of a response's usage."""
    return usage.input_tokens, usage.input_tokens_details.cached_tokens, usage.total_tokens


class Continuity:
    """Checks turn by turn that what was there before the turn came from the cache."""

    def __init__(self) -> None:
        self._before = 0
        self.turns = 0

    def turn(self, usage: tuple[int, int, int]) -> None:
        """Takes one turn's (prompt, cached, total) tokens."""
        prompt, cached, total = usage
        self.turns += 1
        share = cached / self._before if self._before else 1.0
        assert prompt > self._before, f"turn {self.turns}: {prompt} tokens, {self._before} before"
        assert share >= CACHED_SHARE_MIN, (
            f"turn {self.turns}: {cached} of the {self._before} tokens that were there before it "
            f"came from the cache, {share:.2f}; at least {CACHED_SHARE_MIN} should"
        )
        self._before = total
