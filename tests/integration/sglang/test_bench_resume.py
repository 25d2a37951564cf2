"""The resume bench, small: one round with the tiny model on the real engine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agentmem.bench import limits
from agentmem.bench.resume import run_resume_bench
from agentmem.engine.sglang.model.tiny import make_tiny_model

pytestmark = pytest.mark.sglang


async def test_both_systems_bring_the_prompt_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "READ_BLOCKS", (limits.MIB,))
    monkeypatch.setattr(limits, "THREADS", (2,))
    model = make_tiny_model(tmp_path / "tiny")
    result = await asyncio.to_thread(
        run_resume_bench, rounds=1, tokens=900, model=str(model), directory=tmp_path, load="always"
    )
    rows = {row["name"]: row for row in result["results"]}
    assert list(rows) == ["resume_disk", "resume_disk_floor"]
    for row in rows.values():
        assert row["why"] == ""
        assert row["value"] > 0
        assert row["cached_tokens"]["disk"] == 896
    assert "896 tokens" in rows["resume_disk"]["detail"], "of SGLang's own backend"
    assert result["load"]["asked"] == "always"
