"""openai-agents keeping a conversation, in each of the ways it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import agents
import openai
import pytest
import support

pytestmark = pytest.mark.anyio
agents.set_tracing_disabled(True)

TURNS = 4


@pytest.fixture
async def name(async_client: openai.AsyncOpenAI) -> str:
    return (await async_client.models.list()).data[0].id


def talker(model: Any) -> agents.Agent[Any]:
    return agents.Agent(
        name="Talker",
        instructions=support.essay(150),
        model=model,
    )


@pytest.fixture(params=["responses", "chat"])
def agent_model(request: Any, async_client: openai.AsyncOpenAI, name: str) -> Any:
    if request.param == "chat":
        return agents.OpenAIChatCompletionsModel(model=name, openai_client=async_client)
    return agents.OpenAIResponsesModel(model=name, openai_client=async_client)


def question(turn: int) -> str:
    """A question, and the answer to it: one that ends by itself, as this client insists on."""
    return f"Question {turn}? {support.reply(support.essay(10))}"


async def talk(agent: agents.Agent[Any], **state: Any) -> None:
    """Some turns, each of which finds the ones before it in the cache."""
    continuity = support.Continuity()
    for turn in range(TURNS):
        result = await agents.Runner.run(agent, question(turn), **state)
        for response in result.raw_responses:
            usage = response.usage
            cached = usage.input_tokens_details.cached_tokens
            continuity.turn((usage.input_tokens, cached, usage.total_tokens))
    assert continuity.turns == TURNS


async def check_sqlite_session(agent_model: Any, tmp_path: Path) -> None:
    """The client keeps the history, and sends all of it every time."""
    session = agents.SQLiteSession("talk", tmp_path / "history.db")
    await talk(talker(agent_model), session=session)
    assert len(await session.get_items()) == 2 * TURNS
    session.close()


async def check_a_list_of_inputs(agent_model: Any) -> None:
    """`result.to_input_list()`, as the client's documentation has it."""
    agent = talker(agent_model)
    continuity = support.Continuity()
    items: list[Any] = []
    for turn in range(TURNS):
        items.append({"role": "user", "content": question(turn)})
        result = await agents.Runner.run(agent, items)
        usage = result.raw_responses[0].usage
        cached = usage.input_tokens_details.cached_tokens
        continuity.turn((usage.input_tokens, cached, usage.total_tokens))
        items = result.to_input_list()


@pytest.fixture
def responses_model(async_client: openai.AsyncOpenAI, name: str) -> Any:
    return agents.OpenAIResponsesModel(model=name, openai_client=async_client)


async def check_conversations_session(
    responses_model: Any, async_client: openai.AsyncOpenAI
) -> None:
    """Items lie in a conversation here; the client reads them and sends all of them."""
    session = agents.OpenAIConversationsSession(openai_client=async_client)
    await talk(talker(responses_model), session=session)
    assert session.session_id.startswith("conv_")
    items = await session.get_items()
    assert [item["role"] for item in items] == ["user", "assistant"] * TURNS
    assert len(await session.get_items(limit=3)) == 3
    popped = await session.pop_item()
    assert popped == items[-1]
    assert await session.get_items() == items[:-1]
    await session.clear_session()
    assert await session.get_items() == []


async def check_the_session_protocol(async_client: openai.AsyncOpenAI) -> None:
    """More items than fit a request or a page, in order, without ids of their own."""
    session = agents.OpenAIConversationsSession(openai_client=async_client)
    items: Any = [{"role": "user", "content": f"Message {number}."} for number in range(45)]
    await session.add_items(items)
    kept = await session.get_items()
    texts = [item["content"][0]["text"] for item in kept]
    assert texts == [f"Message {number}." for number in range(45)]
    newest = await session.get_items(limit=2)
    assert newest == kept[-2:]


async def check_conversation_id(responses_model: Any, async_client: openai.AsyncOpenAI) -> None:
    conversation = await async_client.conversations.create()
    await talk(talker(responses_model), conversation_id=conversation.id)
    listed = [item async for item in async_client.conversations.items.list(conversation.id)]
    assert len(listed) == 2 * TURNS


async def check_previous_response_id(responses_model: Any) -> None:
    agent = talker(responses_model)
    continuity = support.Continuity()
    previous = None
    for turn in range(TURNS):
        result = await agents.Runner.run(
            agent,
            question(turn),
            previous_response_id=previous,
        )
        usage = result.raw_responses[0].usage
        cached = usage.input_tokens_details.cached_tokens
        continuity.turn((usage.input_tokens, cached, usage.total_tokens))
        previous = result.last_response_id


@agents.function_tool
def last_step() -> str:
    """The last step."""
    return support.reply("Done.")


async def check_auto_previous_response_id(responses_model: Any) -> None:
    """Within one run only what is new is sent."""
    agent = agents.Agent(
        name="Worker", instructions=support.essay(150), model=responses_model, tools=[last_step]
    )
    result = await agents.Runner.run(
        agent, support.call("last_step", "{}"), auto_previous_response_id=True
    )
    assert result.final_output == "Done."
    continuity = support.Continuity()
    for response in result.raw_responses:
        usage = response.usage
        cached = usage.input_tokens_details.cached_tokens
        continuity.turn((usage.input_tokens, cached, usage.total_tokens))
    assert continuity.turns == 2


async def check_compaction_session(
    responses_model: Any, async_client: openai.AsyncOpenAI, tmp_path: Path
) -> None:
    """The client asks for compaction once ten items have come together."""
    kept = agents.SQLiteSession("compacted", tmp_path / "history.db")
    session = agents.OpenAIResponsesCompactionSession(
        "compacted",
        kept,
        client=async_client,
        should_trigger_compaction=lambda seen: len(seen["compaction_candidate_items"]) >= 3,
    )
    agent = talker(responses_model)
    kinds: list[str] = []
    for turn in range(5):
        await agents.Runner.run(agent, question(turn), session=session)
        kinds = [str(item.get("type")) for item in await session.get_items()]
        if "compaction" in kinds:
            break
    assert "compaction" in kinds, kinds
    result = await agents.Runner.run(agent, support.reply("Going on."), session=session)
    assert result.final_output == "Going on."
    kept.close()
