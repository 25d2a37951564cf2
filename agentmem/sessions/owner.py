"""Who holds a lease: a process, named so that others on its host can tell when it is gone."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import psutil

_SEPARATOR = "/"


def make_owner() -> str:
    """A name for this process: host, pid namespace, boot, pid, start time, and a random end.

    The random part keeps two services in one process apart.
    """
    pid = os.getpid()
    return _SEPARATOR.join((*_where(), str(pid), _start_time(pid) or "0", secrets.token_hex(4)))


def is_dead(owner: str) -> bool:
    """True only when the owner ran under this very kernel and pid namespace and is gone.

    Of owners elsewhere nothing is known: their leases run out by themselves.
    """
    parts = owner.split(_SEPARATOR)
    if len(parts) != 5 or tuple(parts[:2]) != _where() or not parts[2].isdigit():
        return False
    return _start_time(int(parts[2])) != parts[3]


def _where() -> tuple[str, str]:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    # Containers share the boot id but not the pids.
    namespace = Path("/proc/self/ns/pid").readlink().name.strip("pid:[]")
    return boot, namespace


def _start_time(pid: int) -> str | None:
    """A process's start in clock ticks since boot, which a recycled pid does not share."""
    try:
        if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return None
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (OSError, psutil.NoSuchProcess):
        return None
    # The command name may hold spaces and parentheses: fields count from behind the last one.
    return stat.rpartition(")")[2].split()[19]
