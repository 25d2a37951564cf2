"""First token of a resumed prompt by where its pages are, on one GPU: agentmem beside stock SGLang.

    python resume.py limits|ours|stock|file OUT [--tiny]

Each part writes OUT/PART.json after every measurement, so that a run that is cut off leaves what it
had. `limits`: memcpy, PCIe, disk. `ours`: SGLang with agentmem. `stock`: SGLang with its own host
pool and `file` backend; `file`: that backend alone, in little time. Weights are random (time and
bytes do not depend on them), the shape is Llama 8B's, with 128 KiB of KV per token. `--tiny` tries
the script on a CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agentmem.bench.engines import Answer, Server, random_prompt
from agentmem.bench.limits import (
    GB,
    MIB,
    Memory,
    best_read,
    best_write,
    copy_seconds,
    drop_page_cache,
    raw_write,
)
from agentmem.bench.store_system import SHARED_MEMORY, BenchFailed, Node, claim, wait_durable
from agentmem.core import Fingerprint
from agentmem.engine.sglang.launch import EngineOptions
from agentmem.engine.sglang.model.tiny import make_tiny_model

WORK = Path("/tmp/agentmem-gpu")  # noqa: S108 - a machine of its own
SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 4,
    "pad_token_id": 0,
}
# The kernels of FlashAttention and FlashInfer are too large to carry to an offline machine.
ARGUMENTS = (
    "--load-format dummy --attention-backend triton --grammar-backend none --hicache-size 40 "
    "--cuda-graph-max-bs-decode 4 --chunked-prefill-size 8192"
)
# Of a Llama 8B, without the embedding; per token, and per pair of tokens in attention.
LINEAR_FLOPS = 2 * 7.5e9
ATTENTION_FLOPS = 2 * 2 * 4096 * 32 / 2
PAPER_FLOPS = 500e12


@dataclass(frozen=True)
class Sizes:
    """What is measured on this machine."""

    tokens: tuple[int, ...] = (8192, 32768, 100_000)
    hbm_tokens: int = 112_000
    filler_tokens: int = 28_000
    warm_up_tokens: tuple[int, ...] = (3000, 20_000)
    pair_tokens: int = 32_768
    kv_bytes_per_token: int = 131_072
    vocabulary: int = 128_000
    dram_bytes: int = 26 << 30
    disk_bytes: int = 40 << 30
    limit_bytes: int = 2 << 30
    rounds: int = 3
    arguments: tuple[str, ...] = tuple(ARGUMENTS.split())
    cuda: bool = True


TINY = Sizes(
    tokens=(512, 1024, 2048),
    hbm_tokens=3000,
    filler_tokens=1000,
    warm_up_tokens=(300,),
    pair_tokens=1024,
    kv_bytes_per_token=2048,
    vocabulary=2000,
    dram_bytes=1 << 30,
    disk_bytes=1 << 30,
    limit_bytes=64 * MIB,
    arguments=(),
    cuda=False,
)


@dataclass
class Log:
    """What was measured so far, on disk after every entry."""

    path: Path
    started: float = field(default_factory=time.monotonic)
    entries: list[dict[str, Any]] = field(default_factory=list)

    def add(self, arm: str, **what: Any) -> None:
        """One more measurement."""
        entry = {"at": round(time.monotonic() - self.started, 1), "arm": arm, **what}
        self.entries.append(entry)
        print(json.dumps(entry), flush=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"machine": _machine(), "entries": self.entries}, indent=1))
        temporary.replace(self.path)


class Arms:
    """One server and the prompts that go through it."""

    def __init__(self, log: Log, sizes: Sizes, server: Server, node: Node | None) -> None:
        self.log, self.sizes, self.server, self.node = log, sizes, server, node
        self.prompts = {n: random_prompt(n, n, sizes.vocabulary) for n in sizes.tokens}
        self._hbm: dict[int, Answer] = {}
        self._fillers = iter(range(1_000_000, 2_000_000))

    def warm_up(self) -> None:
        """Compiles kernels."""
        for tokens in self.sizes.warm_up_tokens:
            self.log.add("warm_up", tokens=tokens, seconds=self.fresh(tokens).seconds)

    def fresh(self, tokens: int) -> Answer:
        """A prompt that was never seen before."""
        return self.server.generate(
            random_prompt(next(self._fillers), tokens, self.sizes.vocabulary)
        )

    def measure(self, arm: str, tokens: int, **more: Any) -> Answer:
        """One request, with where its tokens came from and whether the reply was as from HBM."""
        before = self._loaded()
        answer = self.server.generate(self.prompts[tokens])
        tiers = {tier: count - before[tier] for tier, count in self._loaded().items()}
        entry: dict[str, Any] = {"tokens": tokens, "seconds": round(answer.seconds, 4), **more}
        entry |= {"cached": answer.cached, "agent_pages": tiers}
        if arm == "hbm":
            self._hbm[tokens] = answer
        elif tokens in self._hbm:
            hit = self._hbm[tokens]
            entry["same_ids"] = hit.token_ids == answer.token_ids
            pairs = zip(hit.logprobs, answer.logprobs, strict=False)
            entry["logprob_difference"] = max(abs(a - b) for a, b in pairs)
        self.log.add(arm, **entry)
        return answer

    def cold_and_hbm(self, tokens: int) -> None:
        """Computed, then there."""
        self.measure("recompute", tokens)
        for _ in range(self.sizes.rounds):
            self.measure("hbm", tokens)

    def flush(self, timeout_seconds: float = 60.0) -> bool:
        """Empties HBM and host pool; says how long SGLang refused."""
        seconds = self.server.flush(timeout_seconds)
        if seconds is None or seconds > 3.0:
            self.log.add("flush", seconds=seconds, refused_for=timeout_seconds)
        return seconds is not None

    def host_pool(self, rounds: int) -> None:
        """Pushed out of HBM by other prompts, still in SGLang's host pool."""
        for round_number in range(rounds):
            for tokens in self.sizes.tokens:
                self.server.generate(self.prompts[tokens])
            for _ in range(self.sizes.hbm_tokens // self.sizes.filler_tokens):
                self.fresh(self.sizes.filler_tokens)
            self._settle()
            for tokens in self.sizes.tokens:
                self.measure("host_pool", tokens, round=round_number)

    def _settle(self) -> None:
        """Waits, for a while, until the `file` backend writes no more."""
        deadline, count = time.monotonic() + 60.0, -1
        while self.server.backend == "file" and time.monotonic() < deadline:
            now = len(self.server.files())
            if now == count:
                return
            count = now
            time.sleep(2.0)

    def _loaded(self) -> dict[str, int]:
        if self.node is None:
            return {}
        stats = self.node.client.stats()
        return {tier: stats.get(f"loaded_{tier}_pages", 0) for tier in ("dram", "disk")}


def measure_limits(log: Log, sizes: Sizes) -> None:
    """memcpy by threads, PCIe both ways, O_DIRECT read and write."""
    _shared_memory(log, sizes)
    source, target = Memory(sizes.limit_bytes), Memory(sizes.limit_bytes)
    source.fill(os.urandom(1 << 20))
    for threads in (1, 2, 4, 8, 12, 16):
        seconds = min(copy_seconds(target, source, sizes.limit_bytes, threads) for _ in range(3))
        log.add("memcpy", threads=threads, gb_per_second=sizes.limit_bytes / seconds / GB)
    if sizes.cuda:
        _pcie(log)
    raw = WORK / "raw"
    write = best_write(raw, source, sizes.limit_bytes)
    log.add("raw_write", gb_per_second=write.rate / GB, how=str(write))
    raw_write(raw, source, sizes.limit_bytes, 4 * MIB, 8)
    read = best_read(raw, target, sizes.limit_bytes)
    log.add("raw_read", gb_per_second=read.rate / GB, how=str(read))
    raw.unlink()


def _pcie(log: Log) -> None:
    import torch

    host = torch.empty(2 << 30, dtype=torch.uint8, pin_memory=True)
    device = torch.empty(2 << 30, dtype=torch.uint8, device="cuda")
    for name, target, source in (("to_gpu", device, host), ("from_gpu", host, device)):
        best = 0.0
        for _ in range(5):
            torch.cuda.synchronize()
            begun = time.perf_counter()
            target.copy_(source, non_blocking=True)
            torch.cuda.synchronize()
            best = max(best, host.nbytes / (time.perf_counter() - begun) / GB)
        log.add(f"pcie_{name}", gb_per_second=best)


def measure_ours(log: Log, sizes: Sizes) -> None:
    """Every arm of SGLang with agentmem."""
    _shared_memory(log, sizes)
    mode = WORK / "mode"
    mode.write_text("on")
    node = Node(WORK / "ours", dram_bytes=sizes.dram_bytes, disk_bytes=sizes.disk_bytes)
    with _server(log, sizes, "agentmem", node, mode) as server:
        arms = Arms(log, sizes, server, node)
        arms.warm_up()
        for tokens in sizes.tokens:
            claim(node, f"prompt {tokens}", server.keys(arms.prompts[tokens]))
            arms.cold_and_hbm(tokens)
        arms.flush()
        _attempt(log, lambda: _dram(arms))
        _attempt(log, lambda: _disk(arms, node))
        _attempt(log, lambda: _pairs(arms, mode))
        _attempt(log, lambda: arms.host_pool(1))
        log.add("agent", stats=node.client.stats())


def _dram(arms: Arms) -> None:
    for round_number in range(arms.sizes.rounds):
        for tokens in arms.sizes.tokens:
            arms.measure("dram", tokens, round=round_number)
            arms.flush()


def _disk(arms: Arms, node: Node) -> None:
    for tokens, prompt in arms.prompts.items():
        seconds = wait_durable(node, arms.server.keys(prompt))
        arms.log.add("wait_durable", tokens=tokens, seconds=seconds)
    for round_number in range(arms.sizes.rounds):
        for tokens in arms.sizes.tokens:
            if round_number and tokens == max(arms.sizes.tokens) and round_number > 1:
                continue
            dropped = node.client.drop_dram()
            drop_page_cache(node.packs())
            arms.measure("disk", tokens, round=round_number, dropped_pages=dropped.pages)
            arms.flush()


def _pairs(arms: Arms, mode: Path) -> None:
    """A prefill right behind another one, whose pages are being stored meanwhile, or not."""
    tokens = arms.sizes.pair_tokens
    for round_number in range(2 * arms.sizes.rounds):
        for storing in ("off", "on") if round_number % 2 else ("on", "off"):
            mode.write_text(storing)
            first = arms.fresh(tokens)
            second = arms.fresh(tokens)
            arms.log.add(
                f"prefill_storing_{storing}",
                tokens=tokens,
                seconds=round(second.seconds, 4),
                first_seconds=round(first.seconds, 4),
                round=round_number,
            )
            arms.flush()
    mode.write_text("on")


def measure_stock(log: Log, sizes: Sizes) -> None:
    """Every arm of SGLang alone: its host pool and its `file` backend."""
    shutil.rmtree(WORK / "ours", ignore_errors=True)
    *short, longest = sizes.tokens
    with _server(log, sizes, "file", None, WORK / "mode") as server:
        arms = Arms(log, sizes, server, None)
        arms.warm_up()
        for tokens in short:
            arms.cold_and_hbm(tokens)
            _attempt(log, lambda tokens=tokens: _file(arms, tokens, sizes.rounds))  # type: ignore[misc]
        arms.cold_and_hbm(longest)
        _attempt(log, lambda: arms.host_pool(2))
        _attempt(log, lambda: _file(arms, longest, 1))


def measure_file(log: Log, sizes: Sizes) -> None:
    """SGLang's `file` backend alone, on a server that starts fast: without CUDA graphs."""
    smaller = tuple("16" if word == "40" else word for word in sizes.arguments)
    bare = (*smaller, "--disable-cuda-graph") if sizes.cuda else ()
    sizes = replace(sizes, arguments=bare, warm_up_tokens=sizes.warm_up_tokens[:1])
    with _server(log, sizes, "file", None, WORK / "mode") as server:
        arms = Arms(log, sizes, server, None)
        arms.warm_up()
        for tokens in sizes.tokens[1::-1]:
            arms.measure("recompute", tokens)
            arms.measure("hbm", tokens)
            _attempt(log, lambda tokens=tokens: _file(arms, tokens, 2))  # type: ignore[misc]


def _file(arms: Arms, tokens: int, rounds: int) -> None:
    server, pages = arms.server, len(arms.server.keys(arms.prompts[tokens]))
    begun, before = time.perf_counter(), len(server.files())
    complete = server.wait_for_files(pages, 90.0)
    arms.log.add(
        "file_stored",
        tokens=tokens,
        seconds=time.perf_counter() - begun,
        files=(before, len(server.files())),
        complete=complete,
    )
    if not arms.flush(90.0):
        raise BenchFailed("SGLang did not flush: the file backend cannot be measured")
    arms.measure("file_warm", tokens)
    for round_number in range(rounds):
        if not arms.flush():
            raise BenchFailed("SGLang did not flush")
        drop_page_cache(server.files())
        arms.measure("file", tokens, round=round_number)
    arms.flush()


def _attempt(log: Log, part: Callable[[], None]) -> None:
    """A part that fails leaves the others their turn."""
    try:
        part()
    except Exception as error:  # noqa: BLE001 - loop edge: what was measured before it stays worth having
        log.add("failed", why=f"{type(error).__name__}: {error}")


@contextlib.contextmanager
def _server(
    log: Log, sizes: Sizes, backend: Any, node: Node | None, mode: Path
) -> Iterator[Server]:
    ours = node is not None
    options = EngineOptions(
        model_path=_model(sizes),
        model_name="llama-8b-shape",
        fingerprint=Fingerprint(hashlib.sha256(json.dumps(SHAPE).encode()).digest()[:16]),
        context_tokens=131_072 if sizes.cuda else 8192,
        page_tokens=64,
        kv_bytes_per_token=sizes.kv_bytes_per_token,
        node_socket=node.settings.node_socket if node else WORK / "none.sock",
        hbm_tokens=sizes.hbm_tokens,
        host_pool_ratio=4.0,
        cuda=sizes.cuda,
        arguments=sizes.arguments,
        plugin_module="switchable",
        plugin_class="SwitchableStorage",
        plugin_config={"mode_file": str(mode)},
    )
    server = Server(options, WORK / f"engine-{backend}", backend, file_dir=WORK / "hicache")
    try:
        if ours:
            log.add("node_start", seconds=node.start(), native=_is_native())  # type: ignore[union-attr]
        log.add("engine_start", backend=backend, seconds=server.start())
        yield server
    finally:
        shutil.copy(WORK / f"engine-{backend}" / f"sglang-{backend}.log", log.path.parent)
        server.kill()
        if ours:
            shutil.copy(node.settings.data_dir / "node.log", log.path.parent)  # type: ignore[union-attr]
            node.kill()  # type: ignore[union-attr]
            node.remove()  # type: ignore[union-attr]


def _model(sizes: Sizes) -> Path:
    """A directory with the shape and some tokenizer: prompts are sent as ids."""
    model = make_tiny_model(WORK / "tiny")
    if not sizes.cuda:
        return model
    target = WORK / "model"
    shutil.copytree(model, target, dirs_exist_ok=True)
    (target / "model.safetensors").unlink(missing_ok=True)
    (target / "config.json").write_text(json.dumps(SHAPE))
    return target


def _shared_memory(log: Log, sizes: Sizes) -> None:
    """Makes room for the dram tier; half of the memory is the default of Linux."""
    free = shutil.disk_usage(SHARED_MEMORY).free
    if sizes.cuda and free < sizes.dram_bytes + (4 << 30):
        subprocess.run(["mount", "-o", "remount,size=75%", SHARED_MEMORY], check=False)
    now = shutil.disk_usage(SHARED_MEMORY).free
    log.add("shared_memory", free_bytes=free, now_bytes=now)


def _is_native() -> bool:
    from agentmem.native import datapath

    return datapath.is_native()


def _machine() -> dict[str, Any]:
    facts: dict[str, Any] = {
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        names = "name,driver_version,memory.total"
        command = ["nvidia-smi", f"--query-gpu={names}", "--format=csv,noheader"]
        facts["gpu"] = subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout.strip()
    return facts


def recompute_on_paper(tokens: int) -> float:
    """Seconds that a prefill takes at 500 TFLOP/s."""
    return (LINEAR_FLOPS * tokens + ATTENTION_FLOPS * tokens * tokens) / PAPER_FLOPS


def main() -> None:
    """One part, by name."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("limits", "ours", "stock", "file"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    WORK.mkdir(parents=True, exist_ok=True)
    parts = {
        "limits": measure_limits,
        "ours": measure_ours,
        "stock": measure_stock,
        "file": measure_file,
    }
    log = Log(given.out / f"{given.part}.json")
    parts[given.part](log, TINY if given.tiny else Sizes())


if __name__ == "__main__":
    main()
