"""The openai client on agentmem: only the base URL and the key are other than usual.

Run it with AGENTMEM_API_KEY set (and AGENTMEM_URL, where it is not http://127.0.0.1:8700).
"""

from __future__ import annotations

import os

from openai import OpenAI

URL = os.environ.get("AGENTMEM_URL", "http://127.0.0.1:8700")
client = OpenAI(base_url=f"{URL}/v1", api_key=os.environ["AGENTMEM_API_KEY"])
MODEL = "gpt-4.1"  # an alias of the default model; client.models.list() says what is served

RULES = "You are a librarian. You answer in one sentence, and you are never wrong. " * 10


def chat() -> None:
    """Chat Completions as always: the whole history is sent, and what is known is not computed."""
    messages = [{"role": "system", "content": RULES}]
    for question in ("Who wrote Faust?", "When?", "Is it long?"):
        messages.append({"role": "user", "content": question})
        answer = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=40)
        messages.append({"role": "assistant", "content": answer.choices[0].message.content})
        usage = answer.usage
        cached = usage.prompt_tokens_details.cached_tokens
        print(f"chat: {usage.prompt_tokens} tokens, {cached} from the cache")


def responses() -> None:
    """Responses: only what is new is sent; the id says what it goes on from."""
    previous = None
    for question in ("Who wrote Faust?", "When?", "Is it long?"):
        answer = client.responses.create(
            model=MODEL,
            instructions=RULES,
            input=question,
            previous_response_id=previous,
            max_output_tokens=40,
            prompt_cache_options={"ttl": "12h"},  # how long KV is promised to come back
        )
        previous = answer.id
        usage = answer.usage
        cached = usage.input_tokens_details.cached_tokens
        print(f"responses: {usage.input_tokens} tokens, {cached} from the cache")


def conversation() -> None:
    """Conversations: named state, streamed; delete it, and text, log and KV are gone."""
    talk = client.conversations.create(items=[{"role": "system", "content": RULES}])
    for question in ("Who wrote Faust?", "When?"):
        stream = client.responses.create(
            model=MODEL, conversation=talk.id, input=question, max_output_tokens=40, stream=True
        )
        for event in stream:
            if event.type in ("response.completed", "response.incomplete"):
                usage = event.response.usage
                cached = usage.input_tokens_details.cached_tokens
                print(f"conversation: {usage.input_tokens} tokens, {cached} from the cache")
    client.conversations.delete(talk.id)


chat()
responses()
conversation()
