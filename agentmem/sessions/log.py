"""The token log of a session: what the model has read and said so far, as ids.

    ids:  [ prompt of the first turn | reply | delta | reply | ... ]
           [0, prompt_tokens) was the last turn's prompt, [prompt_tokens, len(ids)) its reply

Sampled ids are never tokenized again. A new turn renders the whole conversation with each sampled
reply replaced by a mark (the skeleton). Where the skeleton of the log so far begins the new one,
what follows the last reply's mark is tokenized and appended to the ids, whatever the reply's text
is: it need not tokenize to the ids that were sampled, and a template that leaves thinking out of
earlier replies changes nothing. Where it does not (other instructions, an edited message), or the
reply was cut by a stop string, the longest part of the ids that still fits is kept: a re-base.
"""

from __future__ import annotations

import asyncio
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from agentmem.catalog.records import Turn
from agentmem.core import TurnId
from agentmem.errors import InvalidRequest
from agentmem.sessions.chat import Chat
from agentmem.sessions.messages import NO_FRAMING, Framing, Message

# Stands for a sampled reply in a skeleton. Only its place counts: a message that contains it by
# chance stands elsewhere.
_MARK = "agentmem9f3a61sampled0reply"
_MARKED: Message = {"role": "assistant", "content": _MARK}


@dataclass(frozen=True, slots=True)
class Log:
    """The log up to one turn; immutable. `started_at` is in microseconds since the epoch.

    `messages` are what the ids stand for, `replies` the indexes of the sampled ones among them.
    `skeleton` is the rendering up to the last reply. `whole` is False when the last reply's text
    is not all that was sampled (a stop string cut it). `prefix_hash` is that of the conversation
    as its caller knows it, with what `truncation` dropped.
    """

    turn_id: TurnId | None
    number: int
    ids: array[int]
    prompt_tokens: int
    skeleton: str
    messages: tuple[Message, ...]
    replies: tuple[int, ...]
    framing: Framing
    started_at: int
    whole: bool = True
    prefix_hash: bytes | None = None
    fixed: int = 0

    @property
    def size_bytes(self) -> int:
        """Roughly what it takes in memory."""
        texts = sum(len(message.get("content") or "") for message in self.messages)
        return 4 * len(self.ids) + len(self.skeleton) + texts + 200 * (1 + len(self.messages))


def empty_log(started_at: int) -> Log:
    """The log of a session without turns."""
    return Log(None, 0, array("I"), 0, "", (), (), NO_FRAMING, started_at)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a turn sends to the engine: old ids [0, keep), then new ones [keep, len(ids)).

    `messages` and `replies` are as in `Log`, up to where the reply is to come. `dropped` is the
    part [first, last) of the log's and the turn's messages that truncation left out.
    """

    ids: array[int]
    keep: int
    skeleton: str
    messages: tuple[Message, ...]
    replies: tuple[int, ...]
    framing: Framing
    rebased: bool = field(default=False)
    dropped: tuple[int, int] | None = None


def started(log: Log) -> datetime:
    """The date that the conversation's template shows."""
    return datetime.fromtimestamp(log.started_at / 1e6, tz=UTC)


def join_ids(chain: Sequence[Turn], before: Sequence[int] = ()) -> array[int]:
    """The ids of a chain of turns, first to last: each keeps a part of the log before it.
    `before`: those that the chain goes on from."""
    ids = array("I", before)
    for turn in chain:
        del ids[turn.keep :]
        ids.extend(turn.tokens)
        assert len(ids) == turn.log_tokens, f"turn {turn.id} does not fit the log before it"
    return ids


def read_log(chain: Sequence[Turn], chat: Chat, base: Log | None = None) -> Log:
    """The log that a chain of turns (first to last, not empty) makes, on top of `base` where the
    chain is not the whole."""
    head = chain[-1]
    base = base or empty_log(chain[0].created_at)
    sampled_before = set(base.replies)
    told = [(message, index in sampled_before) for index, message in enumerate(base.messages)]
    framing, fixed = base.framing, base.fixed
    for turn in chain:
        told.extend((message, False) for message in turn.messages)
        if turn.dropped is not None:
            del told[slice(*turn.dropped)]
        if turn.framing is not None:
            framing = Framing.from_dict(turn.framing)
        if turn.reply is None:
            fixed = len(told)
        else:
            told.append((turn.reply, True))
    messages = tuple(message for message, _ in told)
    replies = tuple(index for index, (_, sampled) in enumerate(told) if sampled)
    now = started(base)
    if head.reply is None:
        skeleton = chat.render(messages, now=now, framing=framing, add_generation_prompt=False)
    else:
        skeleton = _skeleton(chat, messages[:-1], replies[:-1], framing, now)
    return Log(
        turn_id=head.id,
        number=head.number,
        ids=join_ids(chain, base.ids),
        prompt_tokens=head.prompt_tokens,
        skeleton=skeleton,
        messages=messages,
        replies=replies,
        framing=framing,
        started_at=base.started_at,
        whole=is_whole(chat, head),
        prefix_hash=head.prefix_hash,
        fixed=fixed,
    )


def is_whole(chat: Chat, turn: Turn) -> bool:
    """Whether the reply's text is all that was sampled: no stop string cut it."""
    if not turn.sampling.get("stop") or turn.finish_reason != "stop":
        return True
    return not chat.decode(turn.output_ids[-1:], special=False)


def extended_log(chat: Chat, log: Log, turn: Turn, prompt: Prompt) -> Log:
    """The log after `turn`, which ran with `prompt` on top of `log`."""
    assert turn.reply is not None, "a context's turn extends nothing"
    return Log(
        turn_id=turn.id,
        number=turn.number,
        ids=prompt.ids + turn.output_ids,
        prompt_tokens=len(prompt.ids),
        skeleton=prompt.skeleton,
        messages=(*prompt.messages, turn.reply),
        replies=(*prompt.replies, len(prompt.messages)),
        framing=prompt.framing,
        started_at=log.started_at,
        whole=is_whole(chat, turn),
        prefix_hash=turn.prefix_hash,
        fixed=log.fixed,
    )


def continued(log: Log, messages: Sequence[Message], framing: Framing) -> Prompt:
    """The prompt without its ids: the log's messages, the new ones, and what frames them."""
    # Tools that say the same in another order are rendered as they were the first time.
    kept = log.framing if framing.same_prompt(log.framing) else framing
    return Prompt(array("I"), 0, "", (*log.messages, *messages), log.replies, kept)


async def fill_prompt(chat: Chat, log: Log, prompt: Prompt) -> Prompt:
    """Renders the prompt's conversation and continues the log's ids.

    Raises InvalidRequest when the model's template refuses the messages.
    """
    now = started(log)
    skeleton = _skeleton(chat, prompt.messages, prompt.replies, prompt.framing, now)
    if log.turn_id is not None and log.whole and prompt.dropped is None:
        rest = _rest(chat, log, skeleton)
        if rest is not None:
            ids = log.ids + array("I", await chat.encode(rest))
            return replace(prompt, ids=ids, keep=len(log.ids), skeleton=skeleton)
    text = skeleton
    if prompt.replies or not skeleton:
        text = chat.render(prompt.messages, now=now, framing=prompt.framing)
    if log.turn_id is None:
        return replace(prompt, ids=array("I", await chat.encode(text)), skeleton=skeleton)
    return await asyncio.to_thread(_rebase, chat, log, replace(prompt, skeleton=skeleton), text)


def _skeleton(
    chat: Chat,
    messages: Sequence[Message],
    replies: Sequence[int],
    framing: Framing,
    now: datetime,
) -> str:
    """The rendering with a mark for each sampled reply; "" where the template refuses that."""
    if not replies:
        return chat.render(messages, now=now, framing=framing)
    marked = list(messages)
    for index in replies:
        marked[index] = _MARKED
    try:
        return chat.render(marked, now=now, framing=framing)
    except InvalidRequest:
        return ""


def _rest(chat: Chat, log: Log, skeleton: str) -> str | None:
    """What the new skeleton has after the log's end; None where it does not continue the log."""
    if not log.skeleton or not skeleton.startswith(log.skeleton):
        return None
    at = len(log.skeleton)
    if log.prompt_tokens == len(log.ids):  # a context: it ends where its messages end
        return skeleton[at:]
    if not skeleton.startswith(_MARK, at):
        return None
    rest = skeleton[at + len(_MARK) :]
    # The token that ended the reply is in the log already; the template writes it again.
    last = log.ids[-1:]
    if not chat.decode(last, special=False):
        rest = rest.removeprefix(chat.decode(last, special=True))
    return rest


def _rebase(chat: Chat, log: Log, prompt: Prompt, text: str) -> Prompt:
    """Keeps the longest start of the old ids whose text still begins the new rendering."""
    base, rest = 0, text
    if log.replies and prompt.dropped is None:
        before = _plain_prompt(chat, log)
        if before and text.startswith(before):
            base, rest = log.prompt_tokens, text[len(before) :]
    fitting, length = _fitting(chat, log.ids[base:], rest)
    keep = base + fitting
    ids = log.ids[:keep] + array("I", chat.encode_now(rest[length:]))
    if base == 0:
        # A tokenizer that does not decode to what it encoded may share more ids than text.
        whole = array("I", chat.encode_now(text))
        shared = common_prefix(log.ids, whole)
        if shared > keep:
            ids, keep = whole, shared
    return replace(prompt, ids=ids, keep=keep, rebased=keep < len(log.ids))


def _plain_prompt(chat: Chat, log: Log) -> str:
    """What the last turn's prompt rendered as; "" where the template refuses that today."""
    try:
        return chat.render(log.messages[:-1], now=started(log), framing=log.framing)
    except InvalidRequest:
        return ""


def _fitting(chat: Chat, ids: array[int], text: str) -> tuple[int, int]:
    """The most ids whose text `text` starts with, and the length of that text."""
    decoded = chat.decode(ids, special=True)
    same = common_prefix(decoded, text)
    # The length of the text of ids[:n] grows with n, but for characters that are not complete.
    fitting = bisect_right(
        range(len(ids) + 1), same, key=lambda n: len(chat.decode(ids[:n], special=True))
    )
    for count in range(min(fitting, len(ids)), 0, -1):
        start = chat.decode(ids[:count], special=True)
        if text.startswith(start):
            return count, len(start)
    return 0, 0


def common_prefix(one: Sequence[object] | str, other: Sequence[object] | str) -> int:
    """How many elements both begin with, found by halving: comparing slices runs in C."""
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
