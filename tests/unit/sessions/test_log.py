from __future__ import annotations

from array import array
from dataclasses import replace
from datetime import UTC, datetime
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
    Prompt,
    common_prefix,
    continued,
    empty_log,
    fill_prompt,
    join_ids,
    read_log,
    started,
)
from agentmem.sessions.messages import NO_FRAMING, Framing, Message
from tests.unit.catalog.conftest import make_session, make_turn

Messages = tuple[Message, ...]
END = "<|im_end|>"
_EPOCH = datetime.fromtimestamp(0, tz=UTC)
TOOLS: tuple[dict[str, Any], ...] = (
    {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}},
)

# NUL is refused in what clients send, and no reply has it.
STORABLE = st.characters(exclude_characters="\x00", exclude_categories=["Cs"])


def user(text: str) -> Messages:
    return ({"role": "user", "content": text},)


async def extend(chat: Chat, log: Log, messages: Messages, framing: Framing = NO_FRAMING) -> Prompt:
    return await fill_prompt(chat, log, continued(log, messages, framing))


async def after(
    chat: Chat,
    log: Log,
    messages: Messages,
    reply: list[int],
    text: str,
    *,
    whole: bool = True,
    framing: Framing = NO_FRAMING,
    **fields: Any,
) -> Log:
    """The log after a turn with this reply, whose message is `text`."""
    prompt = await extend(chat, log, messages, framing)
    said = {"role": "assistant", "content": text, **fields}
    return Log(
        turn_id=TurnId(f"turn_{log.number + 1}"),
        number=log.number + 1,
        ids=prompt.ids + array("I", reply),
        prompt_tokens=len(prompt.ids),
        skeleton=prompt.skeleton,
        messages=(*prompt.messages, said),
        replies=(*prompt.replies, len(prompt.messages)),
        framing=prompt.framing,
        started_at=log.started_at,
        whole=whole,
    )


def ended(chat: Chat, text: str) -> list[int]:
    end = chat.token_id(END)
    assert end is not None
    return [*chat.encode_now(text), end]


def plain(chat: Chat, log: Log, messages: Messages) -> str:
    return chat.render((*log.messages, *messages), now=started(log))


class TestFillPrompt:
    async def test_first_turn_is_the_whole_rendering(self, chat: Chat) -> None:
        log = empty_log(now_us())
        prompt = await extend(chat, log, user("hi"))
        assert prompt.ids.tolist() == chat.encode_now(plain(chat, log, user("hi")))
        assert (prompt.keep, prompt.rebased) == (0, False)

    @given(
        first=st.text(STORABLE, max_size=20),
        reply=st.text(STORABLE, max_size=20),
        second=st.text(STORABLE, max_size=20),
    )
    async def test_later_ones_keep_every_id(
        self, chat: Chat, first: str, reply: str, second: str
    ) -> None:
        log = await after(chat, empty_log(0), user(first), ended(chat, reply), reply)
        prompt = await extend(chat, log, user(second))
        assert not prompt.rebased
        assert prompt.ids[: len(log.ids)] == log.ids
        assert prompt.keep == len(log.ids)
        assert chat.decode(prompt.ids, special=True) == plain(chat, log, user(second))

    async def test_ids_that_the_tokenizer_would_not_choose(self, chat: Chat) -> None:
        sampled = [chat.encode_now(character)[0] for character in "the pages"]
        assert sampled != chat.encode_now("the pages")
        log = await after(chat, empty_log(0), user("x"), sampled, "the pages")
        prompt = await extend(chat, log, user("y"))
        assert prompt.ids[: len(log.ids)] == log.ids

    async def test_a_reply_that_ran_out_of_tokens_is_ended_by_the_template(
        self, chat: Chat
    ) -> None:
        log = await after(chat, empty_log(0), user("x"), chat.encode_now("half a"), "half a")
        prompt = await extend(chat, log, user("y"))
        assert prompt.keep == len(log.ids)
        rest = chat.decode(prompt.ids[prompt.keep :], special=True)
        assert rest.startswith(f"{END}\n<|im_start|>user\ny{END}")

    async def test_a_reply_that_the_template_trims_stays_as_sampled(self, trimming: Chat) -> None:
        sampled = ended(trimming, "  hello ")
        log = await after(trimming, empty_log(0), user("x"), sampled, "  hello ")
        prompt = await extend(trimming, log, user("y"))
        assert not prompt.rebased
        assert prompt.ids[: len(log.ids)] == log.ids

    async def test_thinking_that_the_template_drops_stays_as_sampled(self, chat: Chat) -> None:
        sampled = ended(chat, "<think>\nhm\n</think>\n\nyes")
        log = await after(chat, empty_log(0), user("x"), sampled, "yes", reasoning_content="hm")
        log = await after(chat, log, user("more"), ended(chat, "no"), "no")
        prompt = await extend(chat, log, user("y"))
        assert not prompt.rebased
        assert prompt.ids[: len(log.ids)] == log.ids

    async def test_tools_in_another_order_are_the_same_tools(self, tooled: Chat) -> None:
        framing = Framing(tools=TOOLS)
        log = await after(
            tooled, empty_log(0), user("x"), ended(tooled, "ok"), "ok", framing=framing
        )
        function = TOOLS[0]["function"]
        other = Framing(tools=({"function": dict(reversed(function.items())), "type": "function"},))
        prompt = await extend(tooled, log, user("y"), other)
        assert not prompt.rebased
        assert prompt.keep == len(log.ids)

    async def test_other_instructions_rebase_to_what_is_common(self, chat: Chat) -> None:
        log = await after(
            chat,
            empty_log(0),
            user("x"),
            ended(chat, "ok"),
            "ok",
            framing=Framing(instructions="Be brief."),
        )
        prompt = await extend(chat, log, user("y"), Framing(instructions="Be brief and kind."))
        assert prompt.rebased
        assert 0 < prompt.keep < log.prompt_tokens
        assert prompt.ids[: prompt.keep] == log.ids[: prompt.keep]
        shown = chat.decode(prompt.ids, special=True)
        assert "Be brief and kind." in shown
        assert shown.endswith(f"user\ny{END}\n<|im_start|>assistant\n")

    async def test_what_follows_a_stop_string_is_cut_off(self, chat: Chat) -> None:
        sampled = chat.encode_now("one two STOP and more")
        log = await after(chat, empty_log(0), user("x"), sampled, "one two ", whole=False)
        prompt = await extend(chat, log, user("y"))
        assert prompt.rebased
        assert log.prompt_tokens < prompt.keep < len(log.ids)
        assert prompt.ids[: prompt.keep] == log.ids[: prompt.keep]
        assert chat.decode(prompt.ids, special=True) == plain(chat, log, user("y"))

    @given(
        kept=st.text(STORABLE, max_size=12),
        cut=st.text("é🙂x \n", max_size=6),
        again=st.text(STORABLE, max_size=8),
    )
    async def test_a_rebased_prompt_always_says_its_text(
        self, chat: Chat, kept: str, cut: str, again: str
    ) -> None:
        sampled = chat.encode_now(kept + cut)
        log = await after(chat, empty_log(0), user("x"), sampled, kept, whole=False)
        prompt = await extend(chat, log, user(again))
        assert chat.decode(prompt.ids, special=True) == plain(chat, log, user(again))
        assert prompt.ids[: prompt.keep] == log.ids[: prompt.keep]
        assert prompt.rebased == (prompt.keep < len(log.ids))
        assert prompt.keep >= log.prompt_tokens

    async def test_half_a_character_at_the_reply_s_end(self, chat: Chat) -> None:
        sampled = chat.encode_now("ok🙂")[:-2]
        text = chat.decode(sampled, special=False)
        assert text.endswith("\ufffd")
        log = await after(chat, empty_log(0), user("x"), sampled, text)
        assert not (await extend(chat, log, user("y"))).rebased


class TestReadLog:
    async def test_it_is_the_log_that_grew(self, chat: Chat) -> None:
        """From the catalog or from memory: the same log, with what truncation left out, too."""
        session = make_session("ten_1")  # type: ignore[arg-type]
        first = make_turn(session, None, tokens=5)
        first = replace(
            first,
            messages=[dict(m) for m in user("a")],
            reply={"role": "assistant", "content": "b"},
        )
        second = make_turn(session, first, tokens=3, keep=2, log_tokens=5)
        second = replace(
            second,
            messages=[dict(m) for m in user("c")],
            reply={"role": "assistant", "content": "d"},
            dropped=(0, 2),
            framing=Framing(instructions="now").as_dict(),
        )
        log = read_log([first, second], chat)
        assert [message["content"] for message in log.messages] == ["c", "d"]
        assert log.replies == (1,)
        assert log.framing == Framing(instructions="now")
        assert log.skeleton.endswith("<|im_start|>assistant\n")
        assert "now" in log.skeleton

    async def test_a_context_ends_where_its_messages_do(self, chat: Chat) -> None:
        session = make_session("ten_1")  # type: ignore[arg-type]
        text = chat.render(user("the documents"), now=_EPOCH, add_generation_prompt=False)
        ids = array("I", chat.encode_now(text))
        context = replace(
            make_turn(session, None, tokens=len(ids)),
            tokens=ids,
            prompt_tokens=len(ids),
            messages=[dict(m) for m in user("the documents")],
            reply=None,
            created_at=0,
        )
        log = read_log([context], chat)
        assert (log.skeleton, log.fixed, log.replies) == (text, 1, ())
        prompt = await extend(chat, log, user("a question"))
        assert (prompt.keep, prompt.rebased) == (len(ids), False)
        assert chat.decode(prompt.ids, special=True) == plain(chat, log, user("a question"))


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
    assert common_prefix(one, other) == slow


class TestLogCache:
    def make(self, name: str, tokens: int) -> Log:
        return replace(empty_log(0), turn_id=TurnId(name), ids=array("I", range(tokens)))

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
