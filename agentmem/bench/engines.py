"""SGLang servers under measurement: with agentmem's storage, with SGLang's own, with none."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import httpx2

from agentmem.config import Settings
from agentmem.core import PageKey
from agentmem.engine.sglang.activate import DEVICE_VARIABLE
from agentmem.engine.sglang.launch import EngineOptions, LaunchPlan, cuda_is_there, plan_launch
from agentmem.engine.sglang.process import SglangProcess, StorageProof
from agentmem.loopback import free_port
from agentmem.pages.keys import page_keys
from agentmem.worker import resolve_model

Backend = Literal["agentmem", "file", "none"]
SALT = "bench"
_START_SECONDS_MAX = 600.0
_TURN_SECONDS_MAX = 600.0
_POLL_SECONDS = 0.05
_FILE_DIRECTORY = "SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR"
_STORAGE_FLAGS = (
    "--hicache-storage-backend",
    "--hicache-storage-backend-extra-config",
    "--hicache-storage-prefetch-policy",
)


class Answer(NamedTuple):
    """One request: seconds to its end, cached tokens by where SGLang had them, and what came."""

    seconds: float
    device: int
    host: int
    storage: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def cached(self) -> dict[str, int]:
        """Tokens by source, as rows and tables show them."""
        return {"hbm": self.device, "host_pool": self.host, "storage": self.storage}


class _Process(SglangProcess):
    """A server that need not have agentmem's storage."""

    def __init__(self, plan: LaunchPlan, log_path: Path, *, ours: bool) -> None:
        super().__init__(plan, log_path)
        self._ours = ours

    def _read_proof(self) -> StorageProof:
        if self._ours:
            return super()._read_proof()
        return StorageProof(self.pid, "", "", 0, 0)


class Server:
    """One SGLang server. `file_dir` is where SGLang's own `file` backend puts pages."""

    def __init__(
        self, options: EngineOptions, directory: Path, backend: Backend, *, file_dir: Path
    ) -> None:
        self.options = options
        self.backend = backend
        self.file_dir = file_dir
        self._directory = directory
        self._process: SglangProcess | None = None
        self._http: httpx2.Client | None = None

    def start(self) -> float:
        """Returns seconds until it answers. Raises EngineFailed."""
        plan = plan_launch(
            self.options,
            python=sys.executable,
            port=free_port(),
            run_dir=self._directory / f"run-{self.backend}",
            engine_id=f"bench-{secrets.token_hex(4)}",
        )
        environment = {**plan.environment, _FILE_DIRECTORY: str(self.file_dir)}
        if self.options.cuda and self.backend != "agentmem":
            # SGLang as it is, without what `activate` changes; on a CPU it cannot do without.
            del environment[DEVICE_VARIABLE]
        command = _command(plan.command, self.backend)
        plan = replace(plan, command=command, environment=environment)
        self._directory.mkdir(parents=True, exist_ok=True)
        self.file_dir.mkdir(parents=True, exist_ok=True)
        log = self._directory / f"sglang-{self.backend}.log"
        self._process = _Process(plan, log, ours=self.backend == "agentmem")
        begun = time.perf_counter()
        asyncio.run(
            self._process.start(deadline_seconds=_START_SECONDS_MAX, progress=lambda _: None)
        )
        self._http = httpx2.Client(base_url=plan.url, timeout=_TURN_SECONDS_MAX, trust_env=False)
        return time.perf_counter() - begun

    def generate(self, ids: Sequence[int], max_tokens: int = 1) -> Answer:
        """One greedy request, its reply in one piece."""
        begun = time.perf_counter()
        response = self._client.post("/generate", json=_body(ids, max_tokens))
        seconds = time.perf_counter() - begun
        event = response.raise_for_status().json()
        meta = event["meta_info"]
        details = meta.get("cached_tokens_details") or {}
        return Answer(
            seconds,
            int(details.get("device") or 0),
            int(details.get("host") or 0),
            int(details.get("storage") or 0),
            tuple(event.get("output_ids") or ()),
            tuple(float(pair[0]) for pair in meta.get("output_token_logprobs") or ()),
        )

    def decode_rate(self, ids: Sequence[int], tokens: int) -> float:
        """Tokens per second of one reply, counted from its first token."""
        times: list[float] = []
        body = {**_body(ids, tokens), "stream": True}
        with self._client.stream("POST", "/generate", json=body) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    new = len(json.loads(line[6:]).get("output_ids") or ())
                    times += [time.perf_counter()] * new
        return (len(times) - 1) / (times[-1] - times[0])

    def flush(self, timeout_seconds: float = 60.0) -> float | None:
        """Empties HBM and host pool. Returns seconds until SGLang did it; None: it never did."""
        begun = time.perf_counter()
        while time.perf_counter() - begun < timeout_seconds:
            if self._client.post("/flush_cache").status_code == httpx2.codes.OK:
                return time.perf_counter() - begun
            time.sleep(_POLL_SECONDS)
        return None

    def keys(self, ids: Sequence[int]) -> list[PageKey]:
        """Keys of the full pages of a prompt that a later one can load: all but the last token."""
        options = self.options
        return page_keys(options.fingerprint, SALT, ids[:-1], options.page_tokens)

    def files(self) -> list[Path]:
        """Pages that the `file` backend has written."""
        return list(self.file_dir.glob("*.bin"))

    def wait_for_files(self, count: int, timeout_seconds: float) -> bool:
        """Whether the `file` backend came to have at least so many pages in time."""
        deadline = time.monotonic() + timeout_seconds
        while len(self.files()) < count:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def kill(self) -> None:
        """Ends it with SIGKILL."""
        if self._http is not None:
            self._http.close()
        if self._process is not None:
            self._process.kill()

    @property
    def _client(self) -> httpx2.Client:
        assert self._http is not None, "the server was started"
        return self._http


def model_options(
    settings: Settings, say: Callable[[str], None] = lambda _: None
) -> tuple[EngineOptions, int]:
    """How a worker with these settings would start its engine, and the model's vocabulary."""
    served = resolve_model(settings, say)
    description = served.description
    options = EngineOptions(
        model_path=description.path,
        model_name=served.name,
        fingerprint=served.fingerprint,
        context_tokens=served.context_tokens,
        page_tokens=settings.page_tokens,
        kv_bytes_per_token=description.kv_bytes_per_token,
        node_socket=settings.node_socket,
        cuda=cuda_is_there(),
    )
    return options, description.vocab_size


def random_prompt(seed: int, tokens: int, vocabulary: int) -> list[int]:
    """Token ids that begin like no other prompt's."""
    pick = random.Random(seed)  # noqa: S311 - a prompt, not a secret
    return [pick.randrange(10, vocabulary) for _ in range(tokens)]


def _body(ids: Sequence[int], max_tokens: int) -> dict[str, Any]:
    return {
        "input_ids": list(ids),
        "cache_salt": SALT,
        "return_cached_tokens_details": True,
        "return_logprob": True,
        "sampling_params": {"max_new_tokens": max_tokens, "temperature": 0, "ignore_eos": True},
    }


def _command(command: Sequence[str], backend: Backend) -> tuple[str, ...]:
    """agentmem's own command, with SGLang's `file` backend or none in place of its storage."""
    if backend == "agentmem":
        return tuple(command)
    kept: list[str] = []
    words = iter(command)
    for word in words:
        if word in _STORAGE_FLAGS:
            next(words)
        else:
            kept.append(word)
    if backend == "file":
        # The policy that waits for everything: the other ones would recompute what comes late.
        kept += ["--hicache-storage-backend", "file"]
        kept += ["--hicache-storage-prefetch-policy", "wait_complete"]
    return tuple(kept)
