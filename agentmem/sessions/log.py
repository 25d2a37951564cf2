"""The token log of a session: what the model has read and said so far, as ids.

    ids:  [ prompt of the first turn | reply | delta | reply | ... ]
           [0, prompt_tokens) was the last turn's prompt, [prompt_tokens, len(ids)) its reply

The ids [0, prompt_tokens) stand for `prompt_text`, the rendering of all messages before the last
reply. Sampled ids are never tokenized again: a new turn appends what its rendering adds, or, where
the rendering does not start with the old text, keeps the longest part of the ids that still fits
(a re-base).
"""

from __future__ import annotations

import asyncio
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from agentmem.catalog.records import Turn
from agentmem.core import TurnId
from agentmem.sessions.chat import Chat, Message


@dataclass(frozen=True, slots=True)
class Log:
    """The log up to one turn; immutable. `started_at` is in microseconds since the epoch."""

    turn_id: TurnId | None
    number: int
    ids: array[int]
    prompt_tokens: int
    prompt_text: str
    messages: tuple[Message, ...]
    started_at: int

    @property
    def size_bytes(self) -> int:
        """Roughly what it takes in memory."""
        texts = sum(len(message["content"]) for message in self.messages)
        return 4 * len(self.ids) + len(self.prompt_text) + texts + 200 * (1 + len(self.messages))


def empty_log(started_at: int) -> Log:
    """The log of a session without turns."""
    return Log(None, 0, array("I"), 0, "", (), started_at)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a turn sends to the engine: old ids [0, keep), then new ones [keep, len(ids))."""

    ids: array[int]
    keep: int
    text: str
    rebased: bool = field(default=False)


def started(log: Log) -> datetime:
    """The date that the conversation's template shows."""
    return datetime.fromtimestamp(log.started_at / 1e6, tz=UTC)


def join_ids(chain: Sequence[Turn]) -> array[int]:
    """The ids of a chain of turns, first to last: each keeps a part of the log before it."""
    ids = array("I")
    for turn in chain:
        del ids[turn.keep :]
        ids.extend(turn.tokens)
        assert len(ids) == turn.log_tokens, f"turn {turn.id} does not fit the log before it"
    return ids


def read_log(chain: Sequence[Turn], chat: Chat) -> Log:
    """The log that a chain of turns (first to last, not empty) makes."""
    head = chain[-1]
    messages: list[Message] = []
    for turn in chain:
        messages.extend(turn.messages)
        messages.append(turn.reply)
    started_at = chain[0].created_at
    log = Log(head.id, head.number, join_ids(chain), head.prompt_tokens, "", (), started_at)
    prompt_text = chat.render(messages[:-1], now=started(log))
    return Log(
        head.id, head.number, log.ids, head.prompt_tokens, prompt_text, tuple(messages), started_at
    )


def extended_log(log: Log, turn: Turn, prompt: Prompt) -> Log:
    """The log after `turn`, which ran with `prompt` on top of `log`."""
    ids = prompt.ids + turn.output_ids
    messages = (*log.messages, *turn.messages, turn.reply)
    return Log(turn.id, turn.number, ids, len(prompt.ids), prompt.text, messages, log.started_at)


async def extend_prompt(chat: Chat, log: Log, messages: Sequence[Message]) -> Prompt:
    """Renders the whole conversation with `messages` at its end and continues the log's ids."""
    text = chat.render((*log.messages, *messages), now=started(log))
    if log.number == 0:
        return Prompt(array("I", await chat.encode(text)), 0, text)
    reply = chat.decode(log.ids[log.prompt_tokens :], special=True)
    # Two checks instead of joining: the prompt's text may be megabytes.
    if text.startswith(log.prompt_text) and text.startswith(reply, len(log.prompt_text)):
        rest = text[len(log.prompt_text) + len(reply) :]
        return Prompt(log.ids + array("I", await chat.encode(rest)), len(log.ids), text)
    return await asyncio.to_thread(_rebase, chat, log, text)


def _rebase(chat: Chat, log: Log, text: str) -> Prompt:
    """Keeps the longest start of the old ids whose text still begins the new rendering."""
    base, rest = 0, text
    if text.startswith(log.prompt_text):
        base, rest = log.prompt_tokens, text[len(log.prompt_text) :]
    fitting, length = _fitting(chat, log.ids[base:], rest)
    keep = base + fitting
    ids = log.ids[:keep] + array("I", chat.encode_now(rest[length:]))
    if base == 0:
        # A tokenizer that does not decode to what it encoded may share more ids than text.
        whole = array("I", chat.encode_now(text))
        shared = _common(log.ids, whole)
        if shared > keep:
            ids, keep = whole, shared
    return Prompt(ids, keep, text, rebased=keep < len(log.ids))


def _fitting(chat: Chat, ids: array[int], text: str) -> tuple[int, int]:
    """The most ids whose text `text` starts with, and the length of that text."""
    decoded = chat.decode(ids, special=True)
    same = _common(decoded, text)
    # The length of the text of ids[:n] grows with n, but for characters that are not complete.
    fitting = bisect_right(
        range(len(ids) + 1), same, key=lambda n: len(chat.decode(ids[:n], special=True))
    )
    for count in range(min(fitting, len(ids)), 0, -1):
        start = chat.decode(ids[:count], special=True)
        if text.startswith(start):
            return count, len(start)
    return 0, 0


def _common(one: Sequence[object] | str, other: Sequence[object] | str) -> int:
    """Length of the common prefix, found by halving: comparing slices runs in C."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class LogCache:
    """Logs by turn id, least recently used first out. Turns are immutable, so none goes stale."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._logs: OrderedDict[TurnId, Log] = OrderedDict()

    def get(self, turn_id: TurnId) -> Log | None:
        """The log that ends with this turn, if it is still here."""
        log = self._logs.get(turn_id)
        if log is not None:
            self._logs.move_to_end(turn_id)
        return log

    def put(self, log: Log) -> None:
        """Keeps a log, at the cost of those unused for longest."""
        assert log.turn_id is not None, "the empty log needs no keeping"
        self.drop(log.turn_id)
        self._logs[log.turn_id] = log
        self._bytes += log.size_bytes
        while self._bytes > self._bytes_max and self._logs:
            _, old = self._logs.popitem(last=False)
            self._bytes -= old.size_bytes

    def drop(self, turn_id: TurnId) -> None:
        """Forgets a log: its session was deleted."""
        old = self._logs.pop(turn_id, None)
        if old is not None:
            self._bytes -= old.size_bytes
