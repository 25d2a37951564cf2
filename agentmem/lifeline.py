"""Ties the life of a process to its parent's, through the kernel: no orphan survives a kill -9."""

from __future__ import annotations

import ctypes
import os
import signal

# How a supervisor tells its pid to a child that is to die with it.
PARENT_VARIABLE = "AGENTMEM_PARENT_PID"

_PR_SET_PDEATHSIG = 1  # prctl(2)


def die_with_parent(parent_pid: int) -> None:
    """Asks for SIGKILL when the parent dies. Raises SystemExit if it is gone already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        raise SystemExit(f"the parent process {parent_pid} ended during the start")
