"""Responses through the openai client, newest and 1.x."""

from __future__ import annotations

import json
from typing import Any

import openai
import pydantic
import pytest
import support

NEWER = pytest.mark.skipif(openai.__version__.startswith("1."), reason="not in 1.x")


def check_a_response_and_reading_it_back(client: openai.OpenAI, model: str) -> None:
    made = client.responses.create(
        model=model, input=support.reply("Grüße, 世界!"), metadata={"topic": "greeting"}
    )
    assert made.output_text == "Grüße, 世界!"
    assert made.status == "completed"
    assert made.id.startswith("resp_")
    found = client.responses.retrieve(made.id)
    assert found.output_text == made.output_text
    assert found.metadata == {"topic": "greeting"}
    assert found.model_dump()["output"] == made.model_dump()["output"]
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def check_store_false_keeps_nothing(client: openai.OpenAI, model: str) -> None:
    made = client.responses.create(model=model, input=support.reply("Gone."), store=False)
    assert made.model_dump()["store"] is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=model, input="Go on.", previous_response_id=made.id)
    assert caught.value.code == "previous_response_not_found"


def check_a_chain(client: openai.OpenAI, model: str) -> None:
    continuity = support.Continuity()
    previous = None
    for turn in range(6):
        text = support.essay(200) if turn == 0 else f"And {turn}? {support.essay(10)}"
        extra: Any = {} if previous is None else {"previous_response_id": previous}
        made = client.responses.create(model=model, input=text, max_output_tokens=20, **extra)
        continuity.turn(support.response_usage(made.usage))
        assert made.previous_response_id == previous
        previous = made.id


def check_two_answers_to_one_response(client: openai.OpenAI, model: str) -> None:
    """A chain may be taken up again at any of its responses: it forks."""
    first = client.responses.create(model=model, input=support.essay(200), max_output_tokens=10)
    for number in range(2):
        made = client.responses.create(
            model=model,
            input=support.reply(f"Branch {number}."),
            previous_response_id=first.id,
        )
        assert made.output_text == f"Branch {number}."
        continuity = support.Continuity()
        continuity.turn(support.response_usage(first.usage))
        continuity.turn(support.response_usage(made.usage))


def check_instructions_are_not_inherited(client: openai.OpenAI, model: str) -> None:
    first = client.responses.create(
        model=model, input=support.reply("One."), instructions="Be brief. " + support.essay(50)
    )
    second = client.responses.create(
        model=model, input=support.reply("Two."), previous_response_id=first.id
    )
    assert second.instructions is None
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.input_tokens < first.usage.input_tokens + 30


def check_incomplete(client: openai.OpenAI, model: str) -> None:
    made = client.responses.create(
        model=model,
        input=support.essay(5),
        max_output_tokens=16,
        extra_body={"ignore_eos": True},
    )
    assert made.status == "incomplete"
    assert made.incomplete_details is not None
    assert made.incomplete_details.reason == "max_output_tokens"


def check_input_items_page_by_page(client: openai.OpenAI, model: str) -> None:
    items: Any = [{"role": "user", "content": f"Message {number}."} for number in range(7)]
    made = client.responses.create(model=model, input=items, max_output_tokens=5)
    listed = list(client.responses.input_items.list(made.id, limit=2, order="asc"))
    texts = [item.content[0].text for item in listed]
    assert texts == [f"Message {number}." for number in range(7)]
    newest = client.responses.input_items.list(made.id, limit=1)
    assert newest.data[0].content[0].text == "Message 6."
    assert newest.has_next_page()


def check_a_round_trip_of_tools(client: openai.OpenAI, model: str) -> None:
    tools: Any = [support.RESPONSES_TOOL]
    asked = client.responses.create(
        model=model,
        instructions=support.essay(150),
        input=support.call("get_weather", '{"city": "Paris"}'),
        tools=tools,
    )
    (call,) = [item for item in asked.output if item.type == "function_call"]
    assert json.loads(call.arguments) == {"city": "Paris"}
    answered = client.responses.create(
        model=model,
        instructions=asked.instructions,
        previous_response_id=asked.id,
        tools=tools,
        input=[
            {
                "type": "function_call_output",
                "call_id": call.call_id,
                "output": support.reply("21 degrees."),
            }
        ],
    )
    assert answered.output_text == "21 degrees."
    continuity = support.Continuity()
    continuity.turn(support.response_usage(asked.usage))
    continuity.turn(support.response_usage(answered.usage))


def check_tools_with_the_history_resent(client: openai.OpenAI, model: str) -> None:
    """As most agents do it: `response.output` is appended to the input and all is sent again."""
    tools: Any = [support.RESPONSES_TOOL]
    items: Any = [
        {"role": "system", "content": support.essay(150)},
        {"role": "user", "content": support.call("get_weather", '{"city": "Rome"}')},
    ]
    continuity = support.Continuity()
    asked = client.responses.create(model=model, input=items, tools=tools)
    continuity.turn(support.response_usage(asked.usage))
    items += [item.model_dump(exclude_none=True) for item in asked.output]
    (call,) = [item for item in asked.output if item.type == "function_call"]
    items.append(
        {"type": "function_call_output", "call_id": call.call_id, "output": support.reply("Hot.")}
    )
    answered = client.responses.create(model=model, input=items, tools=tools)
    assert answered.output_text == "Hot."
    continuity.turn(support.response_usage(answered.usage))
    items += [item.model_dump(exclude_none=True) for item in answered.output]
    items.append({"role": "user", "content": "Thank you."})
    last = client.responses.create(model=model, input=items, tools=tools, max_output_tokens=10)
    continuity.turn(support.response_usage(last.usage))


class City(pydantic.BaseModel):
    name: str
    inhabitants: int


def check_parse(client: openai.OpenAI, model: str) -> None:
    made = client.responses.parse(model=model, input="Describe a city.", text_format=City)
    assert isinstance(made.output_parsed, City)


def check_logprobs(client: openai.OpenAI, model: str) -> None:
    made = client.responses.create(
        model=model,
        input=support.reply("Sure."),
        include=["message.output_text.logprobs"],
        top_logprobs=2,
    )
    text: Any = made.output[-1].content[0]
    assert b"".join(bytes(one.bytes) for one in text.logprobs).decode().startswith("Sure.")
    assert len(text.logprobs[0].top_logprobs) == 2


def check_reasoning(client: openai.OpenAI, model: str) -> None:
    made = client.responses.create(
        model=model,
        input="[[think: Let me see.]]" + support.reply("Seen."),
        include=["reasoning.encrypted_content"],
    )
    assert made.output_text == "Seen."
    assert [item.type for item in made.output] == ["reasoning", "message"]
    again = client.responses.create(
        model=model, input=support.reply("On."), previous_response_id=made.id
    )
    assert again.output_text == "On."


def check_cancel(client: openai.OpenAI, model: str) -> None:
    """What is over cannot be cancelled, and is not changed by the attempt."""
    made = client.responses.create(model=model, input=support.reply("Done."))
    with pytest.raises(openai.BadRequestError):
        client.responses.cancel(made.id)
    assert client.responses.retrieve(made.id).status == "completed"


def check_raw_response(client: openai.OpenAI, model: str) -> None:
    raw = client.responses.with_raw_response.create(model=model, input=support.reply("Hi."))
    assert raw.headers["x-request-id"].startswith("req_")
    assert raw.parse().output_text == "Hi."


@NEWER
def check_input_tokens(client: openai.OpenAI, model: str) -> None:
    text = support.essay(100)
    counted = client.responses.input_tokens.count(model=model, input=text)
    made = client.responses.create(model=model, input=text, max_output_tokens=1)
    assert made.usage is not None
    assert counted.input_tokens == made.usage.input_tokens
    after = client.responses.input_tokens.count(
        model=model, input="More.", previous_response_id=made.id
    )
    assert after.input_tokens > counted.input_tokens


@NEWER
def check_compact(client: openai.OpenAI, model: str) -> None:
    first = client.responses.create(model=model, input=support.essay(300), max_output_tokens=50)
    compacted = client.responses.compact(model=model, previous_response_id=first.id)
    assert compacted.output[-1].type == "compaction"
    items: Any = [item.model_dump(exclude_none=True, warnings=False) for item in compacted.output]
    made = client.responses.create(
        model=model,
        input=[*items, {"role": "user", "content": support.reply("Going on.")}],
    )
    assert made.output_text == "Going on."
    # The old prefix is still there.
    restored = client.responses.create(
        model=model, input=support.reply("Restored."), previous_response_id=first.id
    )
    assert restored.output_text == "Restored."


@NEWER
def check_a_compaction_that_was_tampered_with(client: openai.OpenAI, model: str) -> None:
    compacted = client.responses.compact(model=model, input=support.essay(50))
    item: Any = compacted.output[-1].model_dump(exclude_none=True)
    middle = len(item["encrypted_content"]) // 2
    swapped = "A" if item["encrypted_content"][middle] != "A" else "B"
    content = item["encrypted_content"]
    item["encrypted_content"] = content[:middle] + swapped + content[middle + 1 :]
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model=model, input=[item, {"role": "user", "content": "On."}])
