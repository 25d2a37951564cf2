"""Starting and ending the engine's process, with commands that are not SGLang."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from agentmem.engine.sglang.launch import LaunchPlan
from agentmem.engine.sglang.process import SglangProcess, sweep_shared_memory
from agentmem.errors import EngineFailed


def plan(tmp_path: Path, environment: dict[str, str]) -> LaunchPlan:
    return LaunchPlan(
        command=(sys.executable, "-m", "sglang.launch_server", "--no-such-flag"),
        environment=environment,
        files={},
        url="http://127.0.0.1:1",
        run_dir=tmp_path / "run",
        layout="page_first",
    )


async def test_a_server_that_ends_at_its_start_is_reported_with_its_log(tmp_path: Path) -> None:
    broken = tmp_path / "site"
    (broken / "sglang").mkdir(parents=True)
    (broken / "sglang" / "__init__.py").touch()
    (broken / "sglang" / "launch_server.py").write_text("raise SystemExit('no such flag')")
    process = SglangProcess(plan(tmp_path, {"PYTHONPATH": str(broken)}), tmp_path / "log")
    with pytest.raises(EngineFailed, match="no such flag"):
        await process.start(deadline_seconds=30, progress=lambda _: None)
    process.kill()
    assert process.pids() == []


async def test_a_server_that_never_answers_is_given_up_and_killed(tmp_path: Path) -> None:
    hanging = tmp_path / "site"
    (hanging / "sglang").mkdir(parents=True)
    (hanging / "sglang" / "__init__.py").touch()
    (hanging / "sglang" / "launch_server.py").write_text(
        "import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)"
    )
    process = SglangProcess(plan(tmp_path, {"PYTHONPATH": str(hanging)}), tmp_path / "log")
    with pytest.raises(EngineFailed, match="did not answer within 1 s"):
        await process.start(deadline_seconds=1, progress=lambda _: None)
    pids = process.pids()
    assert len(pids) == 2
    process.kill()
    for pid in pids:
        # An orphan may stay a zombie where nobody reaps it.
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_sweep_takes_only_what_no_process_has_open() -> None:
    stale = Path("/dev/shm/sglang_loads_agentmem_test_stale.shm")
    used = Path("/dev/shm/sglang_loads_agentmem_test_used.shm")
    stale.write_bytes(b"x")
    used.write_bytes(b"x")
    code = f"import time; f = open({str(used)!r}); print('open', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert sweep_shared_memory() >= 1
        assert not stale.exists()
        assert used.exists()
    finally:
        holder.kill()
        holder.communicate()
    sweep_shared_memory()
    assert not used.exists()
