"""Items as openai's types have them, and the form in which they are stored and shown.

Everything is checked by pydantic's core on plain dicts; `stored_items` brings them into one form:
with a type, contents in parts, nothing left of what means nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from agentmem.api.caching import CacheBreakpoint
from agentmem.api.errors import UNSUPPORTED
from agentmem.api.fields import Off, Text
from agentmem.sessions.items import message_item

ITEMS_MAX = 10_000
_ID_CHARACTERS_MAX = 256
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_MEDIA = {
    "input_image": "images",
    "input_file": "files",
    "input_audio": "audio",
    "input_video": "videos",
}
_KINDS = {
    "function_call",
    "function_call_output",
    "reasoning",
    "compaction",
    "item_reference",
}


def _text_only(part: Any) -> Any:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind in _MEDIA:
        raise PydanticCustomError(
            UNSUPPORTED, "Content of type '{kind}' ({media}) is not supported: send text.",
            {"kind": kind, "media": _MEDIA[kind]},
        )  # fmt: skip
    return part


def _as_parts(content: Any) -> Any:
    return [{"type": "input_text", "text": content}] if isinstance(content, str) else content


def _as_items(given: Any) -> Any:
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


def _kind(item: Any) -> str | None:
    """What an item is; a type may be left out of messages and references."""
    if not isinstance(item, dict):
        return None
    kind = item.get("type")
    if kind is None:
        kind = "message" if "role" in item else "item_reference"
    if kind == "message":
        return "assistant" if item.get("role") == "assistant" else "message"
    return kind if isinstance(kind, str) and kind in _KINDS else None


def _known_only(item: Any) -> Any:
    if isinstance(item, dict) and isinstance(item.get("type"), str) and _kind(item) is None:
        raise PydanticCustomError(
            UNSUPPORTED, "Items of type '{kind}' are not supported.", {"kind": item["type"][:64]}
        )
    return item


ItemId = Annotated[Text, Field(min_length=1, max_length=_ID_CHARACTERS_MAX)]
Status = Literal["in_progress", "completed", "incomplete"] | None
Phase = Literal["commentary", "final_answer"] | None


class InputText(TypedDict):
    """A part of what somebody wrote."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    type: Literal["input_text"]
    text: Text
    prompt_cache_breakpoint: NotRequired[CacheBreakpoint | None]


class OutputText(TypedDict):
    """A part of what a model wrote. Annotations and log-probabilities may be sent back as they
    came; they mean nothing here."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    type: Literal["output_text"]
    text: Text
    annotations: NotRequired[list[dict[str, Any]] | None]
    logprobs: NotRequired[list[dict[str, Any]] | None]
    parsed: NotRequired[Any]


class Refusal(TypedDict):
    """What a model said instead of a reply."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    type: Literal["refusal"]
    refusal: Text


class SummaryText(TypedDict):
    """A summary of what a model thought."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    type: Literal["summary_text"]
    text: Text


class ReasoningText(TypedDict):
    """What a model thought."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    type: Literal["reasoning_text"]
    text: Text


class DirectCaller(TypedDict):
    """The model itself."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    type: Literal["direct"]


InputPart = Annotated[InputText, BeforeValidator(_text_only)]
InputParts = Annotated[
    list[InputPart], BeforeValidator(_as_parts, json_schema_input_type=str | list[InputPart])
]
OutputPart = Annotated[
    Annotated[InputText | OutputText | Refusal, Field(discriminator="type")],
    BeforeValidator(_text_only),
]
OutputParts = Annotated[
    list[OutputPart], BeforeValidator(_as_parts, json_schema_input_type=str | list[OutputPart])
]
ToolOutput = Annotated[
    Annotated[Text, Tag("text")] | Annotated[list[InputPart], Tag("parts")],
    Discriminator(lambda output: "parts" if isinstance(output, list) else "text"),
]


class MessageItem(TypedDict):
    """What a user said, or instructions."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    role: Literal["user", "system", "developer"]
    content: InputParts
    type: NotRequired[Literal["message"] | None]
    id: NotRequired[ItemId | None]
    status: NotRequired[Status]
    phase: NotRequired[Phase]


class AssistantItem(TypedDict):
    """What a model said."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    role: Literal["assistant"]
    content: OutputParts
    type: NotRequired[Literal["message"] | None]
    id: NotRequired[ItemId | None]
    status: NotRequired[Status]
    phase: NotRequired[Phase]


class FunctionCallItem(TypedDict):
    """A call that the model made."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    type: Literal["function_call"]
    call_id: ItemId
    name: ItemId
    arguments: Text
    id: NotRequired[ItemId | None]
    status: NotRequired[Status]
    caller: NotRequired[DirectCaller | None]
    namespace: NotRequired[None]
    # `async` is a word of Python's.
    asynchronous: NotRequired[Annotated[Off | None, Field(alias="async")]]
    parsed_arguments: NotRequired[Any]


class FunctionOutputItem(TypedDict):
    """What a function answered."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    type: Literal["function_call_output"]
    call_id: ItemId
    output: ToolOutput
    id: NotRequired[ItemId | None]
    status: NotRequired[Status]
    caller: NotRequired[DirectCaller | None]
    name: NotRequired[ItemId | None]
    namespace: NotRequired[None]
    created_by: NotRequired[Text | None]


class ReasoningItem(TypedDict):
    """What a model thought before it went on."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    type: Literal["reasoning"]
    summary: NotRequired[list[SummaryText]]
    content: NotRequired[list[ReasoningText] | None]
    encrypted_content: NotRequired[Text | None]
    id: NotRequired[ItemId | None]
    status: NotRequired[Status]


class CompactionItem(TypedDict):
    """A conversation in short, sealed."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    type: Literal["compaction"]
    encrypted_content: Text
    id: NotRequired[ItemId | None]
    created_by: NotRequired[Text | None]


class ItemReference(TypedDict):
    """An item that is stored here."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    id: ItemId
    type: NotRequired[Literal["item_reference"] | None]


InputItem = Annotated[
    Annotated[
        Annotated[MessageItem, Tag("message")]
        | Annotated[AssistantItem, Tag("assistant")]
        | Annotated[FunctionCallItem, Tag("function_call")]
        | Annotated[FunctionOutputItem, Tag("function_call_output")]
        | Annotated[ReasoningItem, Tag("reasoning")]
        | Annotated[CompactionItem, Tag("compaction")]
        | Annotated[ItemReference, Tag("item_reference")],
        Discriminator(_kind),
    ],
    BeforeValidator(_known_only),
]
InputItems = Annotated[
    Annotated[list[InputItem], Field(max_length=ITEMS_MAX)],
    BeforeValidator(_as_items, json_schema_input_type=str | list[InputItem]),
]


def stored_items(given: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Checked items as they are stored, their own ids kept; references are left as they are, with
    their type."""
    items = []
    for item in given:
        kind = item.get("type") or ("message" if "role" in item else "item_reference")
        items.append({"id": item.get("id"), **_STORED[kind](item)})
    return items


def breakpoints(given: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Explicit cache breakpoints in the items' parts."""
    found: list[Mapping[str, Any]] = []
    for item in given:
        parts = item.get("content") or item.get("output")
        if isinstance(parts, list):
            marks = (part.get("prompt_cache_breakpoint") for part in parts)
            found.extend(mark for mark in marks if mark is not None)
    return found


def _message(item: Mapping[str, Any]) -> dict[str, Any]:
    stored = message_item(item["role"], "")
    if item["role"] == "assistant":
        stored["content"] = [_said(part) for part in item["content"]]
        if item.get("phase"):
            stored["phase"] = item["phase"]
    else:
        stored["content"] = [_written(part) for part in item["content"]]
    return stored


def _said(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] == "refusal":
        return dict(part)
    return {"type": "output_text", "text": part["text"], "annotations": [], "logprobs": []}


def _written(part: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "input_text", "text": part["text"]}


def _function_call(item: Mapping[str, Any]) -> dict[str, Any]:
    named = {name: item[name] for name in ("type", "call_id", "name", "arguments")}
    return {**named, "status": "completed"}


def _function_output(item: Mapping[str, Any]) -> dict[str, Any]:
    output = item["output"]
    if not isinstance(output, str):
        output = [_written(part) for part in output]
    stored = {
        "type": "function_call_output",
        "status": "completed",
        "call_id": item["call_id"],
        "output": output,
    }
    return {**stored, "name": item["name"]} if item.get("name") else stored


def _reasoning(item: Mapping[str, Any]) -> dict[str, Any]:
    stored: dict[str, Any] = {
        "type": "reasoning",
        "status": "completed",
        "summary": [dict(part) for part in item.get("summary") or ()],
        "content": [dict(part) for part in item.get("content") or ()],
    }
    if item.get("encrypted_content"):
        stored["encrypted_content"] = item["encrypted_content"]
    return stored


def _compaction(item: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "compaction", "encrypted_content": item["encrypted_content"]}


def _reference(_item: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "item_reference"}


_STORED: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "message": _message,
    "function_call": _function_call,
    "function_call_output": _function_output,
    "reasoning": _reasoning,
    "compaction": _compaction,
    "item_reference": _reference,
}
