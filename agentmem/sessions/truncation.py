"""A conversation that is too long: what goes, so that what stays is still cached.

The beginning stays (a context, instructions, system messages), and so do the newest messages; the
oldest ones in between go, whole exchanges at a time. More goes than has to, so that the next turns
continue what is left instead of cutting at another place each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agentmem.sessions.chat import Chat
from agentmem.sessions.log import Log, Prompt, fill_prompt
from agentmem.sessions.messages import Message

# Of the room for a prompt, so much is filled after a cut.
_FILLED = 0.75


async def truncated(chat: Chat, log: Log, prompt: Prompt, *, limit_tokens: int) -> Prompt:
    """The prompt without its oldest exchanges; it may still be too long when nothing more can go.

    `limit_tokens` is what the prompt may have.
    """
    first = max(log.fixed, _system_messages(prompt.messages))
    cuts = [
        index
        for index in range(first + 1, len(prompt.messages))
        if prompt.messages[index]["role"] == "user"
    ]
    sizes = [_size(message) for message in prompt.messages]
    tokens_per_character = len(prompt.ids) / max(1, sum(sizes))
    excess = len(prompt.ids) - _FILLED * max(0, limit_tokens)
    shorter = prompt
    for index in cuts:
        last_cut = index == cuts[-1]
        if sum(sizes[first:index]) * tokens_per_character < excess and not last_cut:
            continue
        shorter = await fill_prompt(chat, log, _without(prompt, first, index))
        if len(shorter.ids) <= limit_tokens:
            return shorter
    return shorter


def _without(prompt: Prompt, first: int, last: int) -> Prompt:
    gone = last - first
    replies = tuple(
        index if index < first else index - gone
        for index in prompt.replies
        if not first <= index < last
    )
    messages = (*prompt.messages[:first], *prompt.messages[last:])
    return replace(prompt, messages=messages, replies=replies, dropped=(first, last))


def _system_messages(messages: Sequence[Message]) -> int:
    for index, message in enumerate(messages):
        if message["role"] != "system":
            return index
    return len(messages)


def _size(message: Message) -> int:
    calls = sum(len(call["function"]["arguments"]) for call in message.get("tool_calls") or ())
    return len(message.get("content") or "") + calls + 8
