"""Calls and schemas on a real, if small, model: SmolLM2, whose own template knows no tools."""

from __future__ import annotations

import json
import os
import secrets
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from agentmem.catalog.records import Worker
from agentmem.demo.log import the_worker
from agentmem.demo.system import System
from agentmem.engine.base import Constraint, GenerateChunk, GenerateRequest, Sampling
from agentmem.engine.output import OutputSpec, Piece, TextPiece, ToolCallPiece, ToolChoice
from agentmem.engine.sglang.client import SglangEngine
from agentmem.engine.sglang.model.smollm2 import ensure_smollm2
from agentmem.engine.sglang.parsing.client import ParsingClient
from agentmem.errors import InvalidRequest
from agentmem.sessions.chat import Chat, TextStream
from agentmem.sessions.messages import Framing, Message

pytestmark = pytest.mark.sglang

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def tool(name: str, description: str, **properties: Any) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": sorted(properties),
        "additionalProperties": False,
    }
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


CITY, NUMBER = {"type": "string", "maxLength": 20}, {"type": "integer"}
TOOLS = (
    tool("get_weather", "The weather of a city", city=CITY, unit={"enum": ["c", "f"]}),
    tool("add", "Adds two numbers", a=NUMBER, b=NUMBER),
)
QUESTION: list[Message] = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture(scope="module")
def smol(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    # Where `make demo` keeps it: the conversion takes half a minute.
    model = ensure_smollm2(Path(__file__).parents[3] / ".agentmem" / "models", print)
    system = System.below(tmp_path_factory.mktemp("smol"), model, print)
    try:
        system.start()
        yield system
    finally:
        system.stop()


@pytest.fixture(scope="module")
def worker(smol: System) -> Worker:
    return the_worker(smol.settings)


@pytest.fixture
async def engine(worker: Worker) -> AsyncIterator[SglangEngine]:
    assert (worker.tool_parser, worker.reasoning_parser) == ("hermes", "")
    made = SglangEngine(worker.url, parsing=ParsingClient.of(worker))
    yield made
    await made.aclose()


@pytest.fixture(scope="module")
def chat(worker: Worker) -> Chat:
    return Chat.load(Path(worker.model_path))


@dataclass
class Answer:
    pieces: list[Piece] = field(default_factory=list)
    chunks: list[GenerateChunk] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        return [token for chunk in self.chunks for token in chunk.token_ids]

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces if isinstance(piece, TextPiece))

    def calls(self) -> list[tuple[str, Any]]:
        found = [piece for piece in self.pieces if isinstance(piece, ToolCallPiece)]
        names = {piece.index: piece.name for piece in found if piece.name}
        return [
            (
                str(name),
                json.loads("".join(piece.arguments for piece in found if piece.index == index)),
            )
            for index, name in names.items()
        ]


async def ask(
    engine: SglangEngine,
    ids: Sequence[int],
    chat: Chat,
    spec: OutputSpec,
    constraint: Constraint | None = None,
    **sampling: Any,
) -> Answer:
    constraint = constraint or await engine.tool_constraint(spec)
    parser = await engine.open_parser(spec)
    stream = TextStream(chat, special=parser.special_tokens)
    options = {"max_tokens": 120, **sampling}
    request = GenerateRequest(
        secrets.token_hex(8),
        list(ids),
        Sampling(constraint=constraint, **options),
        "salt",
        logprobs=True,
        top_logprobs=3,
    )
    answer = Answer()
    try:
        async for chunk in engine.generate(request):
            answer.chunks.append(chunk)
            answer.pieces += await parser.push(stream.push(chunk.token_ids))
        answer.pieces += await parser.push(stream.finish())
        answer.pieces += await parser.finish()
    finally:
        await parser.aclose()
    return answer


def prompt(chat: Chat, messages: Sequence[Message], tools: Sequence[Any] = TOOLS) -> list[int]:
    return chat.encode_now(chat.render(messages, now=NOW, framing=Framing(tools=tuple(tools))))


async def test_a_demanded_call_is_one_of_a_tool_there_is(engine: SglangEngine, chat: Chat) -> None:
    spec = OutputSpec(tools=TOOLS, tool_choice=ToolChoice("required"), parallel_tool_calls=False)
    ids = prompt(chat, QUESTION)
    answer = await ask(engine, ids, chat, spec)
    [(name, arguments)] = answer.calls()
    assert name == "get_weather"
    assert set(arguments) == {"city", "unit"}
    assert answer.text == ""
    assert answer.chunks[-1].finish_reason == "stop"
    # The call is in the log as sampled; the next turn goes on from there.
    written = {"name": name, "arguments": json.dumps(arguments)}
    rest = prompt(
        chat,
        [
            *QUESTION,
            {"role": "assistant", "content": None, "tool_calls": [{"function": written}]},
            {"role": "tool", "content": "sunny, 21 degrees"},
        ],
    )
    assert rest[: len(ids)] == ids
    again = await ask(engine, rest, chat, OutputSpec(tools=TOOLS), max_tokens=12)
    assert again.chunks[-1].cached is not None
    assert again.chunks[-1].cached.total >= len(ids) // 64 * 64


async def test_a_named_call_and_the_same_turn_from_stored_pages(
    engine: SglangEngine, chat: Chat
) -> None:
    choice = ToolChoice("named", "add")
    spec = OutputSpec(tools=TOOLS, tool_choice=choice, parallel_tool_calls=False)
    ids = prompt(chat, [{"role": "user", "content": "What is 2 + 3?"}])
    first = await ask(engine, ids, chat, spec)
    [(name, arguments)] = first.calls()
    assert name == "add"
    assert all(isinstance(arguments[key], int) for key in ("a", "b"))
    while not await engine.flush():
        pass
    again = await ask(engine, ids, chat, spec)
    assert again.chunks[-1].cached is not None
    assert again.chunks[-1].cached.storage > 0
    assert again.ids == first.ids


async def test_a_reply_that_matches_a_schema(engine: SglangEngine, chat: Chat) -> None:
    schema = {
        "type": "object",
        "properties": {"city": CITY, "people": NUMBER},
        "required": ["city", "people"],
        "additionalProperties": False,
    }
    constraint = Constraint("json_schema", json.dumps(schema))
    answer = await ask(engine, prompt(chat, QUESTION, ()), chat, OutputSpec(), constraint)
    assert set(json.loads(answer.text)) == {"city", "people"}
    # What a grammar forbids is no alternative, and JSON could not say its log-probability.
    rows = [row for chunk in answer.chunks for top in chunk.top_logprobs for row in top]
    assert len(rows) >= len(answer.ids)
    assert all(-9999 < value <= 0 for _, value in rows)


@pytest.mark.parametrize(
    ("kind", "value"), [("regex", "(yes|no)"), ("ebnf", 'root ::= "yes" | "no"')]
)
async def test_other_grammars(engine: SglangEngine, chat: Chat, kind: Any, value: str) -> None:
    ids = prompt(chat, [{"role": "user", "content": "Is it so?"}], ())
    answer = await ask(engine, ids, chat, OutputSpec(), Constraint(kind, value))
    assert answer.text in ("yes", "no")


async def test_a_schema_that_is_none_is_refused_and_harms_nobody(
    engine: SglangEngine, chat: Chat
) -> None:
    bad = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=x)y("}}}
    ids = prompt(chat, QUESTION, ())
    constraint = Constraint("json_schema", json.dumps(bad))
    for _ in range(2):  # compiled, then remembered
        with pytest.raises(InvalidRequest, match="cannot be followed"):
            await ask(engine, ids, chat, OutputSpec(), constraint)
    assert (await ask(engine, ids, chat, OutputSpec(), max_tokens=4)).ids


async def test_biases_and_penalties_reach_the_sampler(engine: SglangEngine, chat: Chat) -> None:
    ids = prompt(chat, [{"role": "user", "content": "Say something."}], ())
    one, other = (chat.encode_now(word)[0] for word in (" banana", " apple"))
    bias = {"logit_bias": {one: 100.0, other: 99.0}, "max_tokens": 4, "ignore_eos": True}
    assert (await ask(engine, ids, chat, OutputSpec(), **bias)).ids == [one] * 4
    penalized = await ask(engine, ids, chat, OutputSpec(), **bias, frequency_penalty=2.0)
    assert set(penalized.ids) == {one, other}


async def test_the_worker_starts_its_parsing_server_again(
    smol: System, engine: SglangEngine
) -> None:
    def is_parsing(pid: int) -> bool:
        return any("parsing.server" in part for part in psutil.Process(pid).cmdline())

    [first] = filter(is_parsing, smol.pids()["worker"])
    os.kill(first, signal.SIGKILL)
    parser = await engine.open_parser(OutputSpec(tools=TOOLS))
    assert await parser.push("text") == [TextPiece("text")]
    await parser.aclose()
    [again] = filter(is_parsing, smol.pids()["worker"])
    assert again != first
