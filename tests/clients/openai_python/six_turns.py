"""Some turns of a conversation; what the next run needs to go on is kept in a file.

    python six_turns.py HOW TURNS FILE

HOW is `chat` (the whole history is sent, nothing else is set), `previous_response_id` or
`conversation`. Prints [prompt, cached, total] tokens of each turn as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import openai

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import support

WORDS = 900
OUTPUT_TOKENS = 24


def main(how: str, turns: int, path: Path) -> None:
    """Goes on from what `path` holds, if it is there."""
    client = openai.OpenAI(
        base_url=f"{os.environ['AGENTMEM_URL']}/v1",
        api_key=os.environ["AGENTMEM_API_KEY"],
        timeout=300,
    )
    state: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"turn": 0}
    usages = []
    for _ in range(turns):
        number = state["turn"]
        text = support.essay(WORDS) if number == 0 else f"Question {number}: {support.essay(15)}"
        usages.append({"chat": chat}.get(how, respond)(client, state, how, text))
        state["turn"] = number + 1
    path.write_text(json.dumps(state))
    print(json.dumps(usages))


def chat(client: openai.OpenAI, state: dict[str, Any], _how: str, text: str) -> Any:
    """One turn of a client that keeps the history itself."""
    messages = state.setdefault("messages", [])
    messages.append({"role": "user", "content": text})
    made = client.chat.completions.create(
        model="gpt-4.1", messages=messages, max_tokens=OUTPUT_TOKENS
    )
    messages.append({"role": "assistant", "content": made.choices[0].message.content})
    return support.chat_usage(made.usage)


def respond(client: openai.OpenAI, state: dict[str, Any], how: str, text: str) -> Any:
    """One turn of a client that names what it goes on from."""
    if how == "conversation" and "conversation" not in state:
        state["conversation"] = client.conversations.create().id
    named = {how: state[how]} if how in state else {}
    made = client.responses.create(
        model="gpt-4.1", input=text, max_output_tokens=OUTPUT_TOKENS, **named
    )
    if how == "previous_response_id":
        state[how] = made.id
    return support.response_usage(made.usage)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
