"""Tools and text formats as the Responses API writes them: flat, where chat nests them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from agentmem.api.chat.tools import TOOLS_MAX, FunctionName, Toolbox, toolbox
from agentmem.api.errors import UNSUPPORTED
from agentmem.api.fields import JsonObject, Off, Text

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _function_only(tool: Any) -> Any:
    kind = tool.get("type") if isinstance(tool, dict) else None
    if kind != "function" and isinstance(kind, str):
        raise PydanticCustomError(
            UNSUPPORTED, "Tools of type '{kind}' are not supported: use functions.",
            {"kind": kind[:64]},
        )  # fmt: skip
    return tool


def _supported_choice(choice: Any) -> Any:
    kind = choice.get("type") if isinstance(choice, dict) else None
    if isinstance(kind, str) and kind not in ("function", "allowed_tools"):
        raise PydanticCustomError(
            UNSUPPORTED, "A tool_choice of type '{kind}' is not supported: use functions.",
            {"kind": kind[:64]},
        )  # fmt: skip
    return choice


class FunctionTool(TypedDict):
    """A function that the model may call; `parameters` is a JSON schema."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    type: Literal["function"]
    name: FunctionName
    description: NotRequired[Text | None]
    parameters: NotRequired[JsonObject | None]
    strict: NotRequired[bool | None]
    output_schema: NotRequired[None]
    defer_loading: NotRequired[Off | None]
    allowed_callers: NotRequired[Annotated[list[Literal["direct"]], Field(max_length=1)] | None]
    # `async` is a word of Python's.
    asynchronous: NotRequired[Annotated[Off | None, Field(alias="async")]]


class NamedChoice(TypedDict):
    """The one function that must be called."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    type: Literal["function"]
    name: FunctionName


class AllowedChoice(TypedDict):
    """A choice among some of the tools."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[
        list[Annotated[NamedChoice, BeforeValidator(_function_only)]],
        Field(min_length=1, max_length=TOOLS_MAX),
    ]


Tools = Annotated[
    list[Annotated[FunctionTool, BeforeValidator(_function_only)]], Field(max_length=TOOLS_MAX)
]
Choice = Annotated[
    Literal["none", "auto", "required"]
    | Annotated[NamedChoice | AllowedChoice, Field(discriminator="type")],
    BeforeValidator(_supported_choice),
]


class TextFormat(TypedDict):
    """Any text."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    type: Literal["text"]


class JsonObjectFormat(TypedDict):
    """Any JSON object."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    type: Literal["json_object"]


class JsonSchemaFormat(TypedDict):
    """JSON that matches a schema."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    type: Literal["json_schema"]
    name: Annotated[Text, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema: JsonObject
    description: NotRequired[Text | None]
    strict: NotRequired[bool | None]


def _medium_only(verbosity: Any) -> Any:
    if verbosity in ("low", "high"):
        raise PydanticCustomError(
            UNSUPPORTED, "Verbosity is not supported: send 'medium' or nothing."
        )
    return verbosity


class TextConfig(TypedDict):
    """What the reply's text must be."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    format: NotRequired[
        Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]
        | None
    ]
    verbosity: NotRequired[Annotated[Literal["medium"] | None, BeforeValidator(_medium_only)]]


def responses_toolbox(tools: Sequence[Mapping[str, Any]] | None, choice: Any) -> Toolbox:
    """The tools as chat has them. Raises InvalidRequest where tools and choice do not fit."""
    nested = [
        {"type": "function", "function": _definition(tool)}
        for tool in tools or ()
    ]  # fmt: skip
    return toolbox(nested, _nested_choice(choice))


def shown_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """The tools as a response object shows them."""
    names = ("name", "description", "parameters", "strict")
    return [
        {"type": "function", **{name: tool.get(name) for name in names}} for tool in tools or ()
    ]


def text_schema(text: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The JSON schema that the reply must match; `{}`: any object; None: any text."""
    chosen = (text or {}).get("format")
    if chosen is None or chosen["type"] == "text":
        return None
    schema: Mapping[str, Any] = {} if chosen["type"] == "json_object" else chosen["schema"]
    return schema


def shown_text(text: Mapping[str, Any] | None) -> dict[str, Any]:
    """`text` as a response object shows it."""
    chosen = (text or {}).get("format") or {"type": "text"}
    if chosen["type"] == "json_schema":
        shown = {name: chosen.get(name) for name in ("type", "name", "description", "schema")}
        chosen = {**shown, "strict": chosen.get("strict") is not False}
    return {"format": dict(chosen), "verbosity": "medium"}


def _definition(tool: Mapping[str, Any]) -> dict[str, Any]:
    names = ("name", "description", "parameters", "strict")
    return {name: tool[name] for name in names if tool.get(name) is not None}


def _nested_choice(choice: Any) -> Any:
    if choice is None or isinstance(choice, str):
        return choice
    if choice["type"] == "function":
        return {"type": "function", "function": {"name": choice["name"]}}
    named = [{"type": "function", "function": {"name": one["name"]}} for one in choice["tools"]]
    return {
        "type": "allowed_tools",
        "allowed_tools": {"mode": choice["mode"], "tools": named},
    }
