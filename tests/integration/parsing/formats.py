"""What models of several families write for the same reply."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from agentmem.engine.output import Piece, ReasoningPiece, TextPiece, ToolCallPiece

TOOLS = tuple(
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "None.",
            "strict": None,
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("get_weather", "get_time")
)
ARGUMENTS = {"city": 'Zürich "x" <b> 漢字 \\ {[', "days": 12}
SECOND = {"city": "Oslo"}
_ONE = json.dumps(ARGUMENTS, ensure_ascii=False)
_TWO = json.dumps(SECOND)


def _hermes(begin: str, end: str) -> str:
    return (
        f'<tool_call>{begin}{{"name": "get_weather", "arguments": {_ONE}}}{end}</tool_call>\n'
        f'<tool_call>{begin}{{"name": "get_time", "arguments": {_TWO}}}{end}</tool_call>'
    )


def _glm(name: str, arguments: dict[str, object]) -> str:
    pairs = "".join(
        f"<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n"
        for key, value in arguments.items()
    )
    return f"<tool_call>{name}\n{pairs}</tool_call>"


def _deepseek(name: str, arguments: str) -> str:
    return (
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{arguments}\n"
        "```<｜tool▁call▁end｜>"
    )


@dataclass(frozen=True)
class Family:
    """`calls` are both calls in the family's format; `streams`: arguments come bit by bit."""

    tool_parser: str
    reasoning_parser: str
    calls: str
    streams: bool = True


FAMILIES = {
    "qwen3": Family("qwen", "qwen3", _hermes("\n", "\n")),
    "hermes": Family("hermes", "qwen3", _hermes("", "")),
    "llama3": Family(
        "llama3",
        "none",
        f'<|python_tag|>{{"name": "get_weather", "parameters": {_ONE}}};'
        f'{{"name": "get_time", "parameters": {_TWO}}}',
    ),
    "mistral": Family(
        "mistral",
        "none",
        f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {_ONE}}}, '
        f'{{"name": "get_time", "arguments": {_TWO}}}]',
    ),
    "deepseek": Family(
        "deepseekv3",
        "deepseek-r1",
        "<｜tool▁calls▁begin｜>"
        f"{_deepseek('get_weather', _ONE)}\n{_deepseek('get_time', _TWO)}<｜tool▁calls▁end｜>",
        streams=False,
    ),
    "glm45": Family(
        "glm45", "glm45", f"{_glm('get_weather', ARGUMENTS)}\n{_glm('get_time', dict(SECOND))}"
    ),
}


@dataclass
class Parsed:
    """A reply's pieces joined."""

    text: str
    reasoning: str
    calls: list[tuple[str, str]]


def joined(pieces: Sequence[Piece]) -> Parsed:
    """What a reply's pieces make; asserts that calls come one after another."""
    parsed = Parsed("", "", [])
    for piece in pieces:
        if isinstance(piece, TextPiece):
            parsed.text += piece.text
        elif isinstance(piece, ReasoningPiece):
            parsed.reasoning += piece.text
        elif isinstance(piece, ToolCallPiece):
            if piece.name is not None:
                assert piece.index == len(parsed.calls)
                parsed.calls.append((piece.name, ""))
            name, arguments = parsed.calls[piece.index]
            parsed.calls[piece.index] = (name, arguments + piece.arguments)
    return parsed
