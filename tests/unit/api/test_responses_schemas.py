from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from agentmem.api.errors import UNSUPPORTED
from agentmem.api.responses.parameters import (
    CONVERSATIONS_SURFACES,
    RESPONSES_CREATE,
    RESPONSES_SURFACES,
)
from agentmem.api.responses.schemas import CompactBody, InputTokensBody, ResponseBody
from agentmem.engine.output import ToolChoice
from agentmem.errors import InvalidRequest

TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
CHAT_TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object"}, "strict": True},
}


def refusal(**body: Any) -> str:
    """The type of the error that the body is refused with."""
    with pytest.raises(ValidationError) as caught:
        ResponseBody.model_validate({"input": "Hi.", **body})
    kind: str = caught.value.errors()[0]["type"]
    return kind


@pytest.mark.parametrize(
    "body",
    [
        {"background": True},
        {"prompt": {"id": "x"}},
        {"moderation": {"model": "x"}},
        {"context_management": [{"type": "compaction"}]},
        {"service_tier": "flex"},
        {"access_programs": {"cyber": "standard"}},
        {"background_options": {"completion_window": "2h"}},
        {"image": {"context_compression": "auto"}},
        {"include": ["file_search_call.results"]},
        {"text": {"verbosity": "high"}},
        {"reasoning": {"summary": "auto"}},
        {"reasoning": {"mode": "pro"}},
        {"reasoning": {"context": "all_turns"}},
        {"prompt_cache_options": {"prewarm": True}},
        {"tools": [{"type": "web_search"}]},
        {"tools": [{"type": "custom", "name": "x"}]},
        {"tools": [{"type": "mcp", "server_label": "x"}]},
        {"tool_choice": {"type": "file_search"}},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]},
        {"input": [{"type": "custom_tool_call", "call_id": "x", "input": "", "name": "y"}]},
        {"input": [{"type": "computer_call_output", "call_id": "x", "output": {}}]},
    ],
)
def test_what_is_not_done_here_is_refused_as_that(body: Any) -> None:
    assert refusal(**body) == UNSUPPORTED


def test_what_asks_for_nothing_is_taken() -> None:
    nothing: dict[str, Any] = dict.fromkeys(
        name for name in RESPONSES_CREATE.refused() if name != "x"
    )
    body = ResponseBody.model_validate(
        {
            "input": "Hi.",
            **nothing,
            "background": False,
            "service_tier": "auto",
            "text": {"verbosity": "medium", "format": None},
            "reasoning": {"summary": None, "mode": "standard", "context": "auto"},
            "prompt_cache_options": {"prewarm": False},
        }
    )
    assert body.turn_request(()).response_schema is None


def test_every_field_is_in_the_table_and_every_implemented_parameter_is_a_field() -> None:
    surface = RESPONSES_CREATE
    named = {p.name for p in (*surface.parameters, *surface.extensions) if p.state != "refused"}
    assert set(ResponseBody.model_fields) == named
    for surface, body in (
        (next(s for s in RESPONSES_SURFACES if s.operation == "responses.compact"), CompactBody),
        (
            next(s for s in RESPONSES_SURFACES if s.operation == "responses.input_tokens.count"),
            InputTokensBody,
        ),
    ):
        named = {p.name for p in surface.parameters if p.state != "refused"}
        assert set(body.model_fields) == named
    routes = [surface.route for surface in (*RESPONSES_SURFACES, *CONVERSATIONS_SURFACES)]
    assert len(set(routes)) == len(routes)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ToolChoice("auto")),
        ("none", ToolChoice("none")),
        ("required", ToolChoice("required")),
        ({"type": "function", "name": "f"}, ToolChoice("named", "f")),
        (
            {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "function", "name": "f"}],
            },
            ToolChoice("auto"),
        ),
    ],
)
def test_tools_become_those_of_chat(choice: Any, expected: ToolChoice) -> None:
    body = ResponseBody.model_validate({"input": "Hi.", "tools": [TOOL], "tool_choice": choice})
    request = body.turn_request(())
    assert request.tool_choice == expected
    assert request.framing.tools == (CHAT_TOOL,)
    echo = body.echo("m")
    assert echo["tools"] == [{**TOOL, "description": None}]
    assert echo["tool_choice"] == (choice or "auto")


def test_what_contradicts_itself_is_refused() -> None:
    for body, param in (
        ({"conversation": "conv_x", "previous_response_id": "resp_x"}, "previous_response_id"),
        ({"context": "ctx_x", "conversation": "conv_x"}, "context"),
        ({"context": "ctx_x", "previous_response_id": "resp_x"}, "context"),
        ({"stream_options": {}}, "stream_options"),
        ({"top_logprobs": 3}, "top_logprobs"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            ResponseBody.model_validate({"input": "Hi.", **body}).check()
        assert caught.value.param == param
    with pytest.raises(InvalidRequest):
        ResponseBody.model_validate({"tool_choice": "required"}).turn_request(())


def test_retention_is_chosen_by_the_first_that_says_it() -> None:
    def retention(**body: Any) -> str | None:
        return ResponseBody.model_validate({"input": "x", **body}).turn_request(()).retention

    assert retention() is None
    assert retention(prompt_cache_options={"ttl": "30m"}) == "ephemeral"
    assert retention(prompt_cache_retention="24h") == "persistent"
    assert (
        retention(prompt_cache_options={"ttl": "12h"}, prompt_cache_retention="24h") == "standard"
    )
    assert retention(retention="archive", prompt_cache_options={"ttl": "30m"}) == "archive"
    mark = {"type": "input_text", "text": "x"}
    mark["prompt_cache_breakpoint"] = {"mode": "explicit", "ttl": "12h"}  # type: ignore[assignment]
    assert retention(input=[{"role": "user", "content": [mark]}]) == "standard"


def test_formats_of_text() -> None:
    schema = {"type": "object"}
    named = {"type": "json_schema", "name": "n", "schema": schema}
    body = ResponseBody.model_validate({"input": "x", "text": {"format": named}})
    assert body.turn_request(()).response_schema == schema
    assert body.echo("m")["text"]["format"] == {**named, "description": None, "strict": True}
    body = ResponseBody.model_validate({"input": "x", "text": {"format": {"type": "json_object"}}})
    assert body.turn_request(()).response_schema == {}


@pytest.mark.parametrize(
    "given",
    [
        [{"role": "robot", "content": "x"}],
        [{"role": "user", "content": 3}],
        [{"role": "user", "content": "\ud800"}],
        [{"role": "user", "content": "\x00"}],
        [{"role": "user", "content": "x", "unknown": 1}],
        [{"type": "function_call", "call_id": "x", "name": "f"}],
        [{"type": "function_call_output", "call_id": "x", "output": {}}],
        [{}],
        {"role": "user", "content": "x"},
        3,
    ],
)
def test_items_that_are_none_are_refused(given: Any) -> None:
    assert refusal(input=given)
