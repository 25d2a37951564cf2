"""Directories that are made once and verified ever after.

A directory is made beside its place, flushed, given a manifest with every file's checksum, and
renamed; so it is whole or not there. Later calls compare sizes and modification times, and
checksums where those differ (a copy or restored backup); what fails is made again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agentmem.engine.sglang.model.files import (
    flush_directory,
    flush_tree,
    sha256_of,
    write_atomically,
)

MANIFEST = "agentmem-manifest.json"

Progress = Callable[[str], None]


def build_once(
    target: Path, *, recipe: str, build: Callable[[Path], None], progress: Progress
) -> Path:
    """`target`, made by `build(directory)` unless it is there, whole, and of the same `recipe`.

    `recipe` names everything that the result depends on. Processes wait for each other; what an
    interrupted one left is removed.
    """
    if _quick_fault(target, recipe) is None:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target, progress):
        fault = _thorough_fault(target, recipe)
        if fault is None:
            return target
        if target.exists():
            progress(f"{target.name} is made again: {fault}")
        for leftover in target.parent.glob(f".{target.name}.partial-*"):
            shutil.rmtree(leftover)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
        try:
            build(partial)
            _publish(partial, target, recipe)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def _publish(partial: Path, target: Path, recipe: str) -> None:
    for file in partial.iterdir():
        file.chmod(0o644)
    partial.chmod(0o755)
    flush_tree(partial)
    _write_manifest(partial, recipe, _describe(partial))
    if target.exists():
        # A rename cannot replace a directory that is not empty.
        shutil.rmtree(target)
    partial.rename(target)
    flush_directory(target.parent)


@contextlib.contextmanager
def _lock(target: Path, progress: Progress) -> Iterator[None]:
    with (target.parent / f".{target.name}.lock").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"another process is making {target.name}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _describe(directory: Path) -> dict[str, dict[str, Any]]:
    return {
        file.name: {
            "sha256": sha256_of(file),
            "bytes": file.stat().st_size,
            "mtime_ns": file.stat().st_mtime_ns,
        }
        for file in sorted(directory.iterdir())
        if file.name != MANIFEST
    }


def _write_manifest(directory: Path, recipe: str, files: dict[str, dict[str, Any]]) -> None:
    content = {"recipe": recipe, "files": files}
    write_atomically(directory / MANIFEST, json.dumps(content, indent=2).encode() + b"\n")


def _manifest_files(target: Path, recipe: str) -> dict[str, dict[str, Any]] | str:
    """The manifest's files, or what is wrong with it."""
    if not target.exists():
        return "it is not there"
    try:
        manifest = json.loads((target / MANIFEST).read_text())
        files = manifest["files"]
        made_by = manifest["recipe"]
    except (OSError, ValueError, KeyError, TypeError):
        return "its manifest is missing or damaged"
    if made_by != recipe:
        return "it was made from something else or by another version"
    return files if isinstance(files, dict) else "its manifest is damaged"


def _quick_fault(target: Path, recipe: str) -> str | None:
    files = _manifest_files(target, recipe)
    if isinstance(files, str):
        return files
    for name, facts in files.items():
        try:
            found = (target / name).stat()
        except OSError:
            return f"{name} is missing"
        if found.st_size != facts.get("bytes"):
            return f"{name} has {found.st_size} bytes instead of {facts.get('bytes')}"
        if found.st_mtime_ns != facts.get("mtime_ns"):
            return f"{name} was touched"
    return None


def _thorough_fault(target: Path, recipe: str) -> str | None:
    if (fault := _quick_fault(target, recipe)) is None:
        return None
    files = _manifest_files(target, recipe)
    if isinstance(files, str):
        return files
    for name, facts in files.items():
        file = target / name
        if not file.is_file():
            return fault
        if sha256_of(file) != facts.get("sha256"):
            return f"{name} is damaged (its checksum is wrong)"
        # Whole after all: note its new time, so that the next look is quick.
        facts["mtime_ns"] = file.stat().st_mtime_ns
    _write_manifest(target, recipe, files)
    return None
