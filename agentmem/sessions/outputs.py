"""The items of a reply in the order in which the model began them.

Text, thinking and calls come as pieces. Each run of one kind is an item; white space alone begins
no message (models put line feeds between calls), but belongs to the next one that does begin.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from agentmem.catalog.records import Turn
from agentmem.core import TurnId
from agentmem.engine.output import Piece, ReasoningPiece, TextPiece, ToolCallPiece
from agentmem.sessions.reply import call_id
from agentmem.sessions.runs import TurnDelta

Kind = Literal["reasoning", "message", "function_call"]
Status = Literal["in_progress", "completed", "incomplete"]
_PREFIX: dict[Kind, str] = {"reasoning": "rs", "message": "msg", "function_call": "fc"}


@dataclass(slots=True)
class OutputItem:
    """One item as far as it came. `index` is its place in the output, `text` its text, thinking
    or arguments; `logprobs` are those of a message's tokens, as the API shows them."""

    id: str
    kind: Kind
    index: int
    call_id: str = ""
    name: str = ""
    parts: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self.parts)

    def as_dict(self, status: Status, *, encrypted_content: str | None = None) -> dict[str, Any]:
        """The item as it is stored and shown."""
        if self.kind == "message":
            part = {
                "type": "output_text",
                "text": self.text,
                "annotations": [],
                "logprobs": self.logprobs,
            }
            return self._item(status, role="assistant", content=[part])
        if self.kind == "function_call":
            return self._item(status, call_id=self.call_id, name=self.name, arguments=self.text)
        content = [{"type": "reasoning_text", "text": self.text}]
        item = self._item(status, summary=[], content=content)
        if encrypted_content is not None:
            item["encrypted_content"] = encrypted_content
        return item

    def begun(self) -> dict[str, Any]:
        """The item with nothing in it yet."""
        if self.kind == "message":
            return self._item("in_progress", role="assistant", content=[])
        if self.kind == "function_call":
            return self._item("in_progress", call_id=self.call_id, name=self.name, arguments="")
        return self._item("in_progress", summary=[], content=[])

    def _item(self, status: Status, **fields: Any) -> dict[str, Any]:
        return {"id": self.id, "type": self.kind, "status": status, **fields}


@dataclass(frozen=True, slots=True)
class Growth:
    """`item` grew by `text`; `begins` says that it is new (then `text` may be empty)."""

    item: OutputItem
    text: str
    begins: bool = False


class Layout:
    """Takes pieces, gives items that grow. Ids follow from the turn's and the item's place."""

    def __init__(self, turn_id: TurnId) -> None:
        self.items: list[OutputItem] = []
        self._turn_id = turn_id
        self._held = ""
        self._calls: dict[int, OutputItem] = {}

    def take(self, piece: Piece) -> Growth | None:
        """None for a piece that shows nothing (yet)."""
        if isinstance(piece, ToolCallPiece):
            return self._take_call(piece)
        kind: Kind = "reasoning" if isinstance(piece, ReasoningPiece) else "message"
        if self.items and self.items[-1].kind == kind:
            return _grow(self.items[-1], piece.text) if piece.text else None
        text = piece.text
        if isinstance(piece, TextPiece):
            text = self._held + text
            if not text.strip():
                self._held = text
                return None
            self._held = ""
        elif not text:
            return None
        return self._begin(self._new(kind), text)

    def finish(self) -> Growth | None:
        """A reply that has neither text nor calls nor thinking still has a message."""
        if self.items:
            return None
        return self._begin(self._new("message"), self._held)

    def _take_call(self, piece: ToolCallPiece) -> Growth | None:
        known = self._calls.get(piece.index)
        if known is not None:
            return _grow(known, piece.arguments) if piece.arguments else None
        item = self._new("function_call")
        item.call_id = call_id(self._turn_id, piece.index)
        item.name = piece.name or ""
        self._calls[piece.index] = item
        return self._begin(item, piece.arguments)

    def _begin(self, item: OutputItem, text: str) -> Growth:
        self.items.append(item)
        if text:
            item.parts.append(text)
        return Growth(item, text, begins=True)

    def _new(self, kind: Kind) -> OutputItem:
        suffix, index = self._turn_id.partition("_")[2], len(self.items)
        return OutputItem(f"{_PREFIX[kind]}_{suffix}_{index}", kind, index)


def _grow(item: OutputItem, text: str) -> Growth:
    item.parts.append(text)
    return Growth(item, text)


def final_status(turn: Turn) -> Status:
    """Of a turn's response, and of the last of its items: all before it are complete."""
    return "incomplete" if turn.finish_reason == "length" else "completed"


def output_items(turn: Turn, deltas: Iterable[TurnDelta]) -> list[dict[str, Any]]:
    """The items of a committed turn that came in these deltas, without log-probabilities."""
    layout = Layout(turn.id)
    for delta in deltas:
        for piece in delta.pieces:
            layout.take(piece)
    layout.finish()
    return shown_items(layout.items, final_status(turn))


def shown_items(
    items: Sequence[OutputItem], status: Status, sealed: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """All items of a reply that ended with `status`; `sealed` has `encrypted_content` by id."""
    last = len(items) - 1
    return [
        item.as_dict(
            status if index == last else "completed",
            encrypted_content=(sealed or {}).get(item.id),
        )
        for index, item in enumerate(items)
    ]
