"""Which formats SGLang's rules and ours find by a model's chat template."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentmem.engine.sglang.parsing.process import parsing_environment
from agentmem.testing.models import write_tokenizer

pytestmark = pytest.mark.sglang

_QWEN3 = "{% if enable_thinking is defined and enable_thinking is false %}<think>{% endif %}"
# Enough of each family's template for it to be told from the others.
TEMPLATES = {
    "qwen3": (_QWEN3 + "<tool_call>", True, ("qwen", "qwen3")),
    "qwen2.5": ('<tool_call>\\n{"name": <function-name>', True, ("hermes", "")),
    "llama3": ("Environment: ipython", True, ("llama3", "")),
    "mistral": ("[AVAILABLE_TOOLS][TOOL_CALLS]", True, ("mistral", "")),
    "deepseek r1": (
        "<｜tool▁calls▁begin｜>{{ '<｜Assistant｜><think>\\n' }}",
        True,
        ("deepseekv3", "deepseek-r1"),
    ),
    "deepseek v3.1": (
        "{% if not thinking is defined %}{% set thinking = false %}{% endif %}"
        "<｜tool▁calls▁begin｜><｜tool▁sep｜>",
        True,
        ("deepseekv31", "deepseek-v3"),
    ),
    "minimax": ("<minimax:tool_call><think>", True, ("minimax-m2", "minimax")),
    "no tools": ("{{ messages }}", False, ("hermes", "")),
    "unknown": ("{{ messages }}{{ tools }}", True, ("", "")),
}
PROGRAM = """
import json, sys
from pathlib import Path
from agentmem.engine.sglang.parsing.formats import detect_formats
found = {}
for name, (template, has_tools, set_parsers) in json.load(sys.stdin).items():
    formats = detect_formats(Path(sys.argv[1]), template, has_tools=has_tools, **set_parsers)
    found[name] = [formats.tool_parser, formats.reasoning_parser]
print(json.dumps(found))
"""


def test_formats_by_template_and_by_setting(tmp_path: Path) -> None:
    unset = {"tool_parser": "", "reasoning_parser": ""}
    off = {"tool_parser": "none", "reasoning_parser": "none"}
    asked = {name: (text, tools, unset) for name, (text, tools, _) in TEMPLATES.items()}
    asked["switched off"] = (TEMPLATES["qwen3"][0], True, off)
    asked["set"] = ("", True, {"tool_parser": "pythonic", "reasoning_parser": "kimi"})
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(write_tokenizer(tmp_path / "model"))],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env={**os.environ, **parsing_environment()},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = {name: list(names) for name, (_, _, names) in TEMPLATES.items()}
    expected |= {"switched off": ["", ""], "set": ["pythonic", "kimi"]}
    assert json.loads(done.stdout.splitlines()[-1]) == expected
