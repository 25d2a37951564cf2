"""SGLang's parsers behind the parsing server: several families, however the text is cut."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from agentmem.engine.output import OutputSpec, Piece, PlainText, ToolCallPiece, ToolChoice
from agentmem.engine.sglang.parsing.client import ParsingClient

from .conftest import Open
from .formats import ARGUMENTS, FAMILIES, SECOND, TOOLS, Parsed, joined

pytestmark = pytest.mark.sglang

OPENING = "<|im_start|>assistant\n"
SPEC = OutputSpec(tools=TOOLS, opening=OPENING)
CUTS = (1, 3, 10, 100_000)
NAMES = sorted(FAMILIES)


async def parse(
    client: ParsingClient, text: str, cut: int, spec: OutputSpec = SPEC
) -> Sequence[Piece]:
    parser = await client.open(spec)
    try:
        pieces: list[Piece] = []
        for at in range(0, len(text), cut):
            pieces += await parser.push(text[at : at + cut])
        return [*pieces, *(await parser.finish())]
    finally:
        await parser.aclose()


async def parse_all(client: ParsingClient, text: str, spec: OutputSpec = SPEC) -> Parsed:
    """Asserts that all cuts give the same."""
    parsed = [joined(await parse(client, text, cut, spec)) for cut in CUTS]
    assert all(one == parsed[0] for one in parsed)
    return parsed[0]


def both(parsed: Parsed) -> list[tuple[str, object]]:
    return [(name, json.loads(arguments)) for name, arguments in parsed.calls]


CALLS = [("get_weather", ARGUMENTS), ("get_time", SECOND)]


@pytest.mark.parametrize("name", NAMES)
async def test_two_calls_after_text(parsing: Open, name: str) -> None:
    family = FAMILIES[name]
    client = await parsing(family.tool_parser, family.reasoning_parser)
    assert both(await parse_all(client, family.calls)) == CALLS
    text = "I look {it} up, [both] 1 < 2.\n"
    parsed = await parse_all(client, text + family.calls)
    assert parsed.text == text.rstrip()
    assert both(parsed) == CALLS


@pytest.mark.parametrize("name", [name for name in NAMES if FAMILIES[name].streams])
async def test_arguments_come_bit_by_bit(parsing: Open, name: str) -> None:
    family = FAMILIES[name]
    client = await parsing(family.tool_parser, family.reasoning_parser)
    pieces = await parse(client, family.calls, 1)
    first = [p for p in pieces if isinstance(p, ToolCallPiece) and p.index == 0]
    assert first[0].name == "get_weather"
    assert all(piece.name is None for piece in first[1:])
    assert len(first) > 5


@pytest.mark.parametrize("name", [n for n in NAMES if FAMILIES[n].reasoning_parser != "none"])
async def test_thinking_is_told_apart(parsing: Open, name: str) -> None:
    family = FAMILIES[name]
    client = await parsing(family.tool_parser, family.reasoning_parser)
    parsed = await parse_all(client, f"<think>hm < é\n</think>\n\nSo:\n{family.calls}")
    assert parsed.reasoning == "hm < é\n"
    assert parsed.text == "So:"
    assert both(parsed) == CALLS
    only_text = OutputSpec(opening=OPENING)
    assert await parse_all(client, "<think>a</think>\nb ", only_text) == Parsed("b ", "a", [])


@pytest.mark.parametrize("name", ["qwen3", "deepseek", "glm45"])
async def test_the_prompts_end_says_whether_thinking_has_begun(parsing: Open, name: str) -> None:
    family = FAMILIES[name]
    client = await parsing(family.tool_parser, family.reasoning_parser)
    begun = OutputSpec(opening="<|Assistant|><think>\n")
    assert await parse_all(client, "a\n</think>\n\nb", begun) == Parsed("b", "a\n", [])
    over = OutputSpec(opening="<|Assistant|><think>\n\n</think>\n\n")
    assert await parse_all(client, "a <b> c", over) == Parsed("a <b> c", "", [])
    # Neither: the model may think, and then says so itself.
    assert await parse_all(client, "no thoughts", SPEC) == Parsed("no thoughts", "", [])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "text", ["", " \n", "a < b <", "if (x) { y[0] = 1; } ]", "Zürich 漢字 🙂", "<tool", "a\n\nb\n"]
)
async def test_plain_text_stays_as_it_is(parsing: Open, name: str, text: str) -> None:
    family = FAMILIES[name]
    client = await parsing(family.tool_parser, family.reasoning_parser)
    assert await parse_all(client, text) == Parsed(text, "", [])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", '<tool_call>{"name": "get_time", "arguments": {bad}}</tool_call> after'),
        ("hermes", "<tool_call>no json"),
        ("hermes", '<tool_call>{"name": "unknown", "arguments": {"a": 1}}</tool_call> x'),
        ("qwen3", '<tool_call>\n{"name": "get_time", "arguments": {bad}}\n</tool_call> z'),
        ("llama3", "<|python_tag|>print(1)"),
        ("mistral", "[TOOL_CALLS] [oops]"),
        ("glm45", "<tool_call>oops</tool_call> x"),
    ],
)
async def test_what_is_no_call_becomes_text(parsing: Open, name: str, text: str) -> None:
    family = FAMILIES[name]
    client = await parsing(family.tool_parser, family.reasoning_parser)
    assert await parse_all(client, text) == Parsed(text, "", [])


async def test_a_call_goes_on_after_one_that_is_none(parsing: Open) -> None:
    client = await parsing("hermes", "qwen3")
    broken = '<tool_call>{"name": "get_time", "arguments": {"city": "A", "days": oops}}</tool_call>'
    good = '<tool_call>{"name": "get_time"}</tool_call>'
    parsed = await parse_all(client, broken + good)
    assert parsed.text == ""
    assert parsed.calls == [("get_time", '{"city": "A", "days": oops}'), ("get_time", "{}")]


@pytest.mark.parametrize("name", ["hermes", "mistral", "llama3", "glm45"])
async def test_a_reply_that_was_cut_gives_what_there_is(parsing: Open, name: str) -> None:
    family = FAMILIES[name]
    client = await parsing(family.tool_parser, family.reasoning_parser)
    cut = family.calls[: family.calls.index("Zü") + 2]
    parsed = await parse_all(client, cut)
    assert parsed.calls == [("get_weather", '{"city": "Zü')]
    assert parsed.text == ""


@pytest.mark.parametrize("name", ["glm45", "none"])
async def test_a_demanded_call_may_come_as_json(parsing: Open, name: str) -> None:
    client = await parsing(name, "none")
    spec = OutputSpec(tools=TOOLS, tool_choice=ToolChoice("required"))
    constraint = await client.constraint(spec)
    assert constraint is not None
    assert constraint.kind == "json_schema"
    calls = [{"name": name, "parameters": given} for name, given in CALLS]
    for text in (json.dumps(calls, ensure_ascii=False), json.dumps(calls, indent=1)):
        assert both(await parse_all(client, text, spec)) == CALLS


async def test_one_call_at_most(parsing: Open) -> None:
    client = await parsing("hermes", "qwen3")
    spec = OutputSpec(tools=TOOLS, parallel_tool_calls=False, opening=OPENING)
    assert both(await parse_all(client, FAMILIES["hermes"].calls, spec)) == CALLS[:1]


async def test_tools_that_must_not_be_called_are_not_looked_for(parsing: Open) -> None:
    client = await parsing("hermes", "none")
    spec = OutputSpec(tools=TOOLS, tool_choice=ToolChoice("none"))
    assert isinstance(await client.open(spec), PlainText)
    assert isinstance(await client.open(OutputSpec()), PlainText)
    assert await client.constraint(spec) is None


@pytest.mark.parametrize(
    ("reasoning_parser", "spec", "thinks"),
    [
        ("qwen3", SPEC, True),
        ("qwen3", OutputSpec(tools=TOOLS, opening="<think>\n\n</think>\n\n"), False),
        ("qwen3", OutputSpec(tools=TOOLS, opening=OPENING, reasoning=False), False),
        ("qwen3", OutputSpec(tools=TOOLS, opening="<think>\n", reasoning=False), True),
        ("none", SPEC, False),
    ],
)
async def test_grammars_begin_after_the_thoughts(
    parsing: Open, reasoning_parser: str, spec: OutputSpec, thinks: bool
) -> None:
    client = await parsing("hermes", reasoning_parser)
    assert await client.thinks(spec) is thinks
    demanded = await client.constraint(replace(spec, tool_choice=ToolChoice("required")))
    assert demanded is not None
    assert demanded.after_thinking is thinks


async def test_a_reply_of_broken_calls_only_is_text_before_long(parsing: Open) -> None:
    client = await parsing("hermes", "none")
    text = "<tool_call>oops</tool_call>" * 3_000
    async with asyncio.timeout(20):
        assert joined(await parse(client, text, 1_000)) == Parsed(text, "", [])


async def test_arguments_nested_too_deeply_harm_nobody(parsing: Open) -> None:
    client = await parsing("glm45", "glm45")
    deep = "[" * 20_000
    text = f"<tool_call>get_time\n<arg_key>days</arg_key>\n<arg_value>{deep}"
    parsed = joined(await parse(client, text, 1_000))
    assert [name for name, _ in parsed.calls] == ["get_time"]
    assert deep[:10_000] in parsed.calls[0][1]


@pytest.mark.parametrize(
    ("tool_parser", "text"),
    [
        ("hermes", '<tool_call>{"name": "get_time", "arguments": {}}</tool_call>'),
        ("glm45", "<tool_call>get_time\n</tool_call>"),
        (
            "kimi_k2",
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_time:0"
            "<|tool_call_argument_begin|><|tool_call_end|><|tool_calls_section_end|>",
        ),
    ],
)
async def test_a_call_without_arguments_has_none(
    parsing: Open, tool_parser: str, text: str
) -> None:
    client = await parsing(tool_parser, "none")
    assert await parse_all(client, text) == Parsed("", "", [("get_time", "{}")])
