"""What the gateway adds, against calling the (fake) engine directly over the same transport.

Four processes: a load generator, the gateway, and the same fake engine behind a bare application
on the same HTTP server (`gateway_peers`); this one only gives orders. 64 streams at a fixed token
rate, evenly apart; the two sides take turns, round by round. Then 100,000 requests for the memory,
and long histories that are sent again in full.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from agentmem.administer import create_key, create_tenant
from agentmem.app import migrate_catalog
from agentmem.bench.gateway_load import NUMBER
from agentmem.bench.report import Row, report, row_of
from agentmem.config import Settings
from agentmem.loopback import free_port
from agentmem.serve import settings_environment

ROUNDS = 5
STREAMS = 64
TOKEN_SECONDS = 0.02
REPLY_TOKENS = 128
REQUESTS_PER_ROUND = 4 * STREAMS
MEMORY_REQUESTS = 100_000
MEMORY_WARM_UP_REQUESTS = 10_000
HISTORY_TOKENS = (25_000, 50_000, 100_000)
_HISTORY_TURNS = 20
_HISTORY_WARM_UP = 3
_MESSAGE_TOKENS = 500
# About four characters per token with the fake's tokenizer, as real text has with real ones.
_MESSAGE = (
    "Pages lie in the memory of the device, in the memory of the host, on a disk or in an object "
    "store. Losing one costs time and never data, since every page can be computed again from the "
    "tokens. "
) * 6
_MILLISECONDS = 1000.0
_MIB = 1 << 20
_START_SECONDS_MAX = 60.0


@dataclass(frozen=True, slots=True)
class Server:
    """A process that listens, and how to ask it: `body` has the place of a request's number."""

    process: subprocess.Popen[bytes]
    port: int
    path: str
    key: str
    body: dict[str, Any]
    skip: int

    def rss_bytes(self) -> int:
        """Resident memory, now."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise ValueError("a process has a resident size")


class Load:
    """The load generator's process."""

    def __init__(self, stack: ExitStack) -> None:
        self._numbers = 0
        self._process = stack.enter_context(
            _running(["-m", "agentmem.bench.gateway_load"], {}, pipes=True)
        )

    def run(
        self,
        server: Server,
        requests: int,
        *,
        streams: int = STREAMS,
        spread_seconds: float = 0.0,
        **body: Any,
    ) -> dict[str, Any]:
        """Has requests made; `body` goes over the server's. Raises OSError when one failed."""
        job = {
            "host": "127.0.0.1",
            "port": server.port,
            "path": server.path,
            "key": server.key,
            "body": json.dumps({**server.body, **body}),
            "skip": server.skip,
            "streams": streams,
            "requests": requests,
            "spread_seconds": spread_seconds,
            "first_number": self._numbers,
        }
        self._numbers += requests
        assert self._process.stdin is not None, "it was started with pipes"
        assert self._process.stdout is not None, "it was started with pipes"
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise OSError("the load generator failed; its own words are above")
        result: dict[str, Any] = json.loads(answer)
        return result


def run_gateway_bench(
    *,
    rounds: int = ROUNDS,
    memory_requests: int = MEMORY_REQUESTS,
    history_tokens: Sequence[int] = HISTORY_TOKENS,
) -> dict[str, Any]:
    """Rows: `ttft_added_p50` and `_p99` (ms), `throughput` (share of direct),
    `rss_growth` (MiB) and `resent_history` (ms)."""
    rows: list[Row] = []
    with _servers(TOKEN_SECONDS) as (load, gateway, direct):
        rows += _streams(load, gateway, direct, rounds)
    if memory_requests:
        # Small enough to be full before the measurement begins, as the other caches are.
        with _servers(0.0, log_cache_bytes=8 * _MIB) as (load, gateway, _):
            rows.append(_memory(load, gateway, memory_requests))
    if history_tokens:
        with _servers(0.0) as (load, gateway, direct):
            rows += [_history(gateway, direct, tokens) for tokens in history_tokens]
    return report(rows, rounds=rounds)


def _streams(load: Load, gateway: Server, direct: Server, rounds: int) -> list[Row]:
    spread = REPLY_TOKENS * TOKEN_SECONDS
    tokens = _prompt_tokens(gateway)
    ids = list(range(1, tokens))
    through, beside = [], []
    for warm_up in (True, *[False] * rounds):
        requests = STREAMS if warm_up else REQUESTS_PER_ROUND
        ours = load.run(gateway, requests, spread_seconds=spread)
        theirs = load.run(direct, requests, spread_seconds=spread, input_ids=ids)
        if not warm_up:
            through.append(ours)
            beside.append(theirs)
    busy = max(result["busy"] for result in (*through, *beside))
    lag = max(result["lag_p99_seconds"] for result in (*through, *beside)) * _MILLISECONDS
    detail = (
        f"{STREAMS} streams, {1 / TOKEN_SECONDS:.0f} tokens/s each, prompts of {tokens} tokens, "
        f"replies of {REPLY_TOKENS}, {REQUESTS_PER_ROUND} requests a round; the generator took "
        f"{busy:.0%} of a core and was at most {lag:.1f} ms late (p99)"
    )
    rows = []
    for quantile, target in (("p50", 3.0), ("p99", 15.0)):
        name, of = f"ttft_added_{quantile}", f"first_seconds_{quantile}"
        firsts = [result[of] * _MILLISECONDS for result in through]
        limits = [result[of] * _MILLISECONDS for result in beside]
        added = [mine - other for mine, other in zip(firsts, limits, strict=True)]
        limit = statistics.median(limits)
        rows.append(row_of(name, added, unit="ms", limit=limit, target=target, detail=detail))
    rates = [_tokens_per_second(result) for result in through]
    limits = [_tokens_per_second(result) for result in beside]
    shares = [ours / theirs for ours, theirs in zip(rates, limits, strict=True)]
    detail = f"{statistics.median(rates):.0f} of {statistics.median(limits):.0f} tokens/s; {detail}"
    rows.append(
        row_of(
            "throughput", shares, unit="of direct", limit=1.0, target=0.95, detail=detail, more=True
        )
    )
    return rows


def _tokens_per_second(result: dict[str, Any]) -> float:
    """What all streams together get, each asking again when it has its reply."""
    seconds: float = result["total_seconds"]
    return STREAMS * REPLY_TOKENS / seconds


def _memory(load: Load, gateway: Server, requests: int) -> Row:
    """Growth of resident memory over `requests`, after a tenth of them as a warm-up."""
    body = {"max_tokens": 2, "stream": False}
    load.run(gateway, MEMORY_WARM_UP_REQUESTS, **body)
    before = gateway.rss_bytes()
    sizes, begun = [before], time.perf_counter()
    for _ in range(10):
        load.run(gateway, requests // 10, **body)
        sizes.append(gateway.rss_bytes())
    rate = requests / (time.perf_counter() - begun)
    course = " ".join(f"{size / _MIB:.0f}" for size in sizes)
    detail = (
        f"{requests} requests after {MEMORY_WARM_UP_REQUESTS}, {STREAMS} at once, "
        f"{rate:.0f} a second; MiB on the way: {course}"
    )
    growth = (sizes[-1] - before) / _MIB
    limit = before / _MIB
    return row_of("rss_growth", [growth], unit="MiB", limit=limit, target=10.0, detail=detail)


def _history(gateway: Server, direct: Server, tokens: int) -> Row:
    """A history of so many tokens, sent again in full with one short message more each time."""
    added, limits, answer, size = list[float](), list[float](), _Answer(), 0
    with _client(gateway) as http:
        messages = _long_history(http, tokens)
        for turn in range(1 - _HISTORY_WARM_UP, _HISTORY_TURNS + 1):
            answer = _chat(http, {**gateway.body, "messages": messages, "max_tokens": 8})
            if answer.turn != turn + _HISTORY_WARM_UP:
                raise ValueError(f"the history went on as turn {answer.turn} of its session")
            beside = _direct(direct, answer.prompt_tokens)
            if turn > 0:
                added.append((answer.first_seconds - beside) * _MILLISECONDS)
                limits.append(beside * _MILLISECONDS)
            size = len(json.dumps(messages))
            messages.append({"role": "assistant", "content": answer.text})
            messages.append({"role": "user", "content": f"{turn} more of it, please."})
    name = "resent_history" if tokens == max(HISTORY_TOKENS) else f"resent_{tokens // 1000}k"
    detail = (
        f"{_HISTORY_TURNS} turns of one session, each resending {answer.prompt_tokens} tokens "
        f"({size / 1e6:.2f} MB of JSON, {len(messages)} messages) of which about 20 are new; first "
        "token through the gateway less that of the engine asked directly, which is beside it"
    )
    limit = statistics.median(limits)
    return row_of(name, added, unit="ms", limit=limit, target=150.0, detail=detail)


def _long_history(http: httpx2.Client, tokens: int) -> list[dict[str, Any]]:
    """Messages of both sides with about so many tokens in all, the last one the user's."""
    count = max(1, tokens // (2 * _MESSAGE_TOKENS))
    probe = _chat_usage(http, _MESSAGE)
    text = _MESSAGE * max(1, round(_MESSAGE_TOKENS / probe))
    messages: list[dict[str, Any]] = [{"role": "system", "content": f"{time.time_ns()}"}]
    for number in range(count):
        messages.append({"role": "user", "content": f"{number} {text}"})
        messages.append({"role": "assistant", "content": f"{number} indeed {text}"})
    messages[-1] = {"role": "user", "content": "What now?"}
    return messages


@dataclass(slots=True)
class _Answer:
    """What came of one streamed completion; `turn` is its number in its session."""

    first_seconds: float = 0.0
    text: str = ""
    prompt_tokens: int = 0
    turn: int = 0


def _chat(http: httpx2.Client, body: dict[str, Any]) -> _Answer:
    answer = _Answer()
    content = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}})
    begun = time.perf_counter()
    with http.stream("POST", "/v1/chat/completions", content=content) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if chunk["choices"]:
                piece = chunk["choices"][0]["delta"].get("content") or ""
                if piece and not answer.text:
                    answer.first_seconds = time.perf_counter() - begun
                answer.text += piece
            if chunk.get("usage"):
                answer.prompt_tokens = chunk["usage"]["prompt_tokens"]
                answer.turn = chunk["usage"]["agentmem"]["turn"]
    return answer


def _chat_usage(http: httpx2.Client, text: str) -> int:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 1}
    answer = http.post("/v1/chat/completions", json=body).raise_for_status().json()
    return int(answer["usage"]["prompt_tokens"])


def _direct(direct: Server, tokens: int) -> float:
    """Seconds to the first token of the engine asked directly, with as many ids."""
    body = {"number": str(time.time_ns() % 997), "input_ids": list(range(tokens - 1))}
    content = json.dumps({**body, "max_tokens": 8})
    with _client(direct) as http:
        http.post("/", content=b"").raise_for_status()  # connected before the clock runs
        begun = time.perf_counter()
        with http.stream("POST", "/", content=content) as response:
            next(response.iter_bytes())
            return time.perf_counter() - begun


def _prompt_tokens(gateway: Server) -> int:
    with _client(gateway) as http:
        return _chat_usage(http, f"{NUMBER} {_MESSAGE}")


@contextmanager
def _servers(token_seconds: float, **options: Any) -> Iterator[tuple[Load, Server, Server]]:
    """The load generator, the gateway and the engine, ready. `options` are settings."""
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="agentmem-bench-"))
        load = Load(stack)
        gateway, direct = (
            Settings(data_dir=Path(directory) / role, engine="fake", port=free_port(), **options)
            for role in ("gateway", "direct")
        )
        for settings in (gateway, direct):
            settings.data_dir.mkdir()
        migrate_catalog(gateway)
        key = create_key(gateway, create_tenant(gateway, "bench"))
        message = {"role": "user", "content": f"{NUMBER} {_MESSAGE}"}
        body = {"max_tokens": REPLY_TOKENS, "ignore_eos": True, "stream": True}
        yield (
            load,
            Server(
                _start(stack, "gateway", gateway, token_seconds),
                gateway.port,
                "/v1/chat/completions",
                key,
                {"model": "fake", "messages": [message], **body},
                skip=1,
            ),
            Server(
                _start(stack, "direct", direct, token_seconds),
                direct.port,
                "/",
                "none",
                {"number": NUMBER, "max_tokens": REPLY_TOKENS},
                skip=0,
            ),
        )


def _start(
    stack: ExitStack, role: str, settings: Settings, token_seconds: float
) -> subprocess.Popen[bytes]:
    parent = str(os.getpid())
    arguments = ["-m", "agentmem.bench.gateway_peers", parent, role, str(token_seconds)]
    log = stack.enter_context((settings.data_dir / "log").open("wb"))
    process = stack.enter_context(_running(arguments, settings_environment(settings), stderr=log))
    path = "/readyz" if role == "gateway" else "/"
    _wait_until_ready(f"http://127.0.0.1:{settings.port}{path}")
    return process


@contextmanager
def _running(
    arguments: Sequence[str],
    environment: dict[str, str],
    *,
    pipes: bool = False,
    stderr: Any = None,
) -> Iterator[subprocess.Popen[bytes]]:
    pipe = subprocess.PIPE if pipes else None
    with subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        stdin=pipe,
        stdout=pipe,
        stderr=stderr,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def _client(server: Server) -> httpx2.Client:
    return httpx2.Client(
        base_url=f"http://127.0.0.1:{server.port}",
        headers={"authorization": f"Bearer {server.key}", "content-type": "application/json"},
        timeout=60.0,
        trust_env=False,
    )


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + _START_SECONDS_MAX
    while True:
        try:
            if httpx2.get(url, trust_env=False).status_code == httpx2.codes.OK:
                return
        except httpx2.HTTPError:
            pass
        if time.monotonic() > deadline:
            raise TimeoutError(f"{url} is not ready after {_START_SECONDS_MAX:.0f} s")
        time.sleep(0.1)
