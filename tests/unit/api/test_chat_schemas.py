"""From the body of a completion to the turn that it asks for."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from pydantic import ValidationError

from agentmem.api.caching import retention_name
from agentmem.api.chat.messages import conversation
from agentmem.api.chat.schemas import ChatBody
from agentmem.api.chat.tools import response_schema, toolbox
from agentmem.engine.output import ToolChoice
from agentmem.errors import InvalidRequest
from agentmem.sessions.messages import Framing, chain_hashes
from agentmem.sessions.requests import FromContext, LongestPrefix, TurnRequest

USER = {"role": "user", "content": "hello"}


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


def body(**fields: Any) -> ChatBody:
    return ChatBody.model_validate({"messages": [USER], **fields})


def only_request(**fields: Any) -> TurnRequest:
    made = body(**fields)
    (request,) = made.requests(made.toolbox())
    return request


class TestMessages:
    def test_what_clients_leave_out_or_add_is_the_same_conversation(self) -> None:
        call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        as_stored = [
            USER,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "42", "tool_call_id": "call_1"},
        ]
        resent = [
            {"role": "user", "content": [{"type": "text", "text": "hello"}]},
            {
                "role": "assistant",
                "content": "",
                "refusal": None,
                "audio": None,
                "annotations": [],
                "function_call": None,
                "reasoning_content": "thought about it",
                "tool_calls": [{**call, "id": "call_other", "index": 0}],
            },
            {"role": "tool", "content": "42", "tool_call_id": "call_other"},
        ]
        checked = ChatBody.model_validate({"messages": resent})
        hashes = [
            chain_hashes("m", Framing(), told)[-1]
            for told in (conversation(checked.messages), as_stored)
        ]
        assert hashes[0] == hashes[1]

    def test_a_function_of_old_is_a_tool(self) -> None:
        checked = ChatBody.model_validate(
            {
                "messages": [
                    USER,
                    {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
                    {"role": "function", "name": "f", "content": None},
                ]
            }
        )
        _, called, answered = conversation(checked.messages)
        assert called["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
        assert (answered["role"], answered["name"], answered["content"]) == ("tool", "f", "")
        assert answered["tool_call_id"] == called["tool_calls"][0]["id"]

    def test_two_kinds_of_calls_in_one_message(self) -> None:
        call = {"name": "f", "arguments": "{}"}
        message = {
            "role": "assistant",
            "function_call": call,
            "tool_calls": [{"id": "x", "type": "function", "function": call}],
        }
        checked = ChatBody.model_validate({"messages": [USER, message]})
        with pytest.raises(InvalidRequest) as caught:
            conversation(checked.messages)
        assert caught.value.param == "messages[1].function_call"

    def test_a_long_history_is_quick(self) -> None:
        """100,000 tokens are about 400 KB; a thousandth of a second per 50 KB is slow already."""
        told = [
            {"role": role, "content": f"{number} " + "word " * 40}
            for number in range(2_000)
            for role in ("user", "assistant")
        ]
        raw = json.dumps({"messages": told})
        assert len(raw) > 800_000
        begun = time.perf_counter()
        made = ChatBody.model_validate(json.loads(raw))
        made.requests(made.toolbox())
        # 7 ms on the machine that it was written on.
        assert time.perf_counter() - begun < 0.1


class TestTools:
    def test_choices(self) -> None:
        tools = [tool("f"), tool("g", description=None, strict=True)]
        assert toolbox(tools, None).choice == ToolChoice("auto")
        assert toolbox(tools, "none").choice == ToolChoice("none")
        assert toolbox(None, "auto").tools == ()
        assert toolbox(tools, "required").choice == ToolChoice("required")
        assert toolbox(tools, tool("g")).choice == ToolChoice("named", "g")
        assert toolbox(tools, None).tools[1] == tool("g", strict=True)

    def test_allowed_tools(self) -> None:
        tools = [tool("f"), tool("g"), tool("h")]

        def allowed(mode: str, *names: str) -> Any:
            chosen = [tool(name) for name in names]
            return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": chosen}}

        one = toolbox(tools, allowed("required", "g"))
        assert (one.choice, len(one.tools)) == (ToolChoice("named", "g"), 3)
        two = toolbox(tools, allowed("auto", "h", "f"))
        assert two.choice == ToolChoice("auto")
        assert [shown["function"]["name"] for shown in two.tools] == ["f", "h"]

    @pytest.mark.parametrize(
        ("tools", "choice", "param"),
        [
            ([], "required", "tool_choice"),
            ([tool("f"), tool("f")], None, "tools"),
            ([tool("f")], tool("g"), "tool_choice.function.name"),
        ],
    )
    def test_what_does_not_fit(self, tools: Any, choice: Any, param: str) -> None:
        with pytest.raises(InvalidRequest) as caught:
            toolbox(tools, choice)
        assert caught.value.param == param

    @pytest.mark.parametrize(
        "parameters",
        [
            {"a": "\x00"},
            {"\ud800": 1},
            {"a": float("inf")},
            {"a": 10**30},
            {"a": [{"b": "\udfff"}]},
        ],
    )
    def test_schemas_that_cannot_be_stored(self, parameters: Any) -> None:
        with pytest.raises(ValidationError):
            body(tools=[tool("f", parameters=parameters)])

    def test_a_schema_that_goes_down_without_end(self) -> None:
        deep: Any = {}
        for _ in range(100):
            deep = {"properties": {"a": deep}}
        with pytest.raises(ValidationError, match="nested deeper"):
            body(tools=[tool("f", parameters=deep)])

    def test_formats(self) -> None:
        schema = {"type": "object"}
        assert response_schema(None) is None
        assert response_schema({"type": "text"}) is None
        assert response_schema({"type": "json_object"}) == {}
        named = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        assert response_schema(named) == schema


class TestRequests:
    def test_defaults_are_those_of_the_api(self) -> None:
        request = only_request()
        assert (request.temperature, request.top_p, request.top_k) == (1.0, 1.0, -1)
        assert (request.max_tokens, request.seed, request.stop) == (None, None, ())
        assert request.store
        assert request.retention is None
        assert request.framing == Framing()

    def test_seeds_of_choices_differ_and_wrap(self) -> None:
        made = body(n=3, seed=2**63 - 1)
        seeds = [request.seed for request in made.requests(made.toolbox())]
        assert seeds == [2**63 - 1, -(2**63), -(2**63) + 1]
        unseeded = body(n=2)
        assert [r.seed for r in unseeded.requests(unseeded.toolbox())] == [None, None]

    def test_targets(self) -> None:
        assert body().target("m") == LongestPrefix("m")
        assert body(context="ctx_1").target("m") == FromContext("ctx_1")

    def test_legacy_functions_are_called_one_at_a_time(self) -> None:
        functions = [{"name": "f"}]
        request = only_request(functions=functions, function_call={"name": "f"})
        assert request.tool_choice == ToolChoice("named", "f")
        assert not request.parallel_tool_calls

    def test_store(self) -> None:
        assert [only_request(store=value).store for value in (None, True, False)] == [
            True,
            True,
            False,
        ]
        assert [body(store=value).stored for value in (None, True, False)] == [False, True, False]


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ((None, None, [], None), None),
        (("archive", "30m", [{"ttl": "12h"}], "24h"), "archive"),
        ((None, "30m", [{"ttl": "12h"}], "24h"), "standard"),
        ((None, "30m", [{}], "24h"), "ephemeral"),
        ((None, None, [{"ttl": None}], "24h"), "persistent"),
        ((None, None, [], "in-memory"), "ephemeral"),
    ],
)
def test_retention(said: Any, name: str | None) -> None:
    assert retention_name(*said) == name
