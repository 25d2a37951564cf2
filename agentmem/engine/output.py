"""What a model wrote, taken apart: text, thinking, tool calls, as they stream.

Every family of models writes these in a format of its own. A parser turns the decoded text (special
tokens kept) into pieces; the pieces of one reply joined make its message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol


@dataclass(frozen=True, slots=True)
class TextPiece:
    """More of the visible reply."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningPiece:
    """More of what the model thought before it replied."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallPiece:
    """More of the call number `index` (from 0): the first piece of a call has its `name`,
    all of them have the next characters of its `arguments` (JSON text)."""

    index: int
    name: str | None
    arguments: str


Piece = TextPiece | ReasoningPiece | ToolCallPiece


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Which tools the reply may or must call; `name` only with mode "named"."""

    mode: Literal["none", "auto", "required", "named"] = "auto"
    name: str | None = None


AUTO = ToolChoice()


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """What may be in a reply. `tools` as in Chat Completions' `tools`; `reasoning` says whether
    the model may think first (its format may always do). `opening` is what the chat template began
    the reply with (`Chat.opening`): a model may have been made to think, or not to, there."""

    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: ToolChoice = AUTO
    parallel_tool_calls: bool = True
    reasoning: bool = True
    opening: str = ""


class OutputParser(Protocol):
    """One reply's parser. Both methods raise EngineFailed when the parser is gone.

    `special_tokens`: it must be given the text with special tokens, which mark calls in some
    formats (`TextStream(..., special=parser.special_tokens)`).
    """

    @property
    def special_tokens(self) -> bool: ...

    async def push(self, text: str) -> Sequence[Piece]:
        """Takes more decoded text, returns what became certain."""
        ...

    async def finish(self) -> Sequence[Piece]:
        """The rest. Nothing may be pushed afterwards."""
        ...

    async def aclose(self) -> None:
        """Lets go of it, finished or not."""
        ...


class PlainText:
    """The parser of replies that have nothing but text."""

    special_tokens = False

    async def push(self, text: str) -> Sequence[Piece]:
        """The text itself."""
        return (TextPiece(text),) if text else ()

    async def finish(self) -> Sequence[Piece]:
        """Nothing is held back."""
        return ()

    async def aclose(self) -> None:
        """Nothing to let go of."""
