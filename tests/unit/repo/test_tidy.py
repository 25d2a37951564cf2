"""The repository's own rules, each failure told as file:line."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = ROOT / "agentmem"
SHIMS = PACKAGE / "engine" / "sglang" / "cpu" / "shims"

FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70
VAGUE_NAMES = {"common", "helpers", "manager", "misc", "util", "utils"}
EDGE = re.compile(r"#.*\b(loop|plugin) edge: \S")
# Put together here, so that this file does not find itself.
UNFINISHED = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3)) + r")\b")
MACHINE_PATH = re.compile(r"(?<![\w.}/-])/(?:work|root|home)" + r"/[\w.]")

Function = ast.FunctionDef | ast.AsyncFunctionDef
Named = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def tracked() -> tuple[Path, ...]:
    """Files that git tracks or would track; all files where this is no checkout."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listing.returncode != 0:
        return tuple(p for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    names = listing.stdout.decode().split("\0")
    return tuple(path for name in names if name and (path := ROOT / name).is_file())


def sources() -> Iterator[Path]:
    """Python files of the package."""
    return (path for path in tracked() if path.suffix == ".py" and path.is_relative_to(PACKAGE))


def is_migration(path: Path) -> bool:
    """Whether this is one step of the catalog's schema: a list of statements, as Alembic has it."""
    return path.parent.name == "versions"


@functools.cache
def text(path: Path) -> str:
    """A file's text; nothing of a binary file."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


@functools.cache
def tree(path: Path) -> ast.Module:
    """A source file, parsed."""
    return ast.parse(text(path), filename=str(path))


def at(path: Path, line: int, what: str) -> str:
    """One finding."""
    return f"{path.relative_to(ROOT)}:{line}: {what}"


def report(findings: list[str]) -> None:
    """Fails with all findings, one a line."""
    if findings:
        pytest.fail("\n".join(["", *findings]), pytrace=False)


def matches(pattern: re.Pattern[str], what: str) -> list[str]:
    """Where a pattern is in tracked files."""
    return [
        at(path, number, f"{what}: {found[0]}")
        for path in tracked()
        for number, line in enumerate(text(path).splitlines(), 1)
        if (found := pattern.search(line))
    ]


def test_files_are_of_a_size_to_be_read() -> None:
    lengths = ((path, len(text(path).splitlines())) for path in sources())
    report([at(p, n, f"over {FILE_LINES_MAX} lines") for p, n in lengths if n > FILE_LINES_MAX])


def test_functions_fit_a_screen() -> None:
    findings = []
    for path in sources():
        for node in [] if is_migration(path) else ast.walk(tree(path)):
            if isinstance(node, Function):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    findings.append(at(path, node.lineno, f"{node.name} has {lines} lines"))
    report(findings)


def test_modules_are_named_after_what_they_hold() -> None:
    report([at(p, 1, "says nothing") for p in sources() if p.stem in VAGUE_NAMES])


def catches_all(handler: ast.ExceptHandler) -> bool:
    """Whether it swallows what its author did not think of. One that ends in a raise does not."""
    if isinstance(handler.body[-1], ast.Raise):
        return False
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(
        kind is None or (isinstance(kind, ast.Name) and kind.id in ("Exception", "BaseException"))
        for kind in kinds
    )


def test_everything_is_caught_only_where_a_comment_says_why() -> None:
    findings = []
    for path in sources():
        lines = text(path).splitlines()
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ExceptHandler) and catches_all(node):
                near = lines[max(0, node.lineno - 2) : node.lineno]
                if not any(EDGE.search(line) for line in near):
                    what = "catches everything without '# loop edge: why' or '# plugin edge: why'"
                    findings.append(at(path, node.lineno, what))
    report(findings)


def test_nothing_is_left_for_later() -> None:
    report(matches(UNFINISHED, "unfinished"))


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    report(matches(MACHINE_PATH, "machine path"))


def test_public_names_are_explained() -> None:
    """Modules, classes and functions; methods are explained by their class or its protocol."""
    findings = []
    for path in sources():
        if path.is_relative_to(SHIMS) or is_migration(path):
            continue
        module = tree(path)
        if ast.get_docstring(module) is None:
            findings.append(at(path, 1, "the module has no docstring"))
        for node in module.body:
            if not isinstance(node, Named) or node.name.startswith("_"):
                continue
            if ast.get_docstring(node) is None:
                findings.append(at(path, node.lineno, f"{node.name} has no docstring"))
    report(findings)
