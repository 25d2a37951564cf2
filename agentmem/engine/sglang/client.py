"""Speaks to SGLang's native `/generate`: token ids in, token ids and log-probabilities out."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import httpx2

from agentmem.engine.base import (
    Alternatives,
    CachedTokens,
    Constraint,
    GenerateChunk,
    GenerateRequest,
    Sampling,
)
from agentmem.engine.output import OutputParser, OutputSpec
from agentmem.engine.sglang.parsing.client import ParsingClient
from agentmem.errors import EngineFailed, InvalidRequest

_CONNECT_SECONDS = 5.0
_CONTROL_SECONDS = 10.0
_CONNECTIONS_MAX = 256
# Required by /open_session, and only used for streaming sessions.
_SESSION_CAPACITY = 1
# What a grammar forbids has about -3.4e38; this is what the OpenAI API says for "hardly ever".
_LOGPROB_MIN = -9999.0
# How SGLang begins its message when a schema or a grammar cannot be compiled.
_BAD_GRAMMAR = "Failed to compile"


class SglangEngine:
    """`engine.base.Engine` over HTTP. One per worker and gateway; safe for concurrent turns.

    `parsing` reaches the worker's parsing server; without one, replies are only text.
    """

    def __init__(
        self, url: str, api_key: str | None = None, *, parsing: ParsingClient | None = None
    ) -> None:
        self._parsing = parsing or ParsingClient("")
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx2.AsyncClient(
            base_url=url,
            headers=headers,
            timeout=httpx2.Timeout(None, connect=_CONNECT_SECONDS),
            limits=httpx2.Limits(max_connections=_CONNECTIONS_MAX),
            # The worker is on this host or named by its address: no proxy is meant.
            trust_env=False,
        )

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateChunk]:
        """Streams the reply; closing the iterator early aborts the request in SGLang.

        Raises EngineFailed when the worker dies or errs, InvalidRequest when it refuses the input.
        """
        finished = False
        try:
            async for chunk in self._stream(request):
                finished = chunk.finish_reason is not None
                yield chunk
        except httpx2.HTTPError as error:
            finished = True  # There is nobody left to tell.
            raise EngineFailed(f"The worker went away mid-turn: {error!r}") from error
        finally:
            if not finished:
                await self.abort(request.request_id)

    async def _stream(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        body = _generate_body(request)
        async with self._http.stream("POST", "/generate", json=body) as response:
            if response.status_code != httpx2.codes.OK:
                detail = (await response.aread()).decode(errors="replace")[:500]
                if response.status_code == httpx2.codes.BAD_REQUEST:
                    raise InvalidRequest(f"The engine refused the request: {detail}")
                raise EngineFailed(f"The engine answered {response.status_code}: {detail}")
            last: GenerateChunk | None = None
            async for line in response.aiter_lines():
                if not line.startswith("data:"):
                    continue
                payload = line[5:].strip()
                if payload == "[DONE]":
                    break
                last = _chunk(json.loads(payload), logprobs=request.logprobs)
                yield last
            if last is None or last.finish_reason is None:
                raise EngineFailed("The worker ended the stream in the middle of the turn")

    async def open_parser(self, spec: OutputSpec) -> OutputParser:
        """See `Engine.open_parser`; without a round trip where there can be only text."""
        return await self._parsing.open(spec)

    async def tool_constraint(self, spec: OutputSpec) -> Constraint | None:
        """See `Engine.tool_constraint`."""
        return await self._parsing.constraint(spec)

    async def schema_constraint(self, spec: OutputSpec, schema: str) -> Constraint:
        """See `Engine.schema_constraint`."""
        return Constraint("json_schema", schema, await self._parsing.thinks(spec))

    async def abort(self, request_id: str) -> None:
        """Ends a running request. A worker that cannot be reached has nothing left to abort."""
        try:
            await self._post("/abort_request", {"rid": request_id, "abort_all": False})
        except EngineFailed:
            return

    async def open_session(self, session_id: str) -> None:
        """Opens a session in SGLang's radix cache; one that is open already stays so."""
        await self._post(
            "/open_session",
            {"session_id": session_id, "capacity_of_str_len": _SESSION_CAPACITY},
            ok=(httpx2.codes.OK, httpx2.codes.BAD_REQUEST),
        )

    async def close_session(self, session_id: str) -> None:
        """Dereferences the session's pages in HBM."""
        await self._post("/close_session", {"session_id": session_id})

    async def flush(self) -> bool:
        """Empties HBM and host pool. False while SGLang refuses because something is in flight."""
        response = await self._request("/flush_cache", {})
        return response.status_code == httpx2.codes.OK

    async def running_requests(self) -> int:
        """Requests that SGLang runs or queues."""
        try:
            response = await self._http.get("/v1/loads", timeout=_CONTROL_SECONDS)
            response.raise_for_status()
        except httpx2.HTTPError as error:
            raise EngineFailed(f"The worker did not tell its load: {error!r}") from error
        loads = response.json()["loads"]
        return sum(int(load["num_running_reqs"]) + int(load["num_waiting_reqs"]) for load in loads)

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def _post(
        self, path: str, body: dict[str, Any], *, ok: tuple[int, ...] = (httpx2.codes.OK,)
    ) -> None:
        response = await self._request(path, body)
        if response.status_code not in ok:
            raise EngineFailed(f"{path} answered {response.status_code}: {response.text[:500]}")

    async def _request(self, path: str, body: dict[str, Any]) -> httpx2.Response:
        try:
            return await self._http.post(path, json=body, timeout=_CONTROL_SECONDS)
        except httpx2.HTTPError as error:
            raise EngineFailed(f"The worker did not answer {path}: {error!r}") from error


def _generate_body(request: GenerateRequest) -> dict[str, Any]:
    if not request.salt:
        raise ValueError("the salt must not be empty: SGLang treats an empty salt as none")
    body: dict[str, Any] = {
        "rid": request.request_id,
        "input_ids": list(request.token_ids),
        "sampling_params": _sampling_params(request.sampling),
        "stream": True,
        "cache_salt": request.salt,
        "return_cached_tokens_details": True,
        # Never `logprob_start_len` >= 0: it would cap the cache hit there.
        "return_logprob": request.logprobs,
    }
    if request.logprobs and request.top_logprobs:
        body["top_logprobs_num"] = request.top_logprobs
    constraint = request.sampling.constraint
    if constraint is not None and constraint.after_thinking:
        body["require_reasoning"] = True
    if request.session_id is not None:
        body["session_id"] = request.session_id
    return body


def _sampling_params(sampling: Sampling) -> dict[str, Any]:
    params: dict[str, Any] = {
        "max_new_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "ignore_eos": sampling.ignore_eos,
        # Always one: where the caller sets none, replies are to differ (see `seeding`).
        "sampling_seed": secrets.randbits(63) if sampling.seed is None else sampling.seed,
    }
    if sampling.frequency_penalty:
        params["frequency_penalty"] = sampling.frequency_penalty
    if sampling.presence_penalty:
        params["presence_penalty"] = sampling.presence_penalty
    if sampling.logit_bias:
        params["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if sampling.constraint is not None:
        params[sampling.constraint.kind] = sampling.constraint.value
    if sampling.stop:
        params["stop"] = list(sampling.stop)
    if sampling.stop_token_ids:
        params["stop_token_ids"] = list(sampling.stop_token_ids)
    return params


def _chunk(event: dict[str, Any], *, logprobs: bool) -> GenerateChunk:
    if "error" in event:
        raise EngineFailed(f"The engine failed: {event['error']}")
    meta = event["meta_info"]
    reason = meta.get("finish_reason")
    if reason is not None and reason["type"] == "abort":
        # An abort that nobody asked for: a failed or refused request.
        message = str(reason.get("message", "no reason"))
        if message.startswith(_BAD_GRAMMAR):
            raise InvalidRequest(f"The schema cannot be followed: {message}")
        raise EngineFailed(f"The engine aborted the request: {message}")
    token_ids = tuple(event.get("output_ids") or ())
    values: tuple[float, ...] = ()
    if logprobs:
        pairs = (meta.get("output_token_logprobs") or [])[-len(token_ids) :] if token_ids else []
        values = tuple(_logprob(pair[0]) for pair in pairs)
    return GenerateChunk(
        token_ids=token_ids,
        logprobs=values,
        finish_reason=None if reason is None else str(reason["type"]),
        prompt_tokens=int(meta["prompt_tokens"]),
        cached=None if reason is None else _cached(meta),
        top_logprobs=_alternatives(meta, len(token_ids)) if logprobs else (),
    )


def _alternatives(meta: dict[str, Any], count: int) -> tuple[Alternatives, ...]:
    """The last `count` positions' likeliest ids; () where nobody asked for them."""
    positions = (meta.get("output_top_logprobs") or [])[-count:] if count else []
    return tuple(
        tuple(
            (int(row[1]), float(row[0]))
            for row in position or ()
            if _logprob(row[0]) > _LOGPROB_MIN
        )
        for position in positions
    )


def _logprob(value: float | None) -> float:
    """A log-probability that JSON can say; null, NaN and -inf stand for the impossible."""
    return _LOGPROB_MIN if value is None or not value > _LOGPROB_MIN else float(value)


def _cached(meta: dict[str, Any]) -> CachedTokens:
    # The details are null when nothing was cached.
    details = meta.get("cached_tokens_details") or {}
    return CachedTokens(
        device=int(details.get("device") or 0),
        host=int(details.get("host") or 0),
        storage=int(details.get("storage") or 0),
    )
