"""The start of SGLang as data: every flag that one of SGLang's behaviours asks for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from agentmem.core import Fingerprint
from agentmem.engine.sglang.launch import EngineOptions, LaunchPlan, hbm_tokens_of, plan_launch

OPTIONS = EngineOptions(
    model_path=Path("/models/m"),
    model_name="m",
    fingerprint=Fingerprint(bytes(16)),
    context_tokens=8192,
    page_tokens=64,
    kv_bytes_per_token=23_040,
    node_socket=Path("/run/node.sock"),
)


def plan(options: EngineOptions = OPTIONS) -> LaunchPlan:
    return plan_launch(
        options, python="python", port=1234, run_dir=Path("/run/engine"), engine_id="e1"
    )


def value(launch: LaunchPlan, flag: str) -> str:
    return launch.command[launch.command.index(flag) + 1]


def test_thinking_ends_before_a_grammar_begins() -> None:
    assert "--reasoning-parser" not in plan().command
    assert value(plan(replace(OPTIONS, reasoning_parser="qwen3")), "--reasoning-parser") == "qwen3"


def test_listens_on_loopback_only() -> None:
    launch = plan()
    assert value(launch, "--host") == "127.0.0.1"
    assert launch.environment["SGLANG_DISTRIBUTED_INIT_METHOD_OVERRIDE"].startswith("file://")
    assert launch.environment["GLOO_SOCKET_IFNAME"] == "lo"


def test_flags_that_behaviours_of_sglang_ask_for() -> None:
    launch = plan()
    for flag in ("--sleep-on-idle", "--incremental-streaming-output", "--enable-cache-report"):
        assert flag in launch.command
    assert "--enable-session-radix-cache" in launch.command
    assert value(launch, "--hicache-storage-prefetch-policy") == "timeout"
    assert value(launch, "--hicache-storage-backend") == "dynamic"


def test_storage_config_says_what_the_fingerprint_stands_for() -> None:
    launch = plan()
    path = Path(value(launch, "--hicache-storage-backend-extra-config").removeprefix("@"))
    config = json.loads(launch.files[path])
    assert config["interface_v1"] == 1
    assert config["prefetch_threshold"] == 64
    assert config["page_bytes"] == 64 * 23_040
    assert config["layout"] == launch.layout == "page_first_direct"
    assert config["fingerprint"] == "00" * 16


def test_gpu_has_no_cpu_support_and_sizes_its_own_pool() -> None:
    launch = plan(replace(OPTIONS, cuda=True))
    assert "--device" not in launch.command
    assert "--max-total-tokens" not in launch.command
    assert "SGLANG_USE_CPU_ENGINE" not in launch.environment
    assert value(launch, "--hicache-mem-layout") == "page_first"


def test_arguments_of_the_operator_come_last() -> None:
    launch = plan(replace(OPTIONS, arguments=("--attention-backend", "triton")))
    assert launch.command[-2:] == ("--attention-backend", "triton")


@pytest.mark.parametrize(
    ("kv_bytes", "context", "expected"),
    [
        (2048, 8192, 32_768),  # capped by tokens
        (131_072, 8192, 16_384),  # capped by 2 GiB
        (131_072, 32_768, 32_768),  # but one context always fits
    ],
)
def test_pool_on_a_cpu_is_bounded(kv_bytes: int, context: int, expected: int) -> None:
    options = replace(OPTIONS, kv_bytes_per_token=kv_bytes, context_tokens=context)
    assert hbm_tokens_of(options) == expected
    assert hbm_tokens_of(replace(options, hbm_tokens=7)) == 7
