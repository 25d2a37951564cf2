"""The gateway bench, small: it runs, and its rows say what they should."""

from __future__ import annotations

import asyncio

import pytest

from agentmem.bench import gateway
from agentmem.bench.report import row_of, table


async def test_every_row_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {
        "TOKEN_SECONDS": 0.002,
        "REPLY_TOKENS": 8,
        "REQUESTS_PER_ROUND": 16,
        "MEMORY_WARM_UP_REQUESTS": 20,
        "HISTORY_TOKENS": (2_000,),
        "_HISTORY_TURNS": 2,
    }
    for name, value in small.items():
        monkeypatch.setattr(gateway, name, value)
    result = await asyncio.to_thread(
        gateway.run_gateway_bench, rounds=1, memory_requests=20, history_tokens=(2_000,)
    )
    rows = {row["name"]: row for row in result["results"]}
    assert list(rows) == [
        "ttft_added_p50",
        "ttft_added_p99",
        "throughput",
        "rss_growth",
        "resent_history",
    ]
    assert 0 < rows["throughput"]["value"] < 2
    assert rows["resent_history"]["limit"] > 0
    assert "throughput" in table(result)


def test_a_row_may_want_more_instead_of_less() -> None:
    made = {"unit": "x", "limit": 1.0, "target": 0.95, "detail": ""}
    assert row_of("share", [0.9, 0.96, 0.97], **made, more=True).met  # type: ignore[arg-type]
    assert not row_of("share", [0.9], **made, more=True).met  # type: ignore[arg-type]
    assert row_of("seconds", [0.9], **made).met  # type: ignore[arg-type]
