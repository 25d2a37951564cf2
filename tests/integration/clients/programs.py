"""Runs what is in tests/clients and examples in the clients' environments."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CLIENTS = ROOT / "tests" / "clients"
_SECONDS_MAX = 280.0
_DETAIL_LINES = 24


def python_of(environment: str) -> Path:
    """The interpreter of `.venv-clients` or `.venv-openai1`."""
    path = ROOT / f".venv-{environment}" / "bin" / "python"
    if not path.exists():
        pytest.fail(f".venv-{environment} is not there; make it with `make setup`", pytrace=False)
    return path


def program_environment(given: Mapping[str, str]) -> dict[str, str]:
    """The environment of a client's program: nothing of this checkout, no proxy, no tracing."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return {**kept, "LANG": "C.UTF-8", "OPENAI_AGENTS_DISABLE_TRACING": "1", **given}


def run_checks(
    environment: str, paths: Sequence[str], given: Mapping[str, str], folder: Path, *options: str
) -> None:
    """Runs check files (relative to tests/clients) with the environment's own pytest, and fails
    with what failed in them."""
    report = folder / "report.xml"
    command = [str(python_of(environment)), "-m", "pytest", "-c", str(CLIENTS / "pytest.ini")]
    command += [f"--junitxml={report}", "-q", *options]
    try:
        done = subprocess.run(
            [*command, *(str(CLIENTS / path) for path in paths)],
            cwd=CLIENTS,
            env=program_environment(given),
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS_MAX,
        )
    except subprocess.TimeoutExpired as expired:
        tail = (expired.stdout or b"")[-3_000:]
        pytest.fail(f"not done in {_SECONDS_MAX:.0f} s:\n{tail!r}", pytrace=False)
    sys.stdout.write(done.stdout[-2_000:])
    problems, ran = _problems(report)
    if done.returncode != 0 or problems or ran == 0:
        told = "\n\n".join(problems) or done.stdout[-6_000:] + done.stderr[-3_000:]
        pytest.fail(f"{len(problems)} of {ran} checks failed\n\n{told}", pytrace=False)


def _problems(report: Path) -> tuple[list[str], int]:
    """What failed, each with the end of its traceback; and how many checks there were."""
    if not report.exists():
        return [], 0
    # pytest wrote it: no stranger's XML.
    cases = list(ElementTree.parse(report).iter("testcase"))
    problems = []
    for case in cases:
        for kind in ("failure", "error"):
            for found in case.findall(kind):
                lines = (found.text or "").strip().splitlines()
                detail = "\n".join(f"    {line}" for line in lines[-_DETAIL_LINES:])
                problems.append(f"{case.get('classname')}::{case.get('name')} {kind}\n{detail}")
    return problems, len(cases)


def run_program(
    environment: str | None, path: Path, given: Mapping[str, str], *arguments: str
) -> str:
    """Runs a program of examples/ and returns what it printed; fails with what it said."""
    command = ["bash", str(path)] if environment is None else [str(python_of(environment)), path]
    done = subprocess.run(
        [*map(str, command), *arguments],
        env=program_environment(given),
        capture_output=True,
        text=True,
        check=False,
        timeout=_SECONDS_MAX,
    )
    if done.returncode != 0:
        pytest.fail(f"{path.name}:\n{done.stdout}\n{done.stderr[-4_000:]}", pytrace=False)
    return done.stdout
