"""Conversations and their items through the openai client, newest and 1.x."""

from __future__ import annotations

from typing import Any

import openai
import pytest
import support


def messages(*texts: str) -> Any:
    return [{"type": "message", "role": "user", "content": text} for text in texts]


def check_the_life_of_one(client: openai.OpenAI) -> None:
    made = client.conversations.create(metadata={"topic": "demo"}, items=messages("Hello."))
    assert made.id.startswith("conv_")
    assert client.conversations.retrieve(made.id).metadata == {"topic": "demo"}
    changed = client.conversations.update(made.id, metadata={"topic": "other"})
    assert changed.metadata == {"topic": "other"}
    assert client.conversations.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.conversations.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        client.conversations.items.list(made.id)


def check_items(client: openai.OpenAI) -> None:
    made = client.conversations.create()
    for start in range(0, 30, 15):
        texts = [f"Message {number}." for number in range(start, start + 15)]
        added = client.conversations.items.create(made.id, items=messages(*texts))
        assert [item.content[0].text for item in added.data] == texts
    listed = list(client.conversations.items.list(made.id, order="asc", limit=7))
    texts = [item.content[0].text for item in listed]
    assert texts == [f"Message {number}." for number in range(30)]
    assert len({item.id for item in listed}) == 30
    newest = client.conversations.items.list(made.id, limit=1).data[0]
    assert newest.id == listed[-1].id
    found = client.conversations.items.retrieve(newest.id or "", conversation_id=made.id)
    assert found.id == newest.id
    after = client.conversations.items.delete(newest.id or "", conversation_id=made.id)
    assert after.id == made.id
    with pytest.raises(openai.NotFoundError):
        client.conversations.items.retrieve(newest.id or "", conversation_id=made.id)
    assert len(list(client.conversations.items.list(made.id, limit=100))) == 29


def check_too_many_items_at_once(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.conversations.create(items=messages(*["x"] * 21))
    assert "20" in caught.value.message


def check_responses_in_a_conversation(client: openai.OpenAI, model: str) -> None:
    made = client.conversations.create(items=messages(support.essay(200)))
    continuity = support.Continuity()
    for turn in range(6):
        response = client.responses.create(
            model=model,
            conversation=made.id,
            input=f"Question {turn}: {support.essay(10)}",
            max_output_tokens=20,
        )
        assert response.conversation is not None
        assert response.conversation.id == made.id
        continuity.turn(support.response_usage(response.usage))
    listed = list(client.conversations.items.list(made.id, order="asc", limit=100))
    roles = [item.role for item in listed]
    assert roles == ["user", *["user", "assistant"] * 6]


def check_items_added_between_responses(client: openai.OpenAI, model: str) -> None:
    made = client.conversations.create(items=messages(support.essay(100)))
    first = client.responses.create(model=model, conversation=made.id, input=support.reply("One."))
    client.conversations.items.create(made.id, items=messages("Beside.", support.essay(20)))
    second = client.responses.create(model=model, conversation=made.id, input=support.reply("Two."))
    continuity = support.Continuity()
    continuity.turn(support.response_usage(first.usage))
    continuity.turn(support.response_usage(second.usage))
    listed = list(client.conversations.items.list(made.id, order="asc", limit=100))
    assert len(listed) == 1 + 2 + 2 + 2


def check_a_deleted_conversation_cannot_go_on(client: openai.OpenAI, model: str) -> None:
    made = client.conversations.create()
    response = client.responses.create(
        model=model, conversation=made.id, input=support.reply("Here.")
    )
    client.conversations.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model=model, conversation=made.id, input="On.")
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)
