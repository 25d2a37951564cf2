"""The steps of the demo, each of which does something and returns what it saw."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentmem.core import PageKey, TierTokens
from agentmem.demo.corpus import excerpts
from agentmem.demo.log import SessionPages
from agentmem.demo.system import Client, DemoFailed, System
from agentmem.engine.base import CachedTokens, GenerateRequest, Sampling
from agentmem.engine.sglang.client import SglangEngine
from agentmem.node.protocol import TIERS

Messages = list[dict[str, str]]

# Words of documentation in each of the first turns: some 6,500 tokens together, which leaves room
# in the model's 8,192 for whatever the documentation will say tomorrow.
_EXCERPT_WORDS = 830
_LONG_TURNS = 4
_REPLY_TOKENS = 24
_SHORT_REPLY_TOKENS = 16
_CORRUPTED = 3
_FLUSH_TRIES = 300


@dataclass(frozen=True, slots=True)
class Script:
    """What the user says, turn by turn. The control and the interrupted session say the same."""

    turns: tuple[Messages, ...]
    tokens: tuple[int, ...]

    @property
    def before_kill(self) -> int:
        """Turns before everything is killed."""
        return _LONG_TURNS


def write_script() -> Script:
    """Long turns over real text, then short questions for after the resume and the corruption."""
    system = {"role": "system", "content": "You are a careful assistant. Answer in one sentence."}
    turns: list[Messages] = []
    for number, text in enumerate(excerpts(_LONG_TURNS, _EXCERPT_WORDS)):
        question = {"role": "user", "content": f"{text}\n\nWhat is this part about?"}
        turns.append([system, question] if number == 0 else [question])
    turns += [
        [{"role": "user", "content": "Which part mattered most?"}],
        [{"role": "user", "content": "And what should I read next?"}],
    ]
    lengths = (_REPLY_TOKENS,) * _LONG_TURNS + (_SHORT_REPLY_TOKENS,) * 2
    return Script(tuple(turns), lengths)


@dataclass(slots=True)
class Conversation:
    """A session being led through the script, with every turn's answer."""

    client: Client
    script: Script
    session: str
    answers: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def begin(cls, client: Client, script: Script) -> Conversation:
        """A new session of `client`."""
        return cls(client, script, client.create())

    def next_turn(self) -> dict[str, Any]:
        """Runs the script's next turn."""
        number = len(self.answers)
        answer = self.client.turn(
            self.session, self.script.turns[number], self.script.tokens[number]
        )
        self.answers.append(answer)
        return answer

    def run_until(self, turns: int, say: Callable[[str], None]) -> None:
        """Runs turns until there are `turns`."""
        while len(self.answers) < turns:
            usage = self.next_turn()["usage"]
            prompt, seconds = usage["prompt_tokens"], usage["ttft_seconds"]
            turn = f"{self.client.tenant}: turn {len(self.answers)}"
            say(f"  {turn}, {prompt} prompt tokens, first token after {seconds:.2f} s")


@dataclass(frozen=True, slots=True)
class Equality:
    """Two turns compared: ids, and the largest difference of their log-probabilities."""

    ids_equal: bool
    logprob_max_abs_diff: float


def compare(left: dict[str, Any], right: dict[str, Any]) -> Equality:
    """Compares two answers to the same turn. Lists of unequal length are never equal."""
    one, other = left["logprobs"], right["logprobs"]
    ids_equal = left["output_ids"] == right["output_ids"]
    if not one or len(one) != len(other):
        return Equality(ids_equal and bool(one), float("inf"))
    return Equality(ids_equal, max(abs(a - b) for a, b in zip(one, other, strict=True)))


def cold_turn(engine: SglangEngine, token_ids: Sequence[int], max_tokens: int) -> dict[str, Any]:
    """Computes a prompt that nothing has stored: the very ids, under a salt of their own.

    Asked of the worker itself, so that no token of the log is tokenised again, and the gateway's
    milliseconds count against the resumed turn only.
    """
    return asyncio.run(_cold_turn(engine, token_ids, max_tokens))


async def _cold_turn(
    engine: SglangEngine, token_ids: Sequence[int], max_tokens: int
) -> dict[str, Any]:
    request = GenerateRequest(
        request_id=f"cold-{secrets.token_hex(8)}",
        token_ids=list(token_ids),
        sampling=Sampling(max_tokens=max_tokens),
        salt=f"cold-{secrets.token_hex(16)}",
        logprobs=True,
    )
    started = time.perf_counter()
    first, cached = 0.0, CachedTokens()
    ids: list[int] = []
    logprobs: list[float] = []
    try:
        async for chunk in engine.generate(request):
            first = first or time.perf_counter() - started
            ids += chunk.token_ids
            logprobs += chunk.logprobs
            cached = chunk.cached or cached
    finally:
        await engine.aclose()
    by_tier = TierTokens(hbm=cached.device, dram=cached.host, disk=cached.storage)
    return {
        "ttft_seconds": round(first, 6),
        "output_ids": ids,
        "logprobs": logprobs,
        "cached_tokens": by_tier.as_dict(),
    }


def wait_until_stored(system: System, keys: Sequence[PageKey], seconds: float = 60.0) -> None:
    """Raises DemoFailed when pages are not durable in time."""
    missing = system.nodes.wait_durable(keys, seconds)
    if missing:
        raise DemoFailed(f"pages {list(missing)} were not durable after {seconds:g} s")


def corrupt_pages(system: System, pages: SessionPages, prefill_pages: int) -> list[int]:
    """Flips bytes in the middle of stored pages that a prefill made. Returns their indexes.

    The pages are spread over the first `prefill_pages` pages, from a third of them on, so that a
    good prefix is left to load.
    """
    indexes = [prefill_pages * (1 + part) // (1 + _CORRUPTED) for part in range(_CORRUPTED)]
    system.nodes.drop_dram(pages.keys)
    located = system.nodes.locate(pages.keys)
    try:
        if len(located.pages) < max(indexes) + 1:
            raise DemoFailed(f"only {len(located.pages)} pages of the session are stored")
        for index in indexes:
            _flip(located.pages[index])
    finally:
        system.nodes.release(located.hold_id, loaded={})
    return indexes


def _flip(location: Any) -> None:
    middle = location.offset + 4096 + location.payload_bytes // 2
    descriptor = os.open(location.path, os.O_RDWR)
    try:
        original = os.pread(descriptor, 64, middle)
        os.pwrite(descriptor, bytes(byte ^ 0xFF for byte in original), middle)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def stored_bytes(system: System, pages: SessionPages) -> int:
    """Bytes that the node agent holds under these keys, all tiers together."""
    resident = system.nodes.residency(pages.keys)
    return sum(len(entry.tiers) for entry in resident) * pages.page_bytes


def corrupt_pages_found(system: System) -> int:
    """Pages that failed their checks since the node agent's start."""
    counters = system.nodes.stats()
    return sum(
        counters[name]
        for name in counters
        if name.startswith("corrupt_") and name.endswith("_pages")
    )


def tier_counts(system: System, keys: Sequence[PageKey]) -> dict[str, int]:
    """How many of these pages each tier holds."""
    counts = dict.fromkeys((str(tier) for tier in TIERS), 0)
    for entry in system.nodes.residency(keys):
        for tier in entry.tiers:
            counts[str(tier)] += 1
    return counts


def pages_loaded(system: System, keys: Sequence[PageKey], since: int) -> int:
    """How many of these pages an engine was given after the agent's position `since`."""
    return sum(1 for tier in system.nodes.loads(keys, since).tiers if tier is not None)


def flush_engine(engine: SglangEngine) -> None:
    """Empties HBM and host pool, so that the next turn has to load. Raises DemoFailed."""
    asyncio.run(_flush(engine))


async def _flush(engine: SglangEngine) -> None:
    try:
        for _ in range(_FLUSH_TRIES):
            # SGLang refuses while writes to storage are in flight.
            if await engine.flush():
                return
            await asyncio.sleep(0.1)
    finally:
        await engine.aclose()
    raise DemoFailed(f"SGLang refused to flush its cache {_FLUSH_TRIES} times")
