"""openai-agents on both of its model classes: tools, streaming, handoffs, structured output."""

from __future__ import annotations

from typing import Any

import agents
import openai
import pydantic
import pytest
import support

pytestmark = pytest.mark.anyio
agents.set_tracing_disabled(True)

RESPONSES, CHAT = agents.OpenAIResponsesModel, agents.OpenAIChatCompletionsModel


@agents.function_tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return support.reply(f"It is 21 degrees in {city}.")


@pytest.fixture(params=[RESPONSES, CHAT], ids=["responses", "chat"])
async def agent_model(request: Any, async_client: openai.AsyncOpenAI) -> Any:
    name = (await async_client.models.list()).data[0].id
    return request.param(model=name, openai_client=async_client)


async def check_a_run(agent_model: Any) -> None:
    agent = agents.Agent(name="Greeter", instructions="You greet.", model=agent_model)
    result = await agents.Runner.run(agent, support.reply("Hello there."))
    assert result.final_output == "Hello there."


async def check_function_tools(agent_model: Any) -> None:
    """The tool's result goes back to the model within one run: two turns of one session."""
    agent = agents.Agent(
        name="Reporter",
        instructions=support.essay(150),
        model=agent_model,
        tools=[get_weather],
    )
    result = await agents.Runner.run(agent, support.call("get_weather", '{"city": "Paris"}'))
    assert result.final_output == "It is 21 degrees in Paris."
    continuity = support.Continuity()
    for response in result.raw_responses:
        usage = response.usage
        cached = usage.input_tokens_details.cached_tokens
        continuity.turn((usage.input_tokens, cached, usage.total_tokens))
    assert continuity.turns == 2


async def check_two_tools_at_once(agent_model: Any) -> None:
    agent = agents.Agent(name="Reporter", model=agent_model, tools=[get_weather])
    prompt = support.call("get_weather", '{"city": "Oslo"}')
    result = await agents.Runner.run(
        agent, prompt + support.call("get_weather", '{"city": "Bern"}')
    )
    called = [item for item in result.new_items if item.type == "tool_call_output_item"]
    assert len(called) == 2
    assert "Bern" in result.final_output


async def check_streaming(agent_model: Any) -> None:
    agent = agents.Agent(name="Reporter", model=agent_model, tools=[get_weather])
    result = agents.Runner.run_streamed(agent, support.call("get_weather", '{"city": "Rome"}'))
    text = ""
    async for event in result.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            text += event.data.delta
    assert text == result.final_output == "It is 21 degrees in Rome."


async def check_handoffs(agent_model: Any) -> None:
    specialist = agents.Agent(
        name="Specialist", instructions="You know it all.", model=agent_model, tools=[get_weather]
    )
    triage = agents.Agent(name="Triage", model=agent_model, handoffs=[specialist])
    result = await agents.Runner.run(
        triage,
        support.call("transfer_to_specialist", "{}"),
        max_turns=3,
    )
    assert result.last_agent.name == "Specialist"


class City(pydantic.BaseModel):
    name: str
    inhabitants: int


async def check_structured_output(agent_model: Any) -> None:
    agent = agents.Agent(name="Geographer", model=agent_model, output_type=City)
    result = await agents.Runner.run(agent, "Describe a city.")
    assert isinstance(result.final_output, City)


async def check_an_unknown_model(async_client: openai.AsyncOpenAI) -> None:
    for kind in (RESPONSES, CHAT):
        model = kind(model="no-such-model", openai_client=async_client)
        agent = agents.Agent(name="Nobody", model=model)
        with pytest.raises(openai.NotFoundError):
            await agents.Runner.run(agent, "Hello.")
