"""scripts/setup.sh and environment.py: what they decide, without installing anything."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """environment.py, looking at an empty folder instead of this checkout's .venv."""
    spec = importlib.util.spec_from_file_location("environment", ROOT / "scripts/environment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    venv = tmp_path / ".venv"
    monkeypatch.setattr(module, "VENV", venv)
    monkeypatch.setattr(module, "VENV_PYTHON", venv / "bin" / "python")
    monkeypatch.setattr(module, "STAMP", venv / "stamp.json")
    return module


def install(venv: Path) -> Path:
    """A package of one file as pip lays it; returns the file."""
    site = venv / "lib" / "python3.11" / "site-packages"
    info = site / "thing-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "thing.py").write_text("x = 1\n")
    (info / "RECORD").write_text("thing.py,sha256=abc,6\nthing-1.0.dist-info/RECORD,,\n")
    return site / "thing.py"


def test_an_environment_without_a_stamp_is_not_current(environment: ModuleType) -> None:
    assert not environment.is_current()


@pytest.mark.parametrize("key", ["root", "python", "inputs"])
def test_the_stamp_holds_what_the_environment_depends_on(environment: ModuleType, key: str) -> None:
    environment.VENV.mkdir()
    environment.STAMP.write_text(json.dumps(environment.wanted_stamp()))
    assert environment.is_current()
    environment.STAMP.write_text(json.dumps(environment.wanted_stamp() | {key: "other"}))
    assert not environment.is_current()
    environment.STAMP.write_text("{")
    assert not environment.is_current()


def test_files_missing_or_cut_short_are_noticed(environment: ModuleType) -> None:
    file = install(environment.VENV)
    assert environment.damaged_file(environment.VENV) is None
    file.write_text("x =")
    assert "thing.py" in environment.damaged_file(environment.VENV)
    file.unlink()
    assert "thing.py" in environment.damaged_file(environment.VENV)
    (file.parent / "thing-1.0.dist-info" / "RECORD").unlink()
    assert "no RECORD" in environment.damaged_file(environment.VENV)


def test_an_environment_without_python_is_made_again(environment: ModuleType) -> None:
    environment.VENV.mkdir()
    assert environment.why_unusable() == "it has no Python"


def test_a_missing_compiler_is_named_with_its_package(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(environment.SetupError, match=r"no-such-compiler is missing.*\n.*Install"):
        environment.check_machine()


def test_a_full_disk_is_refused_before_anything_is_fetched(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1_500_000_000})
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(environment.SetupError, match=r"1\.5 GB are free"):
        environment.announce("cuda")


def test_pip_is_kept_from_installing_elsewhere(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_TARGET", "elsewhere")
    monkeypatch.setenv("PIP_FIND_LINKS", "wheels")
    found = environment.pip_environment()
    assert "PIP_TARGET" not in found
    assert found["PIP_FIND_LINKS"] == "wheels"


def test_a_python_that_does_not_run_is_said_to_be() -> None:
    run = subprocess.run(
        ["bash", "scripts/setup.sh"],
        cwd=ROOT,
        env={**os.environ, "PYTHON": "/bin/false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "PYTHON=/bin/false is not a working Python 3.11 or 3.12" in run.stderr


def test_the_check_is_quiet_and_says_no_for_another_python() -> None:
    command = [sys.executable, "-I", "-S", "scripts/environment.py", "--check"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode in (0, 1)
    assert (run.stdout, run.stderr) == ("", "")
