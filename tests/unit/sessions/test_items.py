from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentmem.api.responses.items import stored_items
from agentmem.core import TurnId
from agentmem.engine.output import Piece, ReasoningPiece, TextPiece, ToolCallPiece
from agentmem.errors import InvalidRequest
from agentmem.sessions.items import (
    SUMMARY_HEADING,
    message_item,
    messages_of,
    numbered_items,
    reply_items,
)
from agentmem.sessions.messages import NO_FRAMING, Message, chain_hashes
from agentmem.sessions.outputs import Layout, shown_items
from tests.unit.sessions.test_replay import replies, turn_of

USER: Message = {"role": "user", "content": "Go on."}


def refuse(_item: Mapping[str, Any], _index: int) -> str:
    raise AssertionError("nothing sealed was sent")


def same(one: Message, other: Message) -> bool:
    """Whether a resent history with one is recognised as the stored one with the other."""
    hashes = [chain_hashes("m", NO_FRAMING, [USER, said, USER]) for said in (one, other)]
    return hashes[0] == hashes[1]


arguments = st.one_of(
    st.text(max_size=10), st.dictionaries(st.text(max_size=3), st.integers(0, 9)).map(str)
)
calls = st.lists(
    st.builds(
        lambda number, name, text: {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": name, "arguments": text},
        },
        st.integers(0, 9),
        st.text(min_size=1, max_size=5),
        arguments,
    ),
    max_size=3,
)


@st.composite
def stored_replies(draw: st.DrawFn) -> dict[str, Any]:
    """Replies as `sessions.reply` stores them."""
    text, told = draw(st.text(max_size=12)), draw(calls)
    reply: dict[str, Any] = {"role": "assistant", "content": text}
    if draw(st.booleans()):
        reply["reasoning_content"] = draw(st.text(min_size=1, max_size=8))
    if told:
        reply |= {"content": text or None, "tool_calls": told}
    return reply


@given(st.lists(stored_replies(), min_size=1, max_size=3))
def test_replies_are_the_same_after_a_round_trip_as_items(replied: list[dict[str, Any]]) -> None:
    told: list[Message] = []
    items: list[dict[str, Any]] = []
    for reply in replied:
        told += [reply, USER]
        items += [*reply_items(reply), message_item("user", USER["content"])]
    numbered = numbered_items(items)
    assert len({item["id"] for item in numbered}) == len(numbered)
    assert list(messages_of(numbered, refuse)) == told


@given(replies())
@example([])
def test_what_a_stream_showed_is_recognised_when_it_is_sent_again(deltas: Any) -> None:
    turn = turn_of(deltas)
    layout = Layout(turn.id)
    for delta in deltas:
        for piece in delta.pieces:
            layout.take(piece)
    layout.finish()
    items = shown_items(layout.items, "completed")
    assert [item.index for item in layout.items] == list(range(len(items)))
    resent = stored_items(items)
    (message,) = messages_of(numbered_items(resent), refuse) or ({"role": "assistant"},)
    assert turn.reply is not None
    assert same(message, turn.reply)


def layout_of(*pieces: Piece) -> list[tuple[str, str]]:
    layout = Layout(TurnId("turn_x"))
    for piece in pieces:
        layout.take(piece)
    layout.finish()
    return [(item.kind, item.text) for item in layout.items]


def test_white_space_between_calls_begins_no_message() -> None:
    one, two = ToolCallPiece(0, "f", "{}"), ToolCallPiece(1, "g", "{}")
    calls_only = [("function_call", "{}"), ("function_call", "{}")]
    assert layout_of(TextPiece("\n"), one, TextPiece("\n"), two, TextPiece("\n")) == calls_only
    assert layout_of(TextPiece("A"), one, TextPiece("\n"), two, TextPiece("B")) == [
        ("message", "A"),
        *calls_only,
        ("message", "\nB"),
    ]


def test_a_reply_of_nothing_is_an_empty_message() -> None:
    assert layout_of() == [("message", "")]
    assert layout_of(TextPiece("\n")) == [("message", "\n")]
    assert layout_of(ReasoningPiece("hm")) == [("reasoning", "hm")]


def item(kind: str, **fields: Any) -> dict[str, Any]:
    return {"id": None, "type": kind, **fields}


def text_item(role: str, *texts: str) -> dict[str, Any]:
    kind = "output_text" if role == "assistant" else "input_text"
    return item("message", role=role, content=[{"type": kind, "text": t} for t in texts])


def test_what_one_turn_said_is_one_message() -> None:
    call = {"call_id": "call_1", "name": "f", "arguments": "{}"}
    thought = item("reasoning", summary=[], content=[{"type": "reasoning_text", "text": "hm"}])
    messages = messages_of(
        [
            text_item("developer", "Be brief."),
            text_item("user", "One.", "Two."),
            thought,
            text_item("assistant", "Let me ", "see."),
            item("function_call", **call),
            item("function_call", **{**call, "call_id": "call_2"}),
            item("function_call_output", call_id="call_1", output="1"),
            item(
                "function_call_output",
                call_id="call_2",
                output=[{"type": "input_text", "text": "2"}],
            ),
            text_item("assistant", "Three."),
            text_item("assistant", "And four."),
        ],
        refuse,
    )
    function = {"name": "f", "arguments": "{}"}
    assert messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One.\nTwo."},
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": function},
                {"id": "call_2", "type": "function", "function": function},
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "1"},
        {"role": "tool", "tool_call_id": "call_2", "content": "2"},
        {"role": "assistant", "content": "Three."},
        {"role": "assistant", "content": "And four."},
    )


def test_a_model_may_think_between_what_it_says() -> None:
    thought = item("reasoning", summary=[{"type": "summary_text", "text": "so"}])
    said = messages_of([text_item("assistant", "A"), thought, text_item("assistant", "B")], refuse)
    assert said == ({"role": "assistant", "content": "AB", "reasoning_content": "so"},)


def test_sealed_items_are_opened_with_their_numbers() -> None:
    opened: list[int] = []

    def unseal(sealed: Mapping[str, Any], index: int) -> str:
        opened.append(index)
        return f"opened {sealed['encrypted_content']}"

    messages = messages_of(
        [
            item("compaction", encrypted_content="c"),
            item("reasoning", summary=[], content=[], encrypted_content="r"),
            text_item("assistant", "A"),
        ],
        unseal,
        first=5,
    )
    assert opened == [5, 6]
    assert messages == (
        {"role": "user", "content": f"{SUMMARY_HEADING}\nopened c"},
        {"role": "assistant", "content": "A", "reasoning_content": "opened r"},
    )


def test_ids_are_kept_where_they_are_good_and_free() -> None:
    items = [
        {**text_item("user", "a"), "id": "msg_1"},
        {**text_item("user", "b"), "id": "msg_1"},
        {**text_item("user", "c"), "id": "no id at all"},
        {**text_item("user", "d"), "id": "msg_taken"},
        item("compaction", encrypted_content="x"),
    ]
    ids = [one["id"] for one in numbered_items(items, {"msg_taken"})]
    assert ids[0] == "msg_1"
    assert len(set(ids)) == 5
    assert [one.partition("_")[0] for one in ids] == ["msg", "msg", "msg", "msg", "cmp"]
    assert "msg_taken" not in ids


def test_an_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="web_search_call"):
        messages_of([item("web_search_call")], refuse)
