"""Messages of Chat Completions: their shape as openai's types have it, and what becomes of them.

Everything is checked by pydantic's core on plain dicts, since whole histories are sent again with
every request; what depends on several fields is checked by `conversation`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from agentmem.api.caching import CacheBreakpoint
from agentmem.api.errors import UNSUPPORTED
from agentmem.api.fields import Text
from agentmem.errors import InvalidRequest
from agentmem.sessions.messages import Message

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_MEDIA = {
    "image_url": "images",
    "input_audio": "audio",
    "file": "files",
    "video_url": "videos",
}
_LEGACY_CALL_ID = "call_function"


def _text_only(part: Any) -> Any:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind in _MEDIA:
        raise PydanticCustomError(
            UNSUPPORTED, "Content of type '{kind}' ({media}) is not supported: send text.",
            {"kind": kind, "media": _MEDIA[kind]},
        )  # fmt: skip
    return part


def _function_only(call: Any) -> Any:
    if isinstance(call, dict) and call.get("type") == "custom":
        raise PydanticCustomError(UNSUPPORTED, "Custom tools are not supported: use functions.")
    return call


def _no_audio(audio: Any) -> Any:
    if audio is not None:
        raise PydanticCustomError(UNSUPPORTED, "Audio is not supported: send text.")
    return audio


class TextPart(TypedDict):
    """A part of a message's text."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    type: Literal["text"]
    text: Text
    prompt_cache_breakpoint: NotRequired[CacheBreakpoint | None]


class RefusalPart(TypedDict):
    """What a model said instead of a reply."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    type: Literal["refusal"]
    refusal: Text


class FunctionCall(TypedDict):
    """A function's name and its arguments as JSON text."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    name: Annotated[Text, Field(min_length=1, max_length=256)]
    arguments: Text


class ToolCall(TypedDict):
    """A call that the model made. `index` is left over from a stream and means nothing."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    id: Annotated[Text, Field(max_length=256)]
    type: NotRequired[Literal["function"]]
    function: FunctionCall
    index: NotRequired[int | None]


Parts = list[Annotated[TextPart, BeforeValidator(_text_only)]]
AssistantPart = Annotated[TextPart | RefusalPart, Field(discriminator="type")]
AssistantParts = list[Annotated[AssistantPart, BeforeValidator(_text_only)]]
ToolCalls = list[Annotated[ToolCall, BeforeValidator(_function_only)]]
Name = Annotated[Text, Field(max_length=256)] | None


class SystemMessage(TypedDict):
    """Instructions of the developer."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    role: Literal["system", "developer"]
    content: Text | Parts
    name: NotRequired[Name]


class UserMessage(TypedDict):
    """What a user said."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    role: Literal["user"]
    content: Text | Parts
    name: NotRequired[Name]


class AssistantMessage(TypedDict):
    """What the model said. `annotations` may be sent back as they came; they mean nothing here."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    role: Literal["assistant"]
    content: NotRequired[Text | AssistantParts | None]
    refusal: NotRequired[Text | None]
    reasoning_content: NotRequired[Text | None]
    tool_calls: NotRequired[Annotated[ToolCalls, Field(max_length=128)] | None]
    function_call: NotRequired[FunctionCall | None]
    name: NotRequired[Name]
    annotations: NotRequired[list[dict[str, Any]] | None]
    audio: NotRequired[Annotated[None, BeforeValidator(_no_audio)]]


class ToolMessage(TypedDict):
    """What a tool answered."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    role: Literal["tool"]
    content: Text | Parts
    tool_call_id: Annotated[Text, Field(max_length=256)]
    name: NotRequired[Name]


class FunctionMessage(TypedDict):
    """What a function answered (deprecated in favour of tools)."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    role: Literal["function"]
    content: Text | None
    name: Annotated[Text, Field(max_length=256)]


ChatMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage,
    Field(discriminator="role"),
]
ChatMessages = Annotated[list[ChatMessage], Field(min_length=1, max_length=10_000)]


def conversation(messages: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """The messages as chat templates and the token log know them (see `sessions.messages`).

    Raises InvalidRequest for a message that says two things at once.
    """
    return tuple(_CONVERSIONS[message["role"]](message, at) for at, message in enumerate(messages))


def breakpoints(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Explicit cache breakpoints in the messages' parts."""
    found: list[Mapping[str, Any]] = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            marks = (part.get("prompt_cache_breakpoint") for part in content)
            found.extend(mark for mark in marks if mark is not None)
    return found


def _plain(message: Mapping[str, Any], _at: int) -> Message:
    role = message["role"]
    plain = {"role": "system" if role == "developer" else role, "content": _text(message)}
    name = message.get("name")
    if name is not None:
        plain["name"] = name
    return plain


def _tool(message: Mapping[str, Any], at: int) -> Message:
    return {**_plain(message, at), "tool_call_id": message["tool_call_id"]}


def _function(message: Mapping[str, Any], _at: int) -> Message:
    return {
        "role": "tool",
        "name": message["name"],
        "content": message["content"] or "",
        "tool_call_id": _LEGACY_CALL_ID,
    }


def _assistant(message: Mapping[str, Any], at: int) -> Message:
    content = _text(message)
    refusal, thinking = message.get("refusal"), message.get("reasoning_content")
    calls, legacy = message.get("tool_calls"), message.get("function_call")
    if not content and refusal:
        content = refusal
    if calls and legacy:
        raise InvalidRequest(
            "A message has either tool_calls or function_call.",
            param=f"messages[{at}].function_call",
        )
    if legacy:
        calls = [{"id": _LEGACY_CALL_ID, "function": legacy}]
    plain: dict[str, Any] = {"role": "assistant", "content": content or ("" if not calls else None)}
    if thinking:
        plain["reasoning_content"] = thinking
    if calls:
        plain["tool_calls"] = [
            {"id": call["id"], "type": "function", "function": dict(call["function"])}
            for call in calls
        ]
    name = message.get("name")
    if name is not None:
        plain["name"] = name
    return plain


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts = [part["text"] if part["type"] == "text" else part["refusal"] for part in content]
    # A reply in parts is one text; parts that somebody put together stay apart.
    return ("" if message["role"] == "assistant" else "\n").join(texts)


_CONVERSIONS = {
    "system": _plain,
    "developer": _plain,
    "user": _plain,
    "assistant": _assistant,
    "tool": _tool,
    "function": _function,
}
