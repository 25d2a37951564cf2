"""How the node agent is: for `/readyz`, which says it, and for `/metrics`, which counts it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from agentmem.errors import NodeUnavailable
from agentmem.sessions.ports import NodeStats, Pages

PREFIX = "agentmem_node_"
# Several scrapers and probes ask the agent no more often than this.
_FRESH_SECONDS = 1.0


class NodeState(Collector):
    """The agent's last word. Turns survive whatever it says: they compute again what is not there.

    As a collector it tells what the last `refresh` found: `agentmem_node_up`, and each of the
    agent's gauges and counters as `agentmem_node_<name>`, while it answers.
    """

    def __init__(self, pages: Pages, registry: CollectorRegistry) -> None:
        self._pages = pages
        self._asking = asyncio.Lock()
        self._asked_at = float("-inf")
        self._stats: NodeStats | None = None
        self._silence = "not asked yet"
        registry.register(self)

    @property
    def silence(self) -> str | None:
        """Why the agent does not answer; None when it does."""
        return None if self._stats is not None else self._silence

    @property
    def degraded(self) -> Mapping[str, str]:
        """What does not work as it should, by part."""
        return {"node": self._silence} if self._stats is None else self._stats.degraded

    async def refresh(self) -> None:
        """Asks the agent, unless that was done a moment ago. Its silence is a finding, no error."""
        async with self._asking:
            if time.monotonic() - self._asked_at < _FRESH_SECONDS:
                return
            try:
                self._stats = await self._pages.stats()
            except NodeUnavailable as error:
                self._stats, self._silence = None, error.message
            self._asked_at = time.monotonic()

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        stats = self._stats
        yield GaugeMetricFamily(
            f"{PREFIX}up", "Whether the node agent answers.", value=int(stats is not None)
        )
        degraded = GaugeMetricFamily(
            f"{PREFIX}degraded", "Parts that do not work as they should.", labels=["part"]
        )
        for part in self.degraded:
            degraded.add_metric([part], 1)
        yield degraded
        if stats is None:
            return
        for name, value in stats.gauges.items():
            yield GaugeMetricFamily(PREFIX + name, _help(name), value=value)
        for name, value in stats.counters.items():
            yield CounterMetricFamily(PREFIX + name, _help(name), value=value)


def _help(name: str) -> str:
    return f"Of the node agent: {name.replace('_', ' ')}."
