"""How SGLang is started: flags, environment and files. Pure: nothing here starts anything.

The reasons for most flags are SGLang's behaviours listed in docs/sglang.md.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentmem.core import Fingerprint
from agentmem.engine.sglang.activate import DEVICE_VARIABLE, PROOF_VARIABLE

SHIMS = Path(__file__).parent / "cpu" / "shims"
PLUGIN_MODULE = "agentmem.engine.sglang.plugin"
PLUGIN_CLASS = "PageStorage"

# On a CPU the pools lie in ordinary memory, which nobody sized for them.
_CPU_HBM_TOKENS_MAX = 32_768
_CPU_HBM_BYTES_MAX = 2 << 30
# SGLang stops a prefetch after base + per_ki * tokens/1024 seconds and recomputes the rest. The
# deadline of the plugin itself is shorter, so this only bounds a plugin that hangs.
_PREFETCH_TIMEOUT_BASE_SECONDS = 15.0
_PREFETCH_TIMEOUT_PER_KI_TOKEN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What a worker is asked to serve. Sizes in tokens and bytes; `hbm_tokens` 0: automatic."""

    model_path: Path
    model_name: str
    fingerprint: Fingerprint
    context_tokens: int
    page_tokens: int
    kv_bytes_per_token: int
    node_socket: Path
    hbm_tokens: int = 0
    host_pool_ratio: float = 2.0
    cuda: bool = False
    cpu_threads: int = 0
    reasoning_parser: str = ""
    arguments: tuple[str, ...] = ()
    plugin_module: str = PLUGIN_MODULE
    plugin_class: str = PLUGIN_CLASS
    plugin_config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """A command, its environment, and the files that it needs (path -> content)."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    files: Mapping[Path, str]
    url: str
    run_dir: Path
    layout: str


def memory_layout(*, cuda: bool) -> str:
    """Layout of HiCache's host pool, part of the fingerprint. Both keep a page's K and V whole."""
    return "page_first" if cuda else "page_first_direct"


def hbm_tokens_of(options: EngineOptions) -> int:
    """Tokens of the engine's KV pool; 0 leaves the choice to SGLang (on a GPU)."""
    if options.hbm_tokens or options.cuda:
        return options.hbm_tokens
    affordable = _CPU_HBM_BYTES_MAX // options.kv_bytes_per_token
    return max(options.context_tokens, min(_CPU_HBM_TOKENS_MAX, affordable))


def plan_launch(
    options: EngineOptions, *, python: str, port: int, run_dir: Path, engine_id: str
) -> LaunchPlan:
    """The whole start of one SGLang server on 127.0.0.1:`port`, its files below `run_dir`."""
    layout = memory_layout(cuda=options.cuda)
    storage_config = run_dir / "hicache.json"
    command = [
        *(python, "-m", "sglang.launch_server"),
        *("--model-path", str(options.model_path), "--served-model-name", options.model_name),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--context-length", str(options.context_tokens)),
        *("--page-size", str(options.page_tokens)),
        "--skip-server-warmup",
        # An idle scheduler burns a core otherwise.
        "--sleep-on-idle",
        # `output_ids` are cumulative otherwise.
        "--incremental-streaming-output",
        "--enable-cache-report",
        # The pin: pages of sessions that are open are evicted last.
        "--enable-session-radix-cache",
        "--enable-hierarchical-cache",
        *("--hicache-ratio", str(options.host_pool_ratio)),
        *("--hicache-mem-layout", layout),
        *("--hicache-io-backend", "kernel" if options.cuda else "direct"),
        *("--hicache-write-policy", "write_through"),
        # `wait_complete` hangs every later resume when the storage thread has died.
        *("--hicache-storage-prefetch-policy", "timeout"),
        *("--hicache-storage-backend", "dynamic"),
        *("--hicache-storage-backend-extra-config", f"@{storage_config}"),
        # A weak model that may write any blanks between JSON's tokens writes nothing else.
        "--constrained-json-disable-any-whitespace",
        *("--log-level", "info"),
    ]
    if options.reasoning_parser:
        # Grammars then begin after the thoughts, where a request says so.
        command += ["--reasoning-parser", options.reasoning_parser]
    tokens = hbm_tokens_of(options)
    if tokens:
        command += ["--max-total-tokens", str(tokens)]
    if options.cuda:
        # The one that takes seeds (see `seeding`) together with top-p and top-k.
        command += ["--sampling-backend", "pytorch"]
    else:
        command += ["--device", "cpu", "--attention-backend", "torch_native"]
        command += ["--disable-overlap-schedule", "--mem-fraction-static", "0.5"]
    return LaunchPlan(
        # The last one of a flag wins in argparse.
        command=(*command, *options.arguments),
        environment=_environment(options, run_dir),
        files={storage_config: json.dumps(_storage_config(options, run_dir, engine_id, layout))},
        url=f"http://127.0.0.1:{port}",
        run_dir=run_dir,
        layout=layout,
    )


def _storage_config(
    options: EngineOptions, run_dir: Path, engine_id: str, layout: str
) -> dict[str, Any]:
    return {
        "backend_name": "agentmem",
        "module_path": options.plugin_module,
        "class_name": options.plugin_class,
        "interface_v1": 1,
        "prefetch_threshold": options.page_tokens,
        "prefetch_timeout_base": _PREFETCH_TIMEOUT_BASE_SECONDS,
        "prefetch_timeout_per_ki_token": _PREFETCH_TIMEOUT_PER_KI_TOKEN_SECONDS,
        "socket": str(options.node_socket),
        "engine_id": engine_id,
        "fingerprint": options.fingerprint.digest.hex(),
        "layout": layout,
        "page_tokens": options.page_tokens,
        "page_bytes": options.page_tokens * options.kv_bytes_per_token,
        "proof_dir": str(run_dir),
        **options.plugin_config,
    }


def _environment(options: EngineOptions, run_dir: Path) -> dict[str, str]:
    """Additions to the worker's environment."""
    environment = {
        # SGLang compiles its page hash at first use, with the ninja of this environment.
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # A single rank needs no TCP store; SGLang's would listen on all interfaces.
        "SGLANG_DISTRIBUTED_INIT_METHOD_OVERRIDE": f"file://{run_dir / 'rendezvous'}",
        "GLOO_SOCKET_IFNAME": "lo",
        PROOF_VARIABLE: str(run_dir),
        DEVICE_VARIABLE: "cuda" if options.cuda else "cpu",
    }
    if not options.cuda:
        environment |= {
            "SGLANG_USE_CPU_ENGINE": "1",
            "OMP_NUM_THREADS": str(options.cpu_threads or os.cpu_count() or 1),
            "PYTHONPATH": os.pathsep.join(
                part for part in (str(SHIMS), os.environ.get("PYTHONPATH", "")) if part
            ),
        }
    return environment


def cuda_is_there() -> bool:
    """Whether this machine has an NVIDIA GPU, told without importing torch."""
    return Path("/dev/nvidia0").exists()
