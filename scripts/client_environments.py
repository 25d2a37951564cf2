"""Makes the environments of the clients' tests, or brings them up to date.

They are apart from `.venv` because the clients need other versions than SGLang does, and apart from
each other because both versions of `openai` are tested. Standard library only; run through
`scripts/setup.sh --clients` with `.venv`'s Python, whose version they share.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

# Isolated mode (-I) leaves a script's own folder out.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from installing import ROOT, Environment, SetupError, bytes_below, run, say

# In GB, measured with Python 3.11: at most 0.1 to download, 0.4 kept in both, and as much again
# while pip unpacks.
NEEDED_GB = 1.0

# By the name of their list in requirements/: what is imported to try them out.
SELF_CHECKS = {
    "clients": "import openai, agents, langchain_openai, openresponses_types, schemathesis, pytest",
    "openai1": "import openai, pytest",
}


def client_environment(name: str) -> Environment:
    """`.venv-NAME`, made of requirements/NAME.txt."""
    inputs = (ROOT / "requirements" / f"{name}.txt", Path(__file__).resolve())
    return Environment(ROOT / f".venv-{name}", inputs, same_python=True)


def install(name: str) -> None:
    """Leaves one environment complete. Raises SetupError."""
    started = time.monotonic()
    environment = client_environment(name)
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < NEEDED_GB:
        raise SetupError(
            f"{free:.1f} GB are free on the disk of {ROOT}; the clients' tests need {NEEDED_GB} GB."
        )
    environment.prepare()
    with environment.scratch_space():
        requirements = str(ROOT / "requirements" / f"{name}.txt")
        environment.pip("install", "--no-deps", "--requirement", requirements)
    environment.check_imports(SELF_CHECKS[name])
    environment.write_stamp()
    kept = bytes_below(environment.venv) / 1e6
    say(f"ready: {environment.name} holds {kept:.0f} MB, {time.monotonic() - started:.0f} s")


def set_up() -> None:
    """Leaves all of them complete. Raises SetupError."""
    for name in SELF_CHECKS:
        if not client_environment(name).is_current():
            install(name)


if __name__ == "__main__":
    # With `--check` it only says whether there is nothing to do.
    if sys.argv[1:] == ["--check"]:
        sys.exit(0 if all(client_environment(name).is_current() for name in SELF_CHECKS) else 1)
    sys.exit(run(set_up))
