"""The programs in examples/ run, show what they say, and are what the docs show."""

from __future__ import annotations

import itertools
import re
import shutil

import pytest

from .programs import ROOT, run_program
from .served import ServedGateway

EXAMPLES = ROOT / "examples"
DOCS = ROOT / "docs" / "clients"
# Page: the program that it shows.
PAGES = {
    "openai.md": "openai_python.py",
    "openai-agents.md": "openai_agents.py",
    "langchain.md": "langchain_chat.py",
    "curl.md": "curl.sh",
}
_LINE = re.compile(r"^(.+): (\d+) tokens, (\d+) from the cache$", re.MULTILINE)


@pytest.mark.parametrize(
    ("environment", "program"),
    [
        ("clients", "openai_python.py"),
        ("clients", "openai_agents.py"),
        ("clients", "langchain_chat.py"),
    ],
)
def test_python(served: ServedGateway, environment: str, program: str) -> None:
    output = run_program(environment, EXAMPLES / program, served.environment())
    lines = [(how, int(tokens), int(cached)) for how, tokens, cached in _LINE.findall(output)]
    assert len(lines) >= 4, output
    for (how, before, _), (again, _, cached) in itertools.pairwise(lines):
        if how == again:
            assert cached >= 0.9 * before, output


@pytest.mark.skipif(shutil.which("jq") is None, reason="the example needs jq")
def test_curl(served: ServedGateway) -> None:
    output = run_program(None, EXAMPLES / "curl.sh", served.environment())
    assert "from the cache" in output
    assert "deleted: true" in output
    assert output.rstrip().endswith("data: [DONE]")


@pytest.mark.parametrize("page", sorted(PAGES))
def test_the_docs_show_the_program(page: str) -> None:
    program = EXAMPLES / PAGES[page]
    language = "bash" if program.suffix == ".sh" else "python"
    blocks = re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert program.read_text() in blocks, (
        f"docs/clients/{page} does not show examples/{program.name}"
    )


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.iterdir()} == set(PAGES.values())
