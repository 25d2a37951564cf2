"""Builds the C library beside its Python twin: `python -m agentmem.native.build`.

Any C11 compiler for Linux on x86-64 does; what the machine has beyond that instruction set (AVX2,
AVX-512) is found out at run time. The library needs no header of Python, xxHash or OpenSSL.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "src"
LIBRARY = Path(__file__).resolve().parent / "libagentmem.so"
_FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-shared", "-Wall", "-Wextra", "-pthread", "-s")


def build(target: Path = LIBRARY) -> Path:
    """Compiles the sources to `target`, which appears whole or not at all.

    Raises RuntimeError with what the compiler said.
    """
    compiler = shlex.split(os.environ.get("CC") or "gcc")
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    sources = sorted(str(path) for path in SOURCES.glob("*.c"))
    command = [*compiler, *_FLAGS, "-o", str(temporary), *sources]
    try:
        built = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise RuntimeError(
            f"{compiler[0]} is missing: agentmem then moves pages in Python, which is slow"
        ) from None
    if built.returncode != 0:
        temporary.unlink(missing_ok=True)
        raise RuntimeError(f"{shlex.join(command)} failed:\n{built.stderr.strip()}")
    temporary.replace(target)
    return target


if __name__ == "__main__":
    try:
        print(f"built {build()}")
    except RuntimeError as error:
        sys.exit(f"agentmem.native: {error}")
