from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentmem.administer import create_tenant
from agentmem.app import migrate_catalog
from agentmem.cli import cli
from agentmem.config import Settings
from agentmem.errors import InvalidRequest


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    settings = Settings(data_dir=tmp_path)
    migrate_catalog(settings)
    create_tenant(settings, "acme")
    return ["--data-dir", str(tmp_path)]


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    cli(arguments, result_action="return_value")
    return capsys.readouterr().out


def test_a_plan_from_its_file_to_a_tenant(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = tmp_path / "pro.toml"
    written.write_text("requests_per_minute = 60\n[lapse]\nnotice_seconds = 5\n")
    out = run(["plan", "create", "pro", str(written), *data], capsys)
    assert out.startswith("pro@1  plan_")
    assert "  requests_per_minute: none -> 60\n" in out
    assert "  lapse.notice_seconds: 604800 -> 5\n" in out

    mine = tmp_path / "mine.json"
    mine.write_text('{"requests_per_minute": 90}')
    given = ["plan", "set", "acme", "pro", "--overrides", str(mine), *data]
    assert run([*given, "--dry-run"], capsys).startswith("would change:\n")
    shown = json.loads(run(["plan", "show", "--tenant", "acme", *data], capsys))
    assert (shown["plan"], shown["requests_per_minute"]) == ("default@0", None)
    assert run(given, capsys).startswith("acme has pro@1\n")
    shown = json.loads(run(["plan", "show", "--tenant", "acme", *data], capsys))
    assert (shown["plan"], shown["requests_per_minute"], shown["state"]) == ("pro@1", 90, "active")
    out = run(["plan", "set", "acme", "pro", "--no-overrides", *data], capsys)
    assert "  requests_per_minute: 90 -> 60\n" in out
    assert run(["plan", "list", *data], capsys).splitlines()[0] == "default@0  built in"
    assert json.loads(run(["plan", "show", "pro@1", *data], capsys))["requests_per_minute"] == 60


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', "\x00"])
def test_a_file_that_is_no_plan(data: list[str], tmp_path: Path, text: str) -> None:
    written = tmp_path / "bad.json"
    written.write_text(text)
    with pytest.raises(InvalidRequest):
        cli(["plan", "create", "pro", str(written), *data], result_action="return_value")
