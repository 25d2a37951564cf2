from __future__ import annotations

from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmem.catalog.ids import now_us
from agentmem.core import TurnId
from agentmem.sessions.chat import Chat
from agentmem.sessions.log import (
    Log,
    LogCache,
    _common,
    empty_log,
    extend_prompt,
    join_ids,
)
from tests.unit.catalog.conftest import make_session, make_turn

Messages = tuple[dict[str, str], ...]


def user(text: str) -> Messages:
    return ({"role": "user", "content": text},)


async def after(chat: Chat, log: Log, messages: Messages, reply: list[int], text: str) -> Log:
    """The log after a turn with this reply, whose message is `text`."""
    prompt = await extend_prompt(chat, log, messages)
    said = {"role": "assistant", "content": text}
    return Log(
        TurnId(f"turn_{log.number + 1}"),
        log.number + 1,
        prompt.ids + array("I", reply),
        len(prompt.ids),
        prompt.text,
        (*log.messages, *messages, said),
        log.started_at,
    )


class TestExtendPrompt:
    async def test_first_turn_is_the_whole_rendering(self, chat: Chat) -> None:
        prompt = await extend_prompt(chat, empty_log(now_us()), user("hi"))
        assert prompt.ids.tolist() == chat.encode_now(prompt.text)
        assert (prompt.keep, prompt.rebased) == (0, False)

    @given(first=st.text(max_size=20), reply=st.text(max_size=20), second=st.text(max_size=20))
    async def test_later_ones_keep_every_id(
        self, chat: Chat, first: str, reply: str, second: str
    ) -> None:
        ids = [chat.token_id("<|im_end|>")]
        sampled = [*chat.encode_now(reply), *(i for i in ids if i is not None)]
        log = await after(chat, empty_log(0), user(first), sampled, reply)
        prompt = await extend_prompt(chat, log, user(second))
        assert not prompt.rebased
        assert prompt.ids[: len(log.ids)] == log.ids
        assert prompt.keep == len(log.ids)
        assert chat.decode(prompt.ids, special=True) == prompt.text

    async def test_ids_that_the_tokenizer_would_not_choose(self, chat: Chat) -> None:
        sampled = [chat.encode_now(character)[0] for character in "the pages"]
        assert sampled != chat.encode_now("the pages")
        log = await after(chat, empty_log(0), user("x"), sampled, "the pages")
        prompt = await extend_prompt(chat, log, user("y"))
        assert prompt.ids[: len(log.ids)] == log.ids

    async def test_a_trimmed_reply(self, trimming: Chat) -> None:
        log = await after(
            trimming, empty_log(0), user("x"), trimming.encode_now("  hello "), "  hello "
        )
        prompt = await extend_prompt(trimming, log, user("y"))
        assert prompt.rebased
        assert prompt.keep == log.prompt_tokens
        assert trimming.decode(prompt.ids, special=True) == prompt.text

    async def test_a_reply_trimmed_at_its_end_keeps_its_beginning(self, trimming: Chat) -> None:
        sampled = trimming.encode_now("hello there, agent")
        spaces = trimming.encode_now("\n\n")
        log = await after(
            trimming, empty_log(0), user("x"), sampled + spaces, "hello there, agent\n\n"
        )
        prompt = await extend_prompt(trimming, log, user("y"))
        assert prompt.rebased
        assert prompt.keep == log.prompt_tokens + len(sampled)
        assert prompt.ids[: prompt.keep] == log.ids[: prompt.keep]

    async def test_a_history_that_renders_otherwise_keeps_its_beginning(self, chat: Chat) -> None:
        """As with templates that drop an earlier turn's thinking."""
        log = await after(chat, empty_log(0), user("first"), chat.encode_now("one"), "one")
        log = await after(chat, log, user("second"), chat.encode_now("two"), "two")
        forgotten: Any = list(log.messages)
        forgotten[1] = {"role": "assistant", "content": "uno"}
        changed = Log(
            log.turn_id, 2, log.ids, log.prompt_tokens, log.prompt_text, tuple(forgotten), 0
        )
        prompt = await extend_prompt(chat, changed, user("third"))
        assert prompt.rebased
        assert chat.decode(prompt.ids, special=True) == prompt.text
        assert prompt.ids[: prompt.keep] == log.ids[: prompt.keep]
        start = chat.decode(log.ids[: prompt.keep], special=True)
        assert start.endswith("<|im_start|>assistant\n")
        # One id more would say what the new rendering does not.
        assert not prompt.text.startswith(chat.decode(log.ids[: prompt.keep + 1], special=True))

    @given(kept=st.text(max_size=12), cut=st.text("é🙂x \n", max_size=6), again=st.text(max_size=8))
    async def test_a_rebased_prompt_always_says_its_text(
        self, trimming: Chat, kept: str, cut: str, again: str
    ) -> None:
        sampled = trimming.encode_now(kept + cut)
        log = await after(trimming, empty_log(0), user("x"), sampled, kept + cut)
        prompt = await extend_prompt(trimming, log, user(again))
        assert trimming.decode(prompt.ids, special=True) == prompt.text
        assert prompt.ids[: prompt.keep] == log.ids[: prompt.keep]
        assert prompt.rebased == (prompt.keep < len(log.ids))
        assert prompt.keep >= log.prompt_tokens

    async def test_half_a_character_at_the_reply_s_end(self, chat: Chat) -> None:
        sampled = chat.encode_now("ok🙂")[:-2]
        text = chat.decode(sampled, special=False)
        assert text.endswith("\ufffd")
        log = await after(chat, empty_log(0), user("x"), sampled, text)
        assert not (await extend_prompt(chat, log, user("y"))).rebased


class TestJoin:
    def test_each_turn_keeps_a_part(self) -> None:
        session = make_session("ten_1")  # type: ignore[arg-type]
        first = make_turn(session, None, tokens=5)
        second = make_turn(session, first, tokens=3, keep=2, log_tokens=5)
        assert join_ids([first, second]).tolist() == [0, 1, 0, 1, 2]

    def test_a_chain_with_a_gap_is_noticed(self) -> None:
        session = make_session("ten_1")  # type: ignore[arg-type]
        first = make_turn(session, None, tokens=5)
        second = make_turn(session, first)
        with pytest.raises(AssertionError, match="does not fit"):
            join_ids([second])


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common_prefix(one: list[int], other: list[int]) -> None:
    slow = 0
    while slow < min(len(one), len(other)) and one[slow] == other[slow]:
        slow += 1
    assert _common(one, other) == slow


class TestLogCache:
    def make(self, name: str, tokens: int) -> Log:
        return Log(TurnId(name), 1, array("I", range(tokens)), 1, "", (), 0)

    def test_least_recently_used_goes_first(self) -> None:
        size = self.make("a", 100).size_bytes
        cache = LogCache(2 * size)
        for name in ("a", "b"):
            cache.put(self.make(name, 100))
        assert cache.get(TurnId("a")) is not None
        cache.put(self.make("c", 100))
        assert cache.get(TurnId("b")) is None
        assert cache.get(TurnId("a")) is not None
        assert cache._bytes == 2 * size

    def test_one_that_is_too_large_is_not_kept(self) -> None:
        cache = LogCache(100)
        cache.put(self.make("a", 1_000))
        assert cache.get(TurnId("a")) is None
        assert cache._bytes == 0

    def test_again_and_dropped(self) -> None:
        cache = LogCache(10_000)
        cache.put(self.make("a", 100))
        cache.put(self.make("a", 100))
        cache.drop(TurnId("a"))
        cache.drop(TurnId("a"))
        assert cache._bytes == 0
