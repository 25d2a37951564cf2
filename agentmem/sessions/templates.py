"""Chat templates: a model's own, and tools for models whose own template has none.

A model that was never shown tools has a template that ignores them, or fails on messages without
content. For those, tools are written in Hermes' format into the contents of ordinary messages
(`hermes_tools.jinja`), and the model's own template puts its markers around them. A conversation
without tools renders as the model's own template says, to the last character.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, meta, nodes, pass_eval_context
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from agentmem.errors import ConfigurationInvalid, InvalidRequest
from agentmem.sessions.messages import Framing, Message, framed

_HERMES = Path(__file__).with_name("hermes_tools.jinja")
_ROLES = {"developer": "system", "function": "tool"}
_OPTIONAL = ("tool_calls", "tool_call_id", "name", "reasoning_content")
_PROBE_TIME = datetime(2026, 1, 1, tzinfo=UTC)
_PROBE_NAME = "agentmem_probe_of_tools"
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": _PROBE_NAME,
        "description": "None.",
        "parameters": {"type": "object", "properties": {}},
    },
}
_PROBE: tuple[Message, ...] = ({"role": "user", "content": "x"},)


class ChatTemplate:
    """One model's template, compiled. Thread-safe.

    `variables` are the special tokens that it may name. Raises ConfigurationInvalid when it cannot
    be read.
    """

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        self._variables = dict(variables)
        environment = _environment()
        try:
            self._template = environment.from_string(source)
            names = meta.find_undeclared_variables(environment.parse(source))
        except TemplateError as error:
            raise ConfigurationInvalid(
                f"The model's chat template cannot be read: {error.message}."
            ) from error
        self.has_tools = "tools" in names and self._shows_tools()

    def render(
        self,
        messages: Iterable[Message],
        framing: Framing,
        *,
        now: datetime,
        add_generation_prompt: bool,
    ) -> str:
        """The conversation as text. Raises InvalidRequest when the template refuses it."""
        told = [_normal(message) for message in framed(framing, messages)]
        if not self.has_tools:
            told = _with_hermes_tools(told, framing)
        try:
            try:
                return self._render(told, framing, now, add_generation_prompt)
            except TemplateError:
                merged = _one_system(told)
                if len(merged) == len(told):
                    raise
                return self._render(merged, framing, now, add_generation_prompt)
        except TemplateError as error:
            raise InvalidRequest(
                f"The model's chat template refuses these messages: {error.message}.",
                param="messages",
            ) from error
        except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
            raise InvalidRequest(
                f"The model's chat template fails on these messages: {error}.", param="messages"
            ) from error

    def _render(
        self, messages: list[dict[str, Any]], framing: Framing, now: datetime, prompt: bool
    ) -> str:
        tools = [dict(tool) for tool in framing.tools] if self.has_tools else []
        return self._template.render(
            messages=messages,
            add_generation_prompt=prompt,
            strftime_now=now.astimezone(UTC).strftime,
            tools=tools or None,
            documents=None,
            **_thinking(framing.reasoning_effort),
            **self._variables,
        )

    def _shows_tools(self) -> bool:
        """Whether a tool's name gets into the prompt. A template may name `tools` and ignore it."""
        self.has_tools = True  # for the probe
        try:
            text = self.render(
                _PROBE, Framing(tools=(_PROBE_TOOL,)), now=_PROBE_TIME, add_generation_prompt=True
            )
        except InvalidRequest:
            # It does look at tools, since it names them; what it dislikes is the probe.
            return True
        return _PROBE_NAME in text


def _normal(message: Message) -> dict[str, Any]:
    """The message as templates expect it: with content, and arguments as values, not as text."""
    normal: dict[str, Any] = {
        "role": _ROLES.get(message["role"], message["role"]),
        "content": message.get("content") or "",
    }
    normal.update((key, message[key]) for key in _OPTIONAL if message.get(key))
    if "tool_calls" in normal:
        normal["tool_calls"] = [_call(call) for call in normal["tool_calls"]]
    return normal


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": _arguments(function["arguments"])}}


def _arguments(text: Any) -> Any:
    """A call's arguments as an object; what is none (a reply that was cut) stays as it is."""
    if not isinstance(text, str):
        return text
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def _thinking(effort: str | None) -> dict[str, Any]:
    """The variables that switch thinking, as families name them; none where nobody asked."""
    if effort is None:
        return {}
    on = effort != "none"
    switches = {"enable_thinking": on, "thinking": on}
    return {**switches, "reasoning_effort": effort} if on else switches


def _one_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The system messages at the start as one: some templates take no second one."""
    count = next(
        (at for at, message in enumerate(messages) if message["role"] != "system"), len(messages)
    )
    if count < 2:
        return messages
    content = "\n\n".join(message["content"] for message in messages[:count])
    return [{"role": "system", "content": content}, *messages[count:]]


def _with_hermes_tools(messages: list[dict[str, Any]], framing: Framing) -> list[dict[str, Any]]:
    """Tools, calls and results as text in ordinary messages; the same list where there are none."""
    talks_of_tools = any(m["role"] == "tool" or "tool_calls" in m for m in messages)
    if not framing.tools and not talks_of_tools:
        return messages
    hermes = _hermes()
    written: list[dict[str, Any]] = []
    for role, group in groupby(messages, key=lambda message: message["role"]):
        if role == "tool":
            contents = [message["content"] for message in group]
            written.append({"role": "user", "content": str(hermes.tool(contents))})
        elif role == "assistant":
            written.extend(
                {"role": role, "content": str(hermes.assistant(m["content"], m["tool_calls"]))}
                if "tool_calls" in m
                else m
                for m in group
            )
        else:
            written.extend(group)
    if framing.tools:
        first = written[0] if written and written[0]["role"] == "system" else None
        content = str(hermes.system(first["content"] if first else "", framing.tools))
        written[: 1 if first else 0] = [{"role": "system", "content": content}]
    return written


@lru_cache(maxsize=1)
def _hermes() -> Any:
    """The macros of `hermes_tools.jinja`."""
    template: Template = _environment().from_string(_HERMES.read_text(encoding="utf-8"))
    return template.module


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's tokens for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_render", [])
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    @pass_eval_context
    def _render(self, _context: nodes.EvalContext, caller: Macro) -> str:
        return str(caller())


def _environment() -> ImmutableSandboxedEnvironment:
    """The environment that transformers renders chat templates in."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
