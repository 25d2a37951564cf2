"""Real English text that every installation has: agentmem's own documentation strings."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import agentmem

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def documentation() -> str:
    """All docstrings of the package, module by module, as one text."""
    return "\n\n".join(_docstrings(Path(agentmem.__file__).parent))


def _docstrings(package: Path) -> Iterator[str]:
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node)):
                name = getattr(node, "name", path.stem)
                yield f"{name}: {text}"


def excerpts(count: int, words: int) -> list[str]:
    """`count` consecutive excerpts of `words` words each.

    Raises ValueError when there is not enough text.
    """
    all_words = documentation().split(" ")
    if len(all_words) < count * words:
        raise ValueError(f"the documentation has {len(all_words)} words, not {count * words}")
    return [" ".join(all_words[at * words : (at + 1) * words]) for at in range(count)]
