"""Cuts that depend on the text alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentmem.engine.sglang.parsing.segments import Segments

MARKS = ("<tool_call>", "</tool_call>", "\n</tool_call>", ", ", "[TOOL_CALLS]", "[TOOL_CALLS] [")
PARTS = st.sampled_from(
    [
        *MARKS,
        "<｜a▁b｜>",
        "<|x|>",
        "<|not\n|>",
        "<",
        "<|",
        "[TOOL",
        "\n",
        "a",
        "word",
        " ",
        "｜>",
        "é",
    ]
)


def cut(text: str, pushes: list[int], size: int = 1) -> list[str]:
    segments = Segments(MARKS)
    taken, at, turn = [], 0, 0
    while at < len(text):
        push = pushes[turn % len(pushes)]
        segments.push(text[at : at + push])
        at, turn = at + push, turn + 1
        while segment := segments.take(size):
            taken.append(segment)
    while segment := segments.take(size, final=True):
        taken.append(segment)
    return taken


@given(
    text=st.lists(PARTS, max_size=12).map("".join),
    pushes=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    size=st.integers(1, 5),
)
def test_nothing_is_lost_and_pushes_do_not_matter(text: str, pushes: list[int], size: int) -> None:
    taken = cut(text, pushes, size)
    assert "".join(taken) == text
    assert taken == cut(text, [10_000], size)
    assert all(len(one) <= size or one in MARKS or one[0] == "<" for one in taken)


def test_markers_are_whole() -> None:
    text = "a<tool_call>b\n</tool_call><｜tool▁sep｜>, <|x|>[TOOL_CALLS] [c"
    assert cut(text, [1]) == [
        "a", "<tool_call>", "b", "\n</tool_call>", "<｜tool▁sep｜>", ", ", "<|x|>",
        "[TOOL_CALLS] [", "c",
    ]  # fmt: skip


def test_what_was_taken_is_let_go_of() -> None:
    segments = Segments(MARKS)
    for _ in range(100):
        segments.push("x" * 1_000)
        while segments.take():
            pass
    assert len(segments._text) < 10_000
