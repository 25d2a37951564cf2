"""Tools, calls, results and thinking through chat templates that know them, and that do not."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agentmem.errors import InvalidRequest
from agentmem.sessions.chat import Chat
from agentmem.sessions.messages import Framing, Message
from agentmem.testing.models import (
    DEFAULT_SYSTEM_TEMPLATE,
    THINKING_TEMPLATE,
    TOOLS_TEMPLATE,
    TRIMMING_TEMPLATE,
    write_tokenizer,
)

NOW = datetime(2026, 1, 2, tzinfo=UTC)
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
FRAMING = Framing(tools=(TOOL,))


def call(arguments: str, name: str = "weather") -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": "call_1", "type": "function", "function": function}


TALK: list[Message] = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": None, "tool_calls": [call('{"city": "Zürich"}'), call("{}")]},
    {"role": "tool", "tool_call_id": "call_1", "content": "sun"},
    {"role": "tool", "tool_call_id": "call_2", "content": "rain"},
    {"role": "assistant", "content": "Sun and rain.", "reasoning_content": "hm"},
    {"role": "user", "content": "bye"},
]
TEMPLATES = {
    "knows none": DEFAULT_SYSTEM_TEMPLATE,
    "trims": TRIMMING_TEMPLATE,
    "knows tools": TOOLS_TEMPLATE,
    "keeps thoughts": THINKING_TEMPLATE,
}


@pytest.fixture
def load(tmp_path: Path) -> Any:
    def loaded(template: str) -> Chat:
        return Chat.load(write_tokenizer(tmp_path / "model", template=template))

    return loaded


def render(chat: Chat, messages: list[Message], framing: Framing = FRAMING, **options: Any) -> str:
    return chat.render(messages, now=NOW, framing=framing, **options)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_renders_bit_by_bit(load: Any, name: str) -> None:
    chat = load(TEMPLATES[name])
    whole = render(chat, TALK, add_generation_prompt=False)
    # A reply comes after the question, and after both results.
    for count in (1, 4, 6):
        beginning = render(chat, TALK[:count], add_generation_prompt=False)
        assert whole.startswith(beginning)
        prompt = render(chat, TALK[:count])
        assert prompt == beginning + "<|im_start|>assistant\n"
        if count < len(TALK):
            assert whole.startswith(prompt)


@pytest.mark.parametrize("name", TEMPLATES)
def test_tools_calls_and_results_are_in_the_prompt(load: Any, name: str) -> None:
    text = render(load(TEMPLATES[name]), TALK)
    assert json.dumps(TOOL) in text
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>' in text
    results = "<tool_response>\nsun\n</tool_response>\n<tool_response>\nrain\n</tool_response>"
    assert results in text
    assert "None" not in text
    assert text.count("<|im_start|>system") == 1


def test_without_tools_the_models_own_template_is_left_alone(load: Any) -> None:
    chat = load(DEFAULT_SYSTEM_TEMPLATE)
    assert not chat.has_tools
    talk = [TALK[0], {"role": "assistant", "content": "<tool_call> \n"}, TALK[-1]]
    assert render(chat, talk, Framing()) == (
        "<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<tool_call> \n<|im_end|>\n"
        "<|im_start|>user\nbye<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_systems_words_come_before_the_tools(load: Any) -> None:
    chat = load(DEFAULT_SYSTEM_TEMPLATE)
    framing = Framing(instructions="Be brief.", tools=(TOOL,))
    text = render(chat, TALK, framing)
    assert text.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n")
    assert text == render(chat, [{"role": "system", "content": "Be brief."}, *TALK])


def test_instructions_are_a_system_message(load: Any) -> None:
    for template in TEMPLATES.values():
        text = render(load(template), TALK[:1], Framing(instructions="Be brief."))
        assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi")


def test_arguments_that_are_no_object_stay_as_they_were_written(load: Any) -> None:
    cut: list[Message] = [{"role": "assistant", "content": "", "tool_calls": [call('{"ci')]}]
    assert '"arguments": {"ci}' in render(load(DEFAULT_SYSTEM_TEMPLATE), cut)
    assert json.dumps('{"ci') in render(load(TOOLS_TEMPLATE), cut)


def test_a_template_that_takes_one_system_message_gets_one(load: Any) -> None:
    chat = load(
        "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
        "{{ raise_exception('System message must be at the beginning') }}{% endif %}"
        "{{ m.role + ':' + m.content + ';' }}{% endfor %}"
    )
    two: list[Message] = [{"role": "developer", "content": "b"}, *TALK[:1]]
    assert render(chat, two, Framing(instructions="a")) == "system:a\n\nb;user:hi;"
    with pytest.raises(InvalidRequest, match="at the beginning"):
        render(chat, [*TALK[:1], {"role": "system", "content": "late"}], Framing())


@pytest.mark.parametrize(
    ("template", "known"),
    [
        (TOOLS_TEMPLATE, True),
        (DEFAULT_SYSTEM_TEMPLATE, False),
        # Named, and of no effect.
        (DEFAULT_SYSTEM_TEMPLATE + "{% if tools and false %}x{% endif %}", False),
        # It dislikes the probe, but it does look at tools.
        ("{% if tools %}{{ raise_exception('no') }}{% endif %}", True),
    ],
)
def test_whether_a_template_knows_tools(load: Any, template: str, known: bool) -> None:
    assert load(template).has_tools is known


def test_a_template_that_fails_is_the_callers_error(load: Any) -> None:
    with pytest.raises(InvalidRequest, match="fails on these messages") as caught:
        render(load("{{ 1 + messages[0].content }}"), TALK[:1], Framing())
    assert caught.value.param == "messages"


def test_efforts_switch_thinking(load: Any) -> None:
    chat = load(THINKING_TEMPLATE)
    assert chat.opening() == chat.opening("high") == "<|im_start|>assistant\n"
    assert chat.opening("none") == "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert render(chat, TALK[:1], Framing(reasoning_effort="none")).endswith(chat.opening("none"))
    shown = load("{{ reasoning_effort }}/{{ enable_thinking }}/{{ thinking }}")
    assert render(shown, TALK[:1], Framing(reasoning_effort="low")) == "low/True/True"
    assert render(shown, TALK[:1], Framing(reasoning_effort="none")) == "/False/False"
    assert render(shown, TALK[:1], Framing()) == "//"
    assert load("{{ raise_exception('no') }}").opening() == ""


def test_thoughts_in_history_are_the_templates_affair(load: Any) -> None:
    assert "<think>hm</think>Sun and rain." in render(load(THINKING_TEMPLATE), TALK)
    assert "hm" not in render(load(TOOLS_TEMPLATE), TALK)
    assert "hm" not in render(load(DEFAULT_SYSTEM_TEMPLATE), TALK)


def test_renders_tools_as_transformers_does(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path, template=THINKING_TEMPLATE)
    program = """
import json, sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
messages, tools = json.loads(sys.argv[2])
print(json.dumps(tokenizer.apply_chat_template(
    messages, tools=tools, tokenize=False, add_generation_prompt=True, enable_thinking=False)))
"""
    parsed = json.loads(json.dumps(TALK))
    for one in parsed:
        one["content"] = one["content"] or ""
        for made in one.get("tool_calls", ()):
            made["function"]["arguments"] = json.loads(made["function"]["arguments"])
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), json.dumps([parsed, [TOOL]])],
        check=True,
        capture_output=True,
        text=True,
    )
    framing = Framing(tools=(TOOL,), reasoning_effort="none")
    assert render(Chat.load(folder), TALK, framing) == json.loads(done.stdout.splitlines()[-1])


def test_arguments_nested_too_deeply_are_text(load: Any) -> None:
    deep = '{"a":' + "[" * 100_000
    nested: list[Message] = [{"role": "assistant", "content": "", "tool_calls": [call(deep)]}]
    assert deep in render(load(DEFAULT_SYSTEM_TEMPLATE), nested)
