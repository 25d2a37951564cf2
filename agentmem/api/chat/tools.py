"""Tools and formats of replies: their shape as openai's types have it, and what is meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NotRequired

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from agentmem.api.errors import UNSUPPORTED
from agentmem.api.fields import JsonObject, Text
from agentmem.engine.output import ToolChoice
from agentmem.errors import InvalidRequest
from agentmem.sessions.messages import Tool

TOOLS_MAX = 128
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _function_only(tool: Any) -> Any:
    kind = tool.get("type") if isinstance(tool, dict) else None
    if kind != "function" and isinstance(kind, str):
        raise PydanticCustomError(
            UNSUPPORTED, "Tools of type '{kind}' are not supported: use functions.", {"kind": kind}
        )
    return tool


FunctionName = Annotated[Text, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class FunctionDefinition(TypedDict):
    """A function that the model may call; `parameters` is a JSON schema."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    name: FunctionName
    description: NotRequired[Text | None]
    parameters: NotRequired[JsonObject | None]
    strict: NotRequired[bool | None]


class LegacyFunction(TypedDict):
    """A function as it was described before there were tools."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    name: FunctionName
    description: NotRequired[Text | None]
    parameters: NotRequired[JsonObject | None]


class FunctionTool(TypedDict):
    """A tool."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    type: Literal["function"]
    function: FunctionDefinition


class FunctionReference(TypedDict):
    """A function by its name."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    name: FunctionName


class NamedChoice(TypedDict):
    """The one function that must be called."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    type: Literal["function"]
    function: FunctionReference


class AllowedTools(TypedDict):
    """Functions that may be called, and whether one of them must be."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    mode: Literal["auto", "required"]
    tools: Annotated[
        list[Annotated[NamedChoice, BeforeValidator(_function_only)]],
        Field(min_length=1, max_length=TOOLS_MAX),
    ]


class AllowedChoice(TypedDict):
    """A choice among some of the tools."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _no_custom_choice(choice: Any) -> Any:
    if isinstance(choice, dict) and choice.get("type") == "custom":
        raise PydanticCustomError(UNSUPPORTED, "Custom tools are not supported: use functions.")
    return choice


Tools = Annotated[
    list[Annotated[FunctionTool, BeforeValidator(_function_only)]], Field(max_length=TOOLS_MAX)
]
Choice = Annotated[
    Literal["none", "auto", "required"]
    | Annotated[NamedChoice | AllowedChoice, Field(discriminator="type")],
    BeforeValidator(_no_custom_choice),
]
LegacyFunctions = Annotated[list[LegacyFunction], Field(max_length=TOOLS_MAX)]
LegacyChoice = Literal["none", "auto"] | FunctionReference


class JsonSchemaFormat(TypedDict):
    """A JSON schema, with a name."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    name: Annotated[Text, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: NotRequired[Text | None]
    schema: NotRequired[JsonObject | None]
    strict: NotRequired[bool | None]


class TextFormat(TypedDict):
    """Any text."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    type: Literal["text"]


class JsonObjectFormat(TypedDict):
    """Any JSON object."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    type: Literal["json_object"]


class SchemaFormat(TypedDict):
    """JSON that matches a schema."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    type: Literal["json_schema"]
    json_schema: JsonSchemaFormat


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | SchemaFormat, Field(discriminator="type")
]


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The tools as the template gets them, and which of them the reply may or must call.

    `legacy`: they came as `functions`, and the reply answers with `function_call`.
    """

    tools: tuple[Tool, ...] = ()
    choice: ToolChoice = field(default_factory=ToolChoice)
    legacy: bool = False


def toolbox(tools: Sequence[Mapping[str, Any]] | None, choice: Any) -> Toolbox:
    """From `tools` and `tool_choice`. Raises InvalidRequest where they do not fit together."""
    definitions = tuple(_tool(tool["function"]) for tool in tools or ())
    names = [tool["function"]["name"] for tool in definitions]
    _check_unique(names, "tools")
    if choice is None or choice in ("none", "auto"):
        return Toolbox(definitions, ToolChoice(choice or "auto"))
    if not definitions:
        raise InvalidRequest(
            "tool_choice asks for a tool, and there are none.", param="tool_choice"
        )
    if choice == "required":
        return Toolbox(definitions, ToolChoice("required"))
    if choice["type"] == "function":
        name = choice["function"]["name"]
        _check_known([name], names, "tool_choice.function.name")
        return Toolbox(definitions, ToolChoice("named", name))
    allowed = choice["allowed_tools"]
    wanted = [tool["function"]["name"] for tool in allowed["tools"]]
    _check_known(wanted, names, "tool_choice.allowed_tools.tools")
    if len(set(wanted)) == 1 and allowed["mode"] == "required":
        return Toolbox(definitions, ToolChoice("named", wanted[0]))
    # What the model is not shown it does not call.
    shown = tuple(tool for tool in definitions if tool["function"]["name"] in wanted)
    return Toolbox(shown, ToolChoice(allowed["mode"]))


def legacy_toolbox(functions: Sequence[Mapping[str, Any]] | None, choice: Any) -> Toolbox:
    """From `functions` and `function_call`. Raises InvalidRequest as `toolbox` does."""
    definitions = tuple(_tool(function) for function in functions or ())
    names = [tool["function"]["name"] for tool in definitions]
    _check_unique(names, "functions")
    if choice is None or choice in ("none", "auto"):
        return Toolbox(definitions, ToolChoice(choice or "auto"), legacy=True)
    _check_known([choice["name"]], names, "function_call.name")
    return Toolbox(definitions, ToolChoice("named", choice["name"]), legacy=True)


def response_schema(response_format: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The JSON schema that the reply must match; `{}`: any object; None: any text."""
    if response_format is None or response_format["type"] == "text":
        return None
    if response_format["type"] == "json_object":
        return {}
    schema: Mapping[str, Any] | None = response_format["json_schema"].get("schema")
    return schema or {}


def _tool(function: Mapping[str, Any]) -> Tool:
    given = {name: value for name, value in function.items() if value is not None}
    return {"type": "function", "function": given}


def _check_unique(names: Sequence[str], param: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InvalidRequest(f"There is more than one function {name!r}.", param=param)


def _check_known(wanted: Sequence[str], names: Sequence[str], param: str) -> None:
    for name in wanted:
        if name not in names:
            raise InvalidRequest(f"There is no function {name!r} among the tools.", param=param)
