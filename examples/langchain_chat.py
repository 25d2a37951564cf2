"""LangChain on agentmem: ChatOpenAI with another base URL.

Run it with AGENTMEM_API_KEY set (and AGENTMEM_URL, where it is not http://127.0.0.1:8700).
"""

from __future__ import annotations

import os

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

URL = os.environ.get("AGENTMEM_URL", "http://127.0.0.1:8700")
RULES = "You are a librarian. You answer in one sentence, and you are never wrong. " * 10
QUESTIONS = ("Who wrote Faust?", "When?", "Is it long?")


def talk(how: str, chat: ChatOpenAI) -> None:
    """The same program for both APIs; LangChain decides what it sends."""
    messages = [SystemMessage(RULES)]
    for question in QUESTIONS:
        messages.append(HumanMessage(question))
        answer = chat.invoke(messages, max_tokens=40)
        messages.append(answer)
        usage = answer.usage_metadata
        cached = usage["input_token_details"]["cache_read"]
        print(f"{how}: {usage['input_tokens']} tokens, {cached} from the cache")


common = {
    "base_url": f"{URL}/v1",
    "api_key": os.environ["AGENTMEM_API_KEY"],
    "model": "gpt-4.1",  # an alias of the default model
}
# All messages are sent every time.
talk("chat", ChatOpenAI(**common))
# Only what comes after the last answer is sent.
talk("responses", ChatOpenAI(**common, use_responses_api=True, use_previous_response_id=True))
