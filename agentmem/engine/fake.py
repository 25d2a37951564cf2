"""A deterministic engine without torch: the next token is a hash of all tokens before it.

It behaves as SGLang does where the gateway can tell: pages are found again in "device" memory or
in a page store given from outside, a hit never covers the prompt's last token, finished requests
offer their full pages to the store, and closing the stream aborts. Tests script replies and
failures through `FakeScript` and read `calls`; tests in other processes write directives into the
prompt (`[[reply: ...]]`, `[[call: ...]]`, `[[think: ...]]`: see `fake_replies`).
"""

from __future__ import annotations

import asyncio
from array import array
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from agentmem.core import PageHash
from agentmem.engine.base import (
    CachedTokens,
    Constraint,
    GenerateChunk,
    GenerateRequest,
    Sampling,
)
from agentmem.engine.fake_replies import (
    Sampler,
    constrained_text,
    fake_tool_constraint,
    paced,
    scripted_text,
)
from agentmem.engine.output import OutputParser, OutputSpec, PlainText
from agentmem.errors import EngineFailed
from agentmem.pages.keys import namespace_seed, page_hashes

ParserFactory = Callable[[OutputSpec], Awaitable[OutputParser]]


class PageStore(Protocol):
    """Where the fake's pages go and come from: below the device, as HiCache's storage is."""

    def offer(self, hashes: Sequence[PageHash]) -> None:
        """Takes pages that were computed."""
        ...

    def load(self, hashes: Sequence[PageHash]) -> int:
        """How many pages, from the first one on without a gap, it gave back."""
        ...


@dataclass(slots=True)
class FakeScript:
    """What the next requests meet. `replies` are used up in order, one per request.

    `fail_after_tokens` makes one request fail after so many tokens (0: before the first);
    `stall` holds replies back before each token until it is set.
    """

    replies: list[tuple[int, ...]] = field(default_factory=list)
    fail_after_tokens: int | None = None
    stall: asyncio.Event | None = None


class FakeEngine:
    """Implements `engine.base.Engine`; see the module's docstring.

    `vocabulary` is the half-open range of ids that it samples from. `decode` is needed for stop
    strings only, `encode` for directives and constraints, `last_message` (the text of the last
    message of a prompt) for directives. `parser` opens parsers; without one, replies are only
    text. `token_seconds` is the pace of decoding, `prefill_seconds_per_token` that of the
    prompt's uncached part.
    """

    def __init__(
        self,
        *,
        vocabulary: tuple[int, int],
        eos_token_ids: tuple[int, ...],
        page_tokens: int,
        hbm_tokens: int = 1 << 20,
        decode: Callable[[Sequence[int]], str] | None = None,
        encode: Callable[[str], list[int]] | None = None,
        last_message: Callable[[Sequence[int]], str] | None = None,
        parser: ParserFactory | None = None,
        store: PageStore | None = None,
        token_seconds: float = 0.0,
        prefill_seconds_per_token: float = 0.0,
    ) -> None:
        self.page_tokens = page_tokens
        self.token_seconds = token_seconds
        self.prefill_seconds_per_token = prefill_seconds_per_token
        self.script = FakeScript()
        self.calls: list[GenerateRequest] = []
        self.aborted: list[str] = []
        self.sessions: set[str] = set()
        self.dead = False
        self._vocabulary = vocabulary
        self._eos = eos_token_ids
        self._decode = decode
        self._encode = encode
        self._last_message = last_message
        self._parser = parser
        self._store = store
        self._device: OrderedDict[PageHash, None] = OrderedDict()
        self._device_pages_max = max(1, hbm_tokens // page_tokens)
        self._running: dict[str, asyncio.Event] = {}

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateChunk]:
        """See `Engine.generate`."""
        self.calls.append(request)
        stop = asyncio.Event()
        self._running[request.request_id] = stop
        finished = False
        try:
            async for chunk in self._run(request, stop):
                finished = chunk.finish_reason is not None
                yield chunk
        finally:
            del self._running[request.request_id]
            if not finished:
                self.aborted.append(request.request_id)

    async def _run(
        self, request: GenerateRequest, stop: asyncio.Event
    ) -> AsyncIterator[GenerateChunk]:
        self._check_alive(0)
        prompt = array("I", request.token_ids)
        hashes = page_hashes(prompt, self.page_tokens, namespace_seed(request.salt))
        cached = self._find_cached(hashes, len(prompt))
        if self.prefill_seconds_per_token:
            await asyncio.sleep((len(prompt) - cached.total) * self.prefill_seconds_per_token)
        self._keep(hashes)
        message = "" if self._last_message is None else self._last_message(request.token_ids)
        scripted = self._scripted(request, message)
        pace = paced(message)
        token_seconds = self.token_seconds if pace is None else pace
        output: list[int] = []
        piece = GenerateChunk(())
        reason = "length" if request.sampling.max_tokens == 0 else None
        sampler = Sampler(prompt, request.sampling, self._vocabulary, self._eos)
        begun = asyncio.get_running_loop().time()
        while reason is None:
            due = begun + (len(output) + 1) * token_seconds if token_seconds else None
            await self._pace(stop, due)
            if stop.is_set():
                reason = "abort"
                break
            self._check_alive(len(output))
            forced = scripted[len(output)] if scripted else None
            token, logprob, top = sampler.next(forced, request.top_logprobs)
            output.append(token)
            piece = GenerateChunk(
                (token,),
                (logprob,) if request.logprobs else (),
                None,
                len(prompt),
                None,
                (top,) if request.logprobs and request.top_logprobs else (),
            )
            if scripted and len(output) == len(scripted):
                reason = "stop"
            else:
                reason = self._finish_reason(output, request.sampling)
            if reason is None:
                yield piece
        # The last sampled token was never fed to the model, so its page is not full yet.
        log = prompt + array("I", output[:-1])
        self._keep(page_hashes(log, self.page_tokens, namespace_seed(request.salt)))
        ended = bool(output) and reason != "abort"
        last = piece if ended else GenerateChunk((), (), None, len(prompt))
        yield replace(last, finish_reason=reason, cached=cached)

    def _scripted(self, request: GenerateRequest, message: str) -> tuple[int, ...] | None:
        """The ids of the reply where a test or a constraint says what it is."""
        if not request.sampling.max_tokens:
            return None
        if self.script.replies:
            return self.script.replies.pop(0)
        text = scripted_text(message)
        if text is None:
            text = constrained_text(request.sampling.constraint)
        if text is None or self._encode is None:
            return None
        ids = self._encode(text)
        return (*ids, *(() if request.sampling.ignore_eos and ids else self._eos[:1])) or None

    async def open_parser(self, spec: OutputSpec) -> OutputParser:
        """See `Engine.open_parser`."""
        self._check_alive(0)
        return PlainText() if self._parser is None else await self._parser(spec)

    async def tool_constraint(self, spec: OutputSpec) -> Constraint | None:
        """See `Engine.tool_constraint`; the fake's own structural tag."""
        return fake_tool_constraint(spec)

    async def schema_constraint(self, spec: OutputSpec, schema: str) -> Constraint:
        """See `Engine.schema_constraint`."""
        return Constraint("json_schema", schema)

    async def abort(self, request_id: str) -> None:
        """See `Engine.abort`."""
        running = self._running.get(request_id)
        if running is not None:
            running.set()

    async def open_session(self, session_id: str) -> None:
        """See `Engine.open_session`."""
        self._check_alive(0)
        self.sessions.add(session_id)

    async def close_session(self, session_id: str) -> None:
        """See `Engine.close_session`."""
        self._check_alive(0)
        self.sessions.discard(session_id)

    async def aclose(self) -> None:
        """See `Engine.aclose`."""

    def flush(self) -> None:
        """Empties the device, as a restart of the engine would."""
        self._device.clear()

    def _check_alive(self, tokens: int) -> None:
        if self.dead:
            raise EngineFailed("The fake engine is dead.")
        if self.script.fail_after_tokens == tokens:
            self.script.fail_after_tokens = None
            raise EngineFailed(f"The fake engine failed after {tokens} tokens, as scripted.")

    async def _pace(self, stop: asyncio.Event, due: float | None) -> None:
        """Waits until the next token is due: as on a device, whether or not anyone takes them."""
        if due is not None:
            await asyncio.sleep(due - asyncio.get_running_loop().time())
        stall = self.script.stall
        if stall is not None and not stall.is_set():
            waits = [asyncio.ensure_future(stall.wait()), asyncio.ensure_future(stop.wait())]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()

    def _find_cached(self, hashes: list[PageHash], prompt_tokens: int) -> CachedTokens:
        # [0, device) from the device; [device, device + storage) loaded; the rest is computed.
        usable = hashes[: max(0, prompt_tokens - 1) // self.page_tokens]
        device = 0
        while device < len(usable) and usable[device] in self._device:
            device += 1
        loaded = self._store.load(usable[device:]) if self._store and usable[device:] else 0
        # What was loaded is not offered again; what is recomputed is.
        self._device.update(dict.fromkeys(usable[device : device + loaded]))
        return CachedTokens(device=device * self.page_tokens, storage=loaded * self.page_tokens)

    def _keep(self, hashes: list[PageHash]) -> None:
        new = [page for page in hashes if page not in self._device]
        for page in hashes:
            self._device[page] = None
            self._device.move_to_end(page)
        while len(self._device) > self._device_pages_max:
            self._device.popitem(last=False)
        if self._store is not None and new:
            self._store.offer(new)

    def _finish_reason(self, output: list[int], sampling: Sampling) -> str | None:
        if output[-1] in sampling.stop_token_ids:
            return "stop"
        if output[-1] in self._eos and not sampling.ignore_eos:
            return "stop"
        if sampling.stop:
            assert self._decode is not None, "stop strings need a tokenizer"
            text = self._decode(output)
            if any(stop in text for stop in sampling.stop):
                return "stop"
        return "length" if len(output) >= sampling.max_tokens else None
