"""Streams of Responses: events, taking one up again, reading at once what was completed."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
import support
import wire


def check_events(client: openai.OpenAI, model: str) -> None:
    """Their order and numbers are checked for every stream: see conformance.py."""
    text = "One, two, three."
    events = list(client.responses.create(model=model, input=support.reply(text), stream=True))
    deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
    assert "".join(deltas) == text
    assert len(deltas) > 1, "it streams"
    done: Any = events[-1]
    assert done.type == "response.completed"
    assert done.response.output_text == text
    kinds = [event.type for event in events]
    assert kinds[:3] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]


def check_the_helper_that_accumulates(client: openai.OpenAI, model: str) -> None:
    prompt = support.call("get_weather", '{"city": "Oslo"}')
    tools: Any = [support.RESPONSES_TOOL]
    with client.responses.stream(model=model, input=prompt, tools=tools) as stream:
        for _event in stream:
            pass
        final = stream.get_final_response()
    (call,) = [item for item in final.output if item.type == "function_call"]
    assert json.loads(call.arguments) == {"city": "Oslo"}


def check_read_your_write(client: openai.OpenAI, model: str) -> None:
    """The instant `response.completed` is sent, the next turn can build on it."""
    previous = None
    for turn in range(5):
        extra: Any = {} if previous is None else {"previous_response_id": previous}
        stream = client.responses.create(
            model=model, input=support.reply(f"Turn {turn}."), stream=True, **extra
        )
        for event in stream:
            if event.type == "response.completed":
                assert client.responses.retrieve(event.response.id).status == "completed"
                previous = event.response.id
                break
        stream.close()
    listed = list(client.responses.input_items.list(previous or "", limit=100, order="asc"))
    assert len(listed) >= 5


def check_a_stream_taken_up_again(client: openai.OpenAI, model: str, exchanges: wire.Wire) -> None:
    stream = client.responses.create(
        model=model,
        input=support.reply("A text that is long enough for a handful of events."),
        stream=True,
    )
    events = list(stream)
    response_id = events[0].response.id
    whole = exchanges.exchanges[-1].events()
    for after in (0, 3, len(events) - 2):
        rest = list(client.responses.retrieve(response_id, stream=True, starting_after=after))
        assert [e.sequence_number for e in rest] == list(range(after + 1, len(events)))
        assert exchanges.exchanges[-1].events() == whole[after + 1 :]


def check_a_stream_taken_up_while_it_runs(client: openai.OpenAI, model: str) -> None:
    stream = client.responses.create(
        model=model,
        input=support.slow(0.005) + support.essay(10),
        stream=True,
        max_output_tokens=200,
        extra_body={"ignore_eos": True},
    )
    seen: list[Any] = []
    for event in stream:
        seen.append(event)
        if len(seen) == 20:
            break
    stream.close()
    rest = list(
        client.responses.retrieve(
            seen[0].response.id, stream=True, starting_after=seen[-1].sequence_number
        )
    )
    assert rest[0].sequence_number == 20
    last: Any = rest[-1]
    assert last.type == "response.incomplete"
    deltas = [e.delta for e in (*seen, *rest) if e.type == "response.output_text.delta"]
    assert "".join(deltas) == last.response.output_text


def check_cancel_while_it_runs(client: openai.OpenAI, model: str) -> None:
    stream = client.responses.create(
        model=model,
        input=support.slow(0.01) + support.essay(10),
        stream=True,
        max_output_tokens=3_000,
        extra_body={"ignore_eos": True},
    )
    response_id = ""
    for event in stream:
        if event.type == "response.created":
            response_id = event.response.id
        if event.type == "response.output_text.delta":
            break
    cancelled = client.responses.cancel(response_id)
    assert cancelled.status == "cancelled"
    stream.close()
    assert client.responses.retrieve(response_id).status == "cancelled"
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model=model, input="On.", previous_response_id=response_id)
