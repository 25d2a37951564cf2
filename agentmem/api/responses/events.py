"""A response as events, in the order and with the numbers that openai's clients expect.

response.created, response.in_progress
response.output_item.added
  message, reasoning   response.content_part.added, ….delta …, ….done, response.content_part.done
  function_call        response.function_call_arguments.delta …, ….done
response.output_item.done                                   and the next item
response.completed | response.incomplete | response.failed
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from agentmem.api.chat.objects import TokenText, token_logprobs
from agentmem.api.responses.objects import Ending, Head, response_object
from agentmem.api.sse import encode_json
from agentmem.core import TurnId
from agentmem.engine.output import TextPiece
from agentmem.sessions.outputs import Growth, Layout, OutputItem, Status, shown_items
from agentmem.sessions.runs import TurnCreated, TurnDelta

Event = tuple[str, dict[str, Any]]
_FILLER = "agentmem" * 4
_OBFUSCATION_STEP = 32
_DELTA = {
    "message": "response.output_text.delta",
    "reasoning": "response.reasoning_text.delta",
    "function_call": "response.function_call_arguments.delta",
}


@dataclass(frozen=True, slots=True)
class Extras:
    """What a response has besides, where it was asked for: log-probabilities of its text, sealed
    thinking, padded events."""

    token_text: TokenText | None = None
    seal: Callable[[str], str] | None = None
    obfuscate: bool = False


class ResponseEncoder:
    """Takes what happens to a turn, gives the events of its response. Pure.

    The same deltas give the same events, whether the turn runs or is told once more. `output` are
    the items so far.
    """

    def __init__(self, head: Head, extras: Extras = Extras()) -> None:
        self._head = head
        self._extras = extras
        self._number = 0
        self._layout = Layout(TurnId(""))
        self._open: list[OutputItem] = []
        self._sealed: dict[str, str] = {}
        self._pending: list[dict[str, Any]] = []

    def created(self, created: TurnCreated) -> Iterator[Event]:
        """The turn runs."""
        self._head = replace(self._head, created_at=created.created_at)
        self._layout = Layout(created.turn_id)
        shown = response_object(self._head, None)
        yield self._event("response.created", response=shown)
        yield self._event("response.in_progress", response=shown)

    def delta(self, delta: TurnDelta) -> Iterator[Event]:
        """More of the reply."""
        if self._extras.token_text is not None and delta.token_ids:
            self._pending += token_logprobs(
                delta.token_ids, delta.logprobs, delta.top_logprobs, self._extras.token_text
            )
        for piece in delta.pieces:
            if not isinstance(piece, TextPiece):
                # Tokens of thinking and of calls have no place in the text's log-probabilities.
                self._pending = []
            growth = self._layout.take(piece)
            if growth is not None:
                yield from self._grow(growth)

    def ended(self, ending: Ending) -> Iterator[Event]:
        """The turn is over; nothing follows."""
        status: Status = "completed" if ending.status == "completed" else "incomplete"
        if ending.turn is not None:
            growth = self._layout.finish()
            if growth is not None:
                yield from self._grow(growth)
        for item in list(self._open):
            last = item is self._layout.items[-1]
            yield from self._close(item, status if last else "completed")
        kind = ending.status if ending.status in ("completed", "incomplete") else "failed"
        shown = response_object(self._head, ending, self.output(status))
        yield self._event(f"response.{kind}", response=shown)

    def output(self, status: Status = "completed") -> list[dict[str, Any]]:
        """The items, of which the last one ended with `status`."""
        return shown_items(self._layout.items, status, self._sealed)

    def _grow(self, growth: Growth) -> Iterator[Event]:
        item = growth.item
        if growth.begins:
            for earlier in list(self._open):
                # Text may come between a call and the rest of its arguments, another call not.
                if earlier.kind != "function_call" or item.kind == "function_call":
                    yield from self._close(earlier, "completed")
            yield from self._begin(item)
        if not growth.text:
            return
        event = self._of_item(_DELTA[item.kind], item, delta=growth.text)
        if item.kind == "message":
            event[1]["logprobs"] = self._pending
            item.logprobs.extend(self._pending)
            self._pending = []
        if self._extras.obfuscate:
            # So that the length of an event tells little about its text.
            padding = -len(encode_json(growth.text)) % _OBFUSCATION_STEP
            event[1]["obfuscation"] = _FILLER[:padding]
        yield event

    def _begin(self, item: OutputItem) -> Iterator[Event]:
        self._open.append(item)
        yield self._event("response.output_item.added", output_index=item.index, item=item.begun())
        if item.kind != "function_call":
            yield self._of_item("response.content_part.added", item, part=_part(item, empty=True))

    def _close(self, item: OutputItem, status: Status) -> Iterator[Event]:
        text = item.text
        if item.kind == "message":
            yield self._of_item(
                "response.output_text.done", item, text=text, logprobs=item.logprobs
            )
            yield self._of_item("response.content_part.done", item, part=_part(item))
        elif item.kind == "reasoning":
            yield self._of_item("response.reasoning_text.done", item, text=text)
            yield self._of_item("response.content_part.done", item, part=_part(item))
            if self._extras.seal is not None:
                self._sealed[item.id] = self._extras.seal(text)
        else:
            yield self._of_item(
                "response.function_call_arguments.done", item, name=item.name, arguments=text
            )
        shown = item.as_dict(status, encrypted_content=self._sealed.get(item.id))
        yield self._event("response.output_item.done", output_index=item.index, item=shown)
        self._open.remove(item)

    def _of_item(self, kind: str, item: OutputItem, **fields: Any) -> Event:
        place: dict[str, Any] = {"item_id": item.id, "output_index": item.index}
        if item.kind != "function_call":
            place["content_index"] = 0
        return self._event(kind, **place, **fields)

    def _event(self, kind: str, **fields: Any) -> Event:
        number = self._number
        self._number += 1
        return kind, {"type": kind, "sequence_number": number, **fields}


def _part(item: OutputItem, *, empty: bool = False) -> Mapping[str, Any]:
    text = "" if empty else item.text
    if item.kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    logprobs = [] if empty else item.logprobs
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
