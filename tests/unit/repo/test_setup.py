"""scripts/setup.sh and environment.py: what they decide, without installing anything."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]


def load(name: str) -> ModuleType:
    """A script of scripts/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"scripts/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The scripts by name. Each puts its folder on sys.path."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = {name: load(name) for name in ("environment", "client_environments")}
    return {**modules, "installing": sys.modules["installing"]}


@pytest.fixture
def environment(scripts: dict[str, ModuleType], tmp_path: Path) -> Any:
    """An environment in an empty folder instead of this checkout's."""
    listed = tmp_path / "list.txt"
    listed.write_text("thing==1.0\n")
    return scripts["installing"].Environment(tmp_path / ".venv", (listed,))


def install(venv: Path) -> Path:
    """A package of one file as pip lays it; returns the file."""
    site = venv / "lib" / "python3.11" / "site-packages"
    info = site / "thing-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "thing.py").write_text("x = 1\n")
    (info / "RECORD").write_text("thing.py,sha256=abc,6\nthing-1.0.dist-info/RECORD,,\n")
    return site / "thing.py"


def test_an_environment_without_a_stamp_is_not_current(environment: Any) -> None:
    assert not environment.is_current()


@pytest.mark.parametrize("key", ["root", "python", "inputs"])
def test_the_stamp_holds_what_the_environment_depends_on(environment: Any, key: str) -> None:
    environment.venv.mkdir()
    environment.stamp.write_text(json.dumps(environment.wanted_stamp()))
    assert environment.is_current()
    environment.stamp.write_text(json.dumps(environment.wanted_stamp() | {key: "other"}))
    assert not environment.is_current()
    environment.stamp.write_text("{")
    assert not environment.is_current()


def test_another_list_makes_another_environment(environment: Any) -> None:
    environment.venv.mkdir()
    environment.stamp.write_text(json.dumps(environment.wanted_stamp()))
    environment.inputs[0].write_text("thing==1.1\n")
    assert not environment.is_current()


def test_files_missing_or_cut_short_are_noticed(
    scripts: dict[str, ModuleType], environment: Any
) -> None:
    damaged_file = scripts["installing"].damaged_file
    file = install(environment.venv)
    assert damaged_file(environment.venv) is None
    file.write_text("x =")
    assert "thing.py" in damaged_file(environment.venv)
    file.unlink()
    assert "thing.py" in damaged_file(environment.venv)
    (file.parent / "thing-1.0.dist-info" / "RECORD").unlink()
    assert "no RECORD" in damaged_file(environment.venv)


def test_an_environment_without_python_is_made_again(environment: Any) -> None:
    environment.venv.mkdir()
    assert environment.why_unusable() == "it has no Python"


def test_the_clients_environments_have_the_python_of_venv(
    scripts: dict[str, ModuleType], environment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`.venv` may keep the Python that it has; one of the clients is made again with it."""
    monkeypatch.delenv("PYTHON", raising=False)
    made = subprocess.run([sys.executable, "-m", "venv", str(environment.venv)], check=True)
    assert made.returncode == 0
    other = "3.12" if sys.version_info[:2] == (3, 11) else "3.11"
    monkeypatch.setattr(scripts["installing"], "version_of_python", lambda: other)
    assert environment.why_unusable() is None
    clients = scripts["client_environments"].client_environment("clients")
    assert clients.same_python
    strict = dataclasses.replace(environment, same_python=True)
    assert strict.why_unusable() == f"it has Python {sys.version_info[0]}.{sys.version_info[1]}"


def test_a_missing_compiler_is_named_with_its_package(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    error = scripts["installing"].SetupError
    with pytest.raises(error, match=r"no-such-compiler is missing.*\n.*Install"):
        scripts["environment"].check_machine()


@pytest.mark.parametrize("which", ["main", "clients"])
def test_a_full_disk_is_refused_before_anything_is_fetched(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    usage = type("Usage", (), {"free": 500_000_000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    announce = {
        "main": lambda: scripts["environment"].announce("cuda"),
        "clients": lambda: scripts["client_environments"].install("clients"),
    }
    with pytest.raises(scripts["installing"].SetupError, match=r"0\.5 GB are free"):
        announce[which]()


def test_pip_is_kept_from_installing_elsewhere(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_TARGET", "elsewhere")
    monkeypatch.setenv("PIP_FIND_LINKS", "wheels")
    found = scripts["installing"].pip_environment(tmp_path)
    assert "PIP_TARGET" not in found
    assert found["PIP_FIND_LINKS"] == "wheels"
    assert found["TMPDIR"] == str(tmp_path)


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


@pytest.mark.parametrize("script", ["environment", "client_environments"])
def test_the_check_is_quiet(script: str) -> None:
    command = [sys.executable, "-I", "-S", f"scripts/{script}.py", "--check"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode in (0, 1)
    assert (run.stdout, run.stderr) == ("", "")


def test_only_tests_need_the_clients() -> None:
    """`make demo` and `make serve` fetch nothing that they do not run."""
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^test: setup ", makefile, re.MULTILINE)
    assert "setup.sh --clients" in makefile
    for target in ("demo", "serve"):
        assert re.search(rf"^{target}: runtime  ##", makefile, re.MULTILINE)
