from __future__ import annotations

import os
import subprocess
import sys

from agentmem.sessions.owner import is_dead, make_owner

PROGRAM = "from agentmem.sessions.owner import make_owner; print(make_owner(), flush=True)"


def owner_of_a_process(extra: str = "") -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM + extra], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    owner = process.stdout.readline().strip()
    process.stdout.close()
    return process, owner


def test_oneself_is_alive_and_no_two_are_equal() -> None:
    assert not is_dead(make_owner())
    assert make_owner() != make_owner()
    assert len(make_owner()) <= 200


def test_a_process_that_ended_is_dead() -> None:
    process, owner = owner_of_a_process("; import time; time.sleep(30)")
    assert not is_dead(owner)
    process.kill()
    while process.poll() is None and not is_dead(owner):
        pass  # killed but not yet waited for: a zombie is dead as well
    assert is_dead(owner)
    process.wait()
    assert is_dead(owner)


def test_a_pid_used_again_is_another_process() -> None:
    boot, namespace, _, _, end = make_owner().split("/")
    assert is_dead(f"{boot}/{namespace}/{os.getpid()}/1/{end}")


def test_of_others_nothing_is_known() -> None:
    boot, namespace, _, _, end = make_owner().split("/")
    assert not is_dead(f"another-boot/{namespace}/999999999/1/{end}")
    assert not is_dead(f"{boot}/another-namespace/999999999/1/{end}")
    assert not is_dead("someone")
    assert not is_dead(f"{boot}/{namespace}/pid/1/{end}")
