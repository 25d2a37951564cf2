"""Replies by directive and by constraint, biases, alternatives."""

from __future__ import annotations

import json
from array import array

import pytest

from agentmem.engine.base import Constraint, GenerateChunk, GenerateRequest, Sampling
from agentmem.engine.fake import FakeEngine
from agentmem.engine.fake_replies import constrained_text, instance, scripted_text
from agentmem.engine.output import OutputSpec, PlainText, TextPiece, ToolCallPiece, ToolChoice
from agentmem.testing.hermes import HermesParser

EOS = 2


def make(**options: object) -> FakeEngine:
    """Ids are code points; the last message is what follows the last newline."""
    defaults: dict[str, object] = {
        "vocabulary": (1_000, 2_000),
        "eos_token_ids": (EOS,),
        "page_tokens": 4,
        "encode": lambda text: [ord(character) for character in text],
        "last_message": lambda ids: "".join(map(chr, ids)).rpartition("\n")[2],
        "decode": lambda ids: "".join(map(chr, ids)),
    }
    return FakeEngine(**{**defaults, **options})  # type: ignore[arg-type]


async def run(
    engine: FakeEngine, prompt: str, *, top: int = 0, **sampling: object
) -> list[GenerateChunk]:
    options = {"max_tokens": 200, **sampling}
    ids = [ord(character) for character in prompt]
    request = GenerateRequest(
        "r",
        ids,
        Sampling(**options),  # type: ignore[arg-type]
        "salt",
        logprobs=True,
        top_logprobs=top,
    )
    return [chunk async for chunk in engine.generate(request)]


def text(chunks: list[GenerateChunk]) -> str:
    return "".join(chr(token) for chunk in chunks for token in chunk.token_ids if token != EOS)


class TestDirectives:
    @pytest.mark.parametrize(
        ("message", "reply"),
        [
            ("hello", None),
            ("[[reply: one]] and no more", "one"),
            ("[[reply:]]", ""),
            ("[[think: hm]][[reply: <b>\n ]]", "<think>hm</think><b>\n "),
            ("[[reply: [[1]]]]", "[[1]]"),
            ("[[reply: never ended", None),
            (
                'x [[call: f {"a": [[1]]}]] [[call: g {}]]',
                '<tool_call>\n{"name": "f", "arguments": {"a": [[1]]}}\n</tool_call>\n'
                '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>',
            ),
            (
                "[[reply: a ]][[call: f {bad}]]",
                'a <tool_call>\n{"name": "f", "arguments": {bad}}\n</tool_call>',
            ),
        ],
    )
    def test_what_they_say(self, message: str, reply: str | None) -> None:
        assert scripted_text(message) == reply

    async def test_only_the_last_message_is_obeyed_and_then_the_reply_ends(self) -> None:
        chunks = await run(make(), "[[reply: no]]\n[[reply: yes]]")
        assert text(chunks) == "yes"
        assert chunks[-1].token_ids == (EOS,)
        assert chunks[-1].finish_reason == "stop"
        assert text(await run(make(), "[[reply: no]]\nhello")) not in ("no", "yes")

    async def test_stop_strings_and_limits_hold_for_them(self) -> None:
        chunks = await run(make(), "[[reply: one END two]]", stop=("END",))
        assert text(chunks) == "one END"
        chunks = await run(make(), "[[reply: one two]]", max_tokens=3)
        assert text(chunks) == "one"
        assert chunks[-1].finish_reason == "length"
        chunks = await run(make(), "[[reply: one]]", ignore_eos=True)
        assert chunks[-1].token_ids == (ord("e"),)


class TestConstraints:
    async def test_a_demanded_call(self) -> None:
        parameters = {
            "type": "object",
            "properties": {"city": {"type": "string"}, "n": {"type": "integer", "minimum": 3}},
            "required": ["city", "n"],
        }
        tools = [
            {"type": "function", "function": {"name": name, "parameters": parameters}}
            for name in ("f", "g")
        ]
        for choice, name in ((ToolChoice("required"), "f"), (ToolChoice("named", "g"), "g")):
            spec = OutputSpec(tools=tools, tool_choice=choice)
            engine = make(parser=_hermes)
            constraint = await engine.tool_constraint(spec)
            reply = text(await run(engine, "hello", constraint=constraint))
            parser = await engine.open_parser(spec)
            pieces = [*(await parser.push(reply)), *(await parser.finish())]
            assert {piece.name for piece in pieces if isinstance(piece, ToolCallPiece)} == {
                name,
                None,
            }
            arguments = "".join(piece.arguments for piece in pieces)  # type: ignore[union-attr]
            assert json.loads(arguments) == {"city": "", "n": 3}
        assert await make().tool_constraint(OutputSpec(tools=tools)) is None

    @pytest.mark.parametrize(
        ("schema", "value"),
        [
            ({}, None),
            ({"type": ["string", "null"], "minLength": 2}, "xx"),
            ({"anyOf": [{"type": "boolean"}, {"type": "null"}]}, False),
            ({"const": 7}, 7),
            ({"enum": ["b", "a"]}, "b"),
            ({"type": "number", "exclusiveMinimum": 4}, 5),
            ({"type": "array", "items": {"type": "integer"}, "minItems": 2}, [0, 0]),
            (
                {
                    "allOf": [
                        {"properties": {"a": {"type": "integer"}}, "required": ["a"]},
                        {"$ref": "#/$defs/b"},
                    ],
                    "$defs": {"b": {"type": "object", "properties": {"b": {}}, "required": ["b"]}},
                },
                {"a": 0, "b": None},
            ),
            ({"type": "object", "properties": {"a": {"type": "null"}}}, {}),
        ],
    )
    def test_smallest_instances(self, schema: dict[str, object], value: object) -> None:
        assert instance(schema) == value

    def test_a_schema_that_refers_to_itself_ends(self) -> None:
        schema = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
        assert '"a"' in (constrained_text(Constraint("json_schema", json.dumps(schema))) or "")

    def test_any_object_and_what_is_not_looked_at(self) -> None:
        assert constrained_text(Constraint("json_schema", "{}")) == "{}"
        assert constrained_text(Constraint("regex", "a+")) is None
        assert constrained_text(None) is None


async def _hermes(spec: OutputSpec) -> HermesParser:
    return HermesParser(spec)


async def test_without_a_parser_there_is_only_text() -> None:
    parser = await make().open_parser(OutputSpec())
    assert isinstance(parser, PlainText)
    assert await parser.push("<think>") == (TextPiece("<think>"),)


class TestSampling:
    async def test_alternatives_begin_with_what_was_sampled(self) -> None:
        for prompt in ("hello", "[[reply: yes]]"):
            chunks = await run(make(), prompt, top=5, max_tokens=9)
            for chunk in chunks:
                [alternatives] = chunk.top_logprobs
                assert len(alternatives) == 5
                assert len({token for token, _ in alternatives}) == 5
                assert alternatives[0] == (chunk.token_ids[0], chunk.logprobs[0])
                assert sorted((value for _, value in alternatives), reverse=True) == [
                    value for _, value in alternatives
                ]
        assert all(chunk.top_logprobs == () for chunk in await run(make(), "hello", max_tokens=9))

    async def test_alternatives_change_nothing(self) -> None:
        assert text(await run(make(), "hello", max_tokens=9)) == text(
            await run(make(), "hello", top=3, max_tokens=9)
        )

    async def test_biases_and_penalties(self) -> None:
        wanted = {"logit_bias": {1_500: 100.0, 1_600: 99.5}, "max_tokens": 4}
        assert _ids(await run(make(), "hello", **wanted)) == [1_500] * 4
        assert (
            _ids(await run(make(), "hello", **wanted, frequency_penalty=1.0))
            == [
                1_500,
                1_600,
            ]
            * 2
        )
        assert _ids(await run(make(), "hello", **wanted, presence_penalty=1.0)) == [
            1_500,
            1_600,
            1_500,
            1_500,
        ]
        first = _ids(await run(make(), "hello", max_tokens=1))[0]
        banned = _ids(await run(make(), "hello", max_tokens=1, logit_bias={first: -100.0}))
        assert banned != [first]


def _ids(chunks: list[GenerateChunk]) -> list[int]:
    return list(array("I", [token for chunk in chunks for token in chunk.token_ids]))
