"""docs/metrics.md names every metric, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from agentmem.node.calls import COUNTERS
from agentmem.sessions.nodestate import PREFIX
from agentmem.telemetry import Metrics

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"
ROW = re.compile(r"^\| `(agentmem_\w+)` \| (\w+) \| .+ \|$", re.MULTILINE)


def test_every_metric_is_documented_with_its_kind() -> None:
    rows = ROW.findall(PAGE.read_text())
    documented = dict(rows)
    assert len(documented) == len(rows), "a metric has one row"
    gateway = {metric.name: metric.type for metric in Metrics().registry.collect()}
    counters = {PREFIX + name: "counter" for name in COUNTERS}
    node = {name: kind for name, kind in documented.items() if name not in gateway}
    assert {name: documented.get(name) for name in gateway} == gateway
    assert all(name.startswith(PREFIX) for name in node)
    assert {name for name, kind in node.items() if kind == "counter"} == set(counters)
