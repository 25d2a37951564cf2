"""What the gateway adds to the first token, against calling the (fake) engine directly.

The gateway is a process of its own, over HTTP, with its catalog on disk; the same prompts go to
the same fake engine in this process. One request at a time.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2

from agentmem.app import create_key, create_tenant, migrate_catalog
from agentmem.bench.report import report, row_of
from agentmem.config import Settings
from agentmem.engine.base import GenerateRequest, Sampling
from agentmem.loopback import free_port
from agentmem.serve import settings_environment
from agentmem.testing.fake_worker import FakeWorker

ROUNDS = 5
_TURNS = 200
_WARM_UP_TURNS = 50
_MILLISECONDS = 1000.0
_MESSAGE = "Tell me what you know of the sea, and be brief about it. " * 8
_START_SECONDS_MAX = 60.0


def run_gateway_bench(*, rounds: int = ROUNDS, turns: int = _TURNS) -> dict[str, Any]:
    """Rows `ttft_added_p50` and `ttft_added_p99`, in milliseconds."""
    with tempfile.TemporaryDirectory(prefix="agentmem-bench-") as directory:
        settings = Settings(data_dir=Path(directory), engine="fake", port=free_port())
        migrate_catalog(settings)
        key = create_key(settings, create_tenant(settings, "bench"))
        process = subprocess.Popen(
            [sys.executable, "-m", "agentmem", "gateway"],
            env={**os.environ, **settings_environment(settings)},
            stderr=subprocess.DEVNULL,
        )
        try:
            with httpx2.Client(
                base_url=f"http://{settings.host}:{settings.port}",
                headers={"authorization": f"Bearer {key}"},
                timeout=30.0,
                trust_env=False,
            ) as http:
                _wait_until_ready(http)
                return _measure(http, settings, rounds, turns)
        finally:
            process.terminate()
            process.wait()


def _measure(http: httpx2.Client, settings: Settings, rounds: int, turns: int) -> dict[str, Any]:
    worker = FakeWorker(settings.models_dir / "fake", page_tokens=settings.page_tokens)
    tokens = [_through_gateway(http) for _ in range(_WARM_UP_TURNS)][-1][1]
    through, direct = [], []
    for _ in range(rounds):
        through.append([_through_gateway(http)[0] for _ in range(turns)])
        direct.append(asyncio.run(_directly(worker, tokens, turns)))
    rows = []
    for name, quantile, target in (("ttft_added_p50", 0.5, 10.0), ("ttft_added_p99", 0.99, 15.0)):
        added = [
            _quantile(ours, quantile) - _quantile(theirs, quantile)
            for ours, theirs in zip(through, direct, strict=True)
        ]
        beside = statistics.median(_quantile(theirs, quantile) for theirs in direct)
        detail = f"{turns} turns a round, prompts of {tokens} tokens, one at a time"
        rows.append(row_of(name, added, unit="ms", limit=beside, target=target, detail=detail))
    return report(rows, rounds=rounds)


def _through_gateway(http: httpx2.Client) -> tuple[float, int]:
    """Milliseconds to the first delta of a new session's first turn, and its prompt tokens."""
    session = http.post("/v1/sessions", json={}).raise_for_status().json()["id"]
    body = {
        "messages": [{"role": "user", "content": f"{session} {_MESSAGE}"}],
        "max_tokens": 4,
        "stream": True,
    }
    started = time.perf_counter()
    seconds, last = 0.0, ""
    with http.stream("POST", f"/v1/sessions/{session}/turns", json=body) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if not seconds and line == "event: turn.delta":
                seconds = time.perf_counter() - started
            if line.startswith("data:"):
                last = line
    usage = httpx2.Response(200, text=last[5:]).json()["usage"]
    return seconds * _MILLISECONDS, int(usage["prompt_tokens"])


async def _directly(worker: FakeWorker, tokens: int, turns: int) -> list[float]:
    milliseconds = []
    for number in range(turns):
        request = GenerateRequest(
            f"bench-{number}", [number, *range(tokens - 1)], Sampling(max_tokens=4), salt="bench"
        )
        started = time.perf_counter()
        first = None
        async for _ in worker.engine.generate(request):
            first = first or time.perf_counter()
        assert first is not None, "the fake engine answers"
        milliseconds.append((first - started) * _MILLISECONDS)
    return milliseconds


def _quantile(values: list[float], quantile: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * quantile))]


def _wait_until_ready(http: httpx2.Client) -> None:
    deadline = time.monotonic() + _START_SECONDS_MAX
    while True:
        try:
            if http.get("/readyz").status_code == httpx2.codes.OK:
                return
        except httpx2.HTTPError:
            pass
        if time.monotonic() > deadline:
            raise TimeoutError(f"the gateway is not ready after {_START_SECONDS_MAX:.0f} s")
        time.sleep(0.1)
