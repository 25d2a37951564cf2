"""The client against a server that answers as SGLang 0.5.20 was seen to."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pytest

from agentmem.engine.base import (
    CachedTokens,
    Constraint,
    GenerateChunk,
    GenerateRequest,
    Sampling,
)
from agentmem.engine.output import OutputSpec, PlainText, ToolChoice
from agentmem.engine.sglang.client import SglangEngine
from agentmem.errors import EngineFailed, InvalidRequest

REQUEST = GenerateRequest("r1", [1, 2, 3], Sampling(max_tokens=2), salt="s", logprobs=True)


def meta(reason: dict[str, Any] | None, details: dict[str, int] | None = None) -> dict[str, Any]:
    return {"prompt_tokens": 3, "finish_reason": reason, "cached_tokens_details": details}


def event(token: int, reason: dict[str, Any] | None = None, **details: int) -> dict[str, Any]:
    return {
        "output_ids": [token],
        "meta_info": meta(reason, details or None)
        | {"output_token_logprobs": [[-0.5, token, None]]},
    }


class Server:
    """Answers /generate with a fixed stream and records every call."""

    def __init__(self, events: list[dict[str, Any]], status: int = 200) -> None:
        self.events, self.status = events, status
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.calls.append((request.url.path, json.loads(request.content or b"{}")))
        if request.url.path != "/generate":
            return httpx2.Response(200)
        if self.status != 200:
            return httpx2.Response(self.status, text="too long")
        body = "".join(f"data: {json.dumps(item)}\n\n" for item in self.events)
        return httpx2.Response(200, text=body + "data: [DONE]\n\n")


def engine(handler: Callable[[httpx2.Request], httpx2.Response]) -> SglangEngine:
    client = SglangEngine("http://engine")
    client._http = httpx2.AsyncClient(
        base_url="http://engine", transport=httpx2.MockTransport(handler)
    )
    return client


async def collect(chunks: AsyncIterator[GenerateChunk]) -> list[GenerateChunk]:
    return [chunk async for chunk in chunks]


async def test_streams_ids_logprobs_and_where_the_prompt_came_from() -> None:
    server = Server([event(7), event(8, {"type": "length"}, device=1, host=0, storage=2)])
    chunks = await collect(engine(server).generate(REQUEST))
    assert [chunk.token_ids for chunk in chunks] == [(7,), (8,)]
    assert [chunk.logprobs for chunk in chunks] == [(-0.5,), (-0.5,)]
    assert chunks[-1].finish_reason == "length"
    assert chunks[-1].cached == CachedTokens(device=1, host=0, storage=2)
    path, body = server.calls[0]
    assert path == "/generate"
    assert body["cache_salt"] == "s"
    assert "logprob_start_len" not in body, "it would cap the cache hit"
    assert len(server.calls) == 1, "a finished request is not aborted"


async def test_details_are_null_when_nothing_was_cached() -> None:
    chunks = await collect(engine(Server([event(7, {"type": "stop"})])).generate(REQUEST))
    assert chunks[-1].cached == CachedTokens()


async def test_early_close_aborts_in_the_engine() -> None:
    server = Server([event(7), event(8), event(9, {"type": "length"})])
    stream = engine(server).generate(REQUEST)
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    assert server.calls[-1] == ("/abort_request", {"rid": "r1", "abort_all": False})


async def test_a_stream_that_just_ends_is_a_failure() -> None:
    with pytest.raises(EngineFailed, match="middle of the turn"):
        await collect(engine(Server([event(7)])).generate(REQUEST))


async def test_an_abort_that_nobody_asked_for_is_a_failure() -> None:
    server = Server([event(7, {"type": "abort", "message": "out of memory"})])
    with pytest.raises(EngineFailed, match="out of memory"):
        await collect(engine(server).generate(REQUEST))


async def test_refused_input_is_not_the_workers_failure() -> None:
    with pytest.raises(InvalidRequest, match="too long"):
        await collect(engine(Server([], status=400)).generate(REQUEST))


async def test_server_error_is_a_failure() -> None:
    with pytest.raises(EngineFailed, match="500"):
        await collect(engine(Server([], status=500)).generate(REQUEST))


async def test_connection_lost_is_a_failure() -> None:
    def drop(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("refused", request=request)

    with pytest.raises(EngineFailed, match="went away"):
        await collect(engine(drop).generate(REQUEST))


async def test_how_to_sample_is_said_in_sglangs_words() -> None:
    server = Server([event(7, {"type": "stop"})])
    sampling = Sampling(
        max_tokens=2,
        frequency_penalty=0.5,
        presence_penalty=-0.5,
        logit_bias={7: 1.5},
        constraint=Constraint("structural_tag", "{}", after_thinking=True),
    )
    request = GenerateRequest("r1", [1], sampling, "s", logprobs=True, top_logprobs=3)
    await collect(engine(server).generate(request))
    await collect(engine(server).generate(REQUEST))
    (_, body), (_, plain) = server.calls
    params = body["sampling_params"]
    assert params["frequency_penalty"] == 0.5
    assert params["presence_penalty"] == -0.5
    assert params["logit_bias"] == {"7": 1.5}
    assert params["structural_tag"] == "{}"
    assert body["require_reasoning"] is True
    assert body["top_logprobs_num"] == 3
    assert not {"require_reasoning", "top_logprobs_num"} & set(plain)
    assert not {"logit_bias", "frequency_penalty", "json_schema"} & set(plain["sampling_params"])


async def test_alternatives_without_what_a_grammar_forbids() -> None:
    last = event(7, {"type": "stop"})
    last["meta_info"] |= {
        "output_token_logprobs": [[None, 7, None]],
        "output_top_logprobs": [
            [[-0.1, 7, None], [-0.2, 8, None]],
            [[-0.5, 7, None], [-3.4e38, 9, None], [None, 5, None]],
        ],
    }
    [chunk] = await collect(engine(Server([last])).generate(REQUEST))
    assert chunk.logprobs == (-9999.0,)
    assert chunk.top_logprobs == (((7, -0.5),),), "as many positions as ids"


async def test_a_schema_that_cannot_be_compiled_is_the_callers() -> None:
    reason = {"type": "abort", "message": "Failed to compile json grammar: no lookahead"}
    with pytest.raises(InvalidRequest, match="no lookahead"):
        await collect(engine(Server([event(7, reason)])).generate(REQUEST))


async def test_without_formats_a_reply_is_text_and_nobody_is_asked() -> None:
    client = engine(Server([]))
    tools = ({"type": "function", "function": {"name": "f"}},)
    assert isinstance(await client.open_parser(OutputSpec(tools=tools)), PlainText)
    none = OutputSpec(tools=tools, tool_choice=ToolChoice("none"))
    assert await client.tool_constraint(none) is None


async def test_empty_salt_is_refused() -> None:
    request = GenerateRequest("r1", [1], Sampling(max_tokens=1), salt="")
    with pytest.raises(ValueError, match="salt"):
        await collect(engine(Server([])).generate(request))
