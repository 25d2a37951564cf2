"""SGLang's parsers behind the fake engine: replies scripted by the prompt, token by token."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agentmem.engine.base import GenerateRequest, Sampling
from agentmem.engine.output import OutputSpec, Piece
from agentmem.sessions.chat import Chat, TextStream
from agentmem.sessions.messages import Framing
from agentmem.testing.fake_worker import FakeWorker

from .conftest import Open
from .formats import ARGUMENTS, FAMILIES, SECOND, TOOLS, joined

pytestmark = pytest.mark.sglang

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize("name", sorted(FAMILIES))
@pytest.mark.parametrize("role", ["user", "tool"])
async def test_a_scripted_reply_is_taken_apart(
    parsing: Open, model_path: Path, name: str, role: str
) -> None:
    family = FAMILIES[name]
    client = await parsing(family.tool_parser, family.reasoning_parser)
    worker = FakeWorker(model_path, parser=client.open)
    chat = Chat.load(model_path)
    thinks = family.reasoning_parser != "none"
    thought = "<think>hm 🙂</think>" if thinks else ""
    script = f"[[reply: {thought}Zürich:\n{family.calls}]]"
    messages = [{"role": role, "content": script, "tool_call_id": "call_1"}]
    prompt = chat.encode_now(chat.render(messages, now=NOW, framing=Framing(tools=TOOLS)))
    spec = OutputSpec(tools=TOOLS, opening=chat.opening())
    parser = await worker.engine.open_parser(spec)
    stream = TextStream(chat, special=parser.special_tokens)
    pieces: list[Piece] = []
    request = GenerateRequest("r", prompt, Sampling(max_tokens=2_000), "salt")
    async for chunk in worker.engine.generate(request):
        pieces += await parser.push(stream.push(chunk.token_ids))
    pieces += [*(await parser.push(stream.finish())), *(await parser.finish())]
    await parser.aclose()
    parsed = joined(pieces)
    assert parsed.text == "Zürich:"
    assert parsed.reasoning == ("hm 🙂" if thinks else "")
    calls = [(name, json.loads(arguments)) for name, arguments in parsed.calls]
    assert calls == [("get_weather", ARGUMENTS), ("get_time", SECOND)]


async def test_the_fakes_own_calls_are_hermes(parsing: Open, model_path: Path) -> None:
    client = await parsing("hermes", "qwen3")
    worker = FakeWorker(model_path, parser=client.open)
    chat = Chat.load(model_path)
    script = '[[think: a]][[reply: b]][[call: get_time {"city": "c"}]][[call: get_time {}]]'
    prompt = chat.encode_now(chat.render([{"role": "user", "content": script}], now=NOW))
    parser = await worker.engine.open_parser(OutputSpec(tools=TOOLS, opening=chat.opening()))
    stream = TextStream(chat, special=True)
    pieces: list[Piece] = []
    request = GenerateRequest("r", prompt, Sampling(max_tokens=500), "salt")
    async for chunk in worker.engine.generate(request):
        pieces += await parser.push(stream.push(chunk.token_ids))
    pieces += [*(await parser.push(stream.finish())), *(await parser.finish())]
    await parser.aclose()
    parsed = joined(pieces)
    assert (parsed.text, parsed.reasoning) == ("b", "a")
    assert parsed.calls == [("get_time", '{"city": "c"}'), ("get_time", "{}")]
