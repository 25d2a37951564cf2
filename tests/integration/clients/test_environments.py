"""The clients' environments are what their lists say, and nothing is missing from them."""

from __future__ import annotations

import json
import subprocess

import pytest

from .programs import ROOT, python_of

# Printed by the environment's own Python: its distributions, and what each needs of the others.
_PROBE = """
import importlib.metadata as metadata, json
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
found, needs = {}, []
for one in metadata.distributions():
    found[canonicalize_name(one.name)] = one.version
    for text in one.requires or ():
        wanted = Requirement(text)
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
            needs.append([one.name, canonicalize_name(wanted.name), str(wanted.specifier)])
from packaging.specifiers import SpecifierSet
missing = [n for n in needs if n[1] not in found or not SpecifierSet(n[2]).contains(
    found[n[1]], prereleases=True)]
print(json.dumps([found, missing]))
"""
_PIPS_OWN = {"pip", "setuptools", "wheel"}


@pytest.mark.parametrize("environment", ["clients", "openai1"])
def test_installed_is_what_is_pinned(environment: str) -> None:
    done = subprocess.run(
        [str(python_of(environment)), "-I", "-c", _PROBE],
        capture_output=True,
        text=True,
        check=True,
    )
    found, missing = json.loads(done.stdout)
    assert missing == [], "what a package needs is in no list"
    lines = (ROOT / "requirements" / f"{environment}.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    canonical = {name.lower().replace("_", "-").replace(".", "-"): v for name, v in pinned.items()}
    assert {k: v for k, v in found.items() if k not in _PIPS_OWN} == canonical


def test_agentmem_is_not_in_them() -> None:
    for environment in ("clients", "openai1"):
        command = [str(python_of(environment)), "-I", "-c", "import agentmem"]
        done = subprocess.run(command, capture_output=True, check=False)
        assert done.returncode != 0, environment
