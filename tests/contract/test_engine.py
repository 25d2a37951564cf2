"""What every engine does: `engine.base.Engine`. Runs on the fake; others add themselves here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import cast

import pytest

from agentmem.engine.base import Constraint, Engine, GenerateChunk, GenerateRequest, Sampling
from agentmem.engine.fake import FakeEngine
from agentmem.engine.output import OutputSpec, TextPiece, ToolChoice

PAGE_TOKENS = 4
PROMPT = list(range(10, 31))  # five pages and a token
GREEDY = Sampling(max_tokens=12, ignore_eos=True)


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    made = FakeEngine(
        vocabulary=(10, 400),
        eos_token_ids=(2,),
        page_tokens=PAGE_TOKENS,
        decode=lambda ids: " ".join(map(str, ids)),
    )
    yield made
    await made.aclose()


def request(
    token_ids: list[int] = PROMPT,
    *,
    request_id: str = "r",
    sampling: Sampling = GREEDY,
    salt: str = "salt",
    logprobs: bool = False,
) -> GenerateRequest:
    return GenerateRequest(request_id, token_ids, sampling, salt, "ses_1", logprobs)


async def run(engine: Engine, one: GenerateRequest) -> list[GenerateChunk]:
    return [chunk async for chunk in engine.generate(one)]


def ids(chunks: list[GenerateChunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids]


class TestGenerate:
    async def test_the_last_chunk_and_only_it_says_how_it_ended(self, engine: Engine) -> None:
        chunks = await run(engine, request())
        assert all(chunk.finish_reason is None for chunk in chunks[:-1])
        assert chunks[-1].finish_reason == "length"
        assert chunks[-1].cached is not None
        assert chunks[-1].prompt_tokens == len(PROMPT)
        assert len(ids(chunks)) == GREEDY.max_tokens

    async def test_streams(self, engine: Engine) -> None:
        assert len(await run(engine, request())) > 3

    async def test_greedy_is_deterministic_and_depends_on_the_whole_prefix(
        self, engine: Engine
    ) -> None:
        first = ids(await run(engine, request()))
        assert ids(await run(engine, request())) == first
        assert ids(await run(engine, request([11, *PROMPT[1:]]))) != first

    async def test_continuing_equals_going_on(self, engine: Engine) -> None:
        whole = ids(await run(engine, request()))
        rest = Sampling(max_tokens=GREEDY.max_tokens - 5, ignore_eos=True)
        assert ids(await run(engine, request(PROMPT + whole[:5], sampling=rest))) == whole[5:]

    async def test_logprobs_are_as_many_as_ids(self, engine: Engine) -> None:
        for chunk in await run(engine, request(logprobs=True)):
            assert len(chunk.logprobs) == len(chunk.token_ids)
            assert all(value <= 0 for value in chunk.logprobs)
        assert all(chunk.logprobs == () for chunk in await run(engine, request()))

    async def test_a_prefix_is_found_again_but_never_the_last_token(self, engine: Engine) -> None:
        def cached(chunks: list[GenerateChunk]) -> int:
            assert chunks[-1].cached is not None
            return chunks[-1].cached.total

        even = PROMPT[:20]
        assert cached(await run(engine, request(even))) == 0
        assert cached(await run(engine, request(even))) == 16
        assert cached(await run(engine, request(PROMPT))) == 20
        assert cached(await run(engine, request(PROMPT, salt="other"))) == 0

    async def test_no_tokens_make_the_prompts_pages(self, engine: Engine) -> None:
        chunks = await run(engine, request(PROMPT[:20], sampling=Sampling(max_tokens=0)))
        assert ids(chunks) == []
        assert chunks[-1].finish_reason == "length"
        again = await run(engine, request(PROMPT))
        assert again[-1].cached is not None
        assert again[-1].cached.total == 20

    async def test_stop_token_ids_end_it_and_are_part_of_the_reply(self, engine: Engine) -> None:
        whole = ids(await run(engine, request()))
        sampling = Sampling(max_tokens=12, ignore_eos=True, stop_token_ids=(whole[4],))
        chunks = await run(engine, request(sampling=sampling))
        assert ids(chunks) == whole[: whole.index(whole[4]) + 1]
        assert chunks[-1].finish_reason == "stop"


class TestAbort:
    async def test_closing_the_stream_ends_the_request(self, engine: Engine) -> None:
        stream = cast("AsyncGenerator[GenerateChunk, None]", engine.generate(request()))
        async with aclosing(stream):
            async for chunk in stream:
                if chunk.token_ids:
                    break
        assert len(ids(await run(engine, request()))) == GREEDY.max_tokens

    async def test_abort_ends_it_with_that_reason(self, engine: Engine) -> None:
        long = Sampling(max_tokens=100_000, ignore_eos=True)
        chunks = []
        async with asyncio.timeout(10):
            async for chunk in engine.generate(request(request_id="x", sampling=long)):
                chunks.append(chunk)
                if len(chunks) == 2:
                    await engine.abort("x")
        assert chunks[-1].finish_reason == "abort"

    async def test_unknown_ids_are_ignored(self, engine: Engine) -> None:
        await engine.abort("nobody")


class TestOutput:
    TOOLS = ({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},)

    async def test_every_reply_has_a_parser(self, engine: Engine) -> None:
        for spec in (OutputSpec(), OutputSpec(tools=self.TOOLS)):
            parser = await engine.open_parser(spec)
            pieces = [*(await parser.push("some ")), *(await parser.push("text"))]
            pieces += await parser.finish()
            await parser.aclose()
            assert "".join(p.text for p in pieces if isinstance(p, TextPiece)) == "some text"

    async def test_only_demanded_calls_are_constrained(self, engine: Engine) -> None:
        for mode, name in (("auto", None), ("none", None), ("required", None), ("named", "f")):
            spec = OutputSpec(tools=self.TOOLS, tool_choice=ToolChoice(mode, name))  # type: ignore[arg-type]
            constraint = await engine.tool_constraint(spec)
            assert (constraint is not None) == (mode in ("required", "named"))

    async def test_a_schema_is_one(self, engine: Engine) -> None:
        assert await engine.schema_constraint(OutputSpec(), "{}") == Constraint("json_schema", "{}")


async def test_sessions_open_and_close_any_number_of_times(engine: Engine) -> None:
    calls: list[Callable[[str], object]] = [engine.open_session, engine.close_session]
    for call in (calls[0], calls[0], calls[1]):
        await call("ses_1")  # type: ignore[misc]
