"""openai-agents on agentmem: the client that it uses gets another base URL.

Run it with AGENTMEM_API_KEY set (and AGENTMEM_URL, where it is not http://127.0.0.1:8700).
"""

from __future__ import annotations

import asyncio
import os

from agents import (
    Agent,
    ModelSettings,
    OpenAIConversationsSession,
    Runner,
    function_tool,
    set_default_openai_client,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

URL = os.environ.get("AGENTMEM_URL", "http://127.0.0.1:8700")
client = AsyncOpenAI(base_url=f"{URL}/v1", api_key=os.environ["AGENTMEM_API_KEY"])
set_default_openai_client(client)
set_tracing_disabled(True)  # traces would go to OpenAI


@function_tool
def shelf_of(title: str) -> str:
    """The shelf that a book stands on."""
    return f"{title} stands on shelf 12."


librarian = Agent(
    name="Librarian",
    instructions="You are a librarian. You answer in one sentence. " * 10,
    model="gpt-4.1",  # an alias of the default model
    model_settings=ModelSettings(max_tokens=1_000),  # a reply that is cut counts as an error
    tools=[shelf_of],
)


async def main() -> None:
    """A session whose items lie here, and a chain that names the response it goes on from."""
    session = OpenAIConversationsSession(openai_client=client)
    for question in ("Where is Faust?", "And what is it about?"):
        result = await Runner.run(librarian, question, session=session)
        report("session", result)
    await session.clear_session()  # text, log and KV are gone

    previous = None
    for question in ("Where is Faust?", "And what is it about?"):
        result = await Runner.run(librarian, question, previous_response_id=previous)
        previous = result.last_response_id
        report("previous_response_id", result)


def report(how: str, result: object) -> None:
    """Tokens of the last request of a run."""
    usage = result.raw_responses[-1].usage
    cached = usage.input_tokens_details.cached_tokens
    print(f"{how}: {usage.input_tokens} tokens, {cached} from the cache")


asyncio.run(main())
