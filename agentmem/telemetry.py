"""Names of log fields and metrics, in one place. Never content, never secrets.

Log fields: `request_id`, `tenant_id`, `session_id`, `turn_id`, `worker_id`.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from structlog.typing import FilteringBoundLogger

_TTFT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TURN_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_LAG_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60)


def get_logger(name: str) -> FilteringBoundLogger:
    """A structured logger; events are short sentences without content."""
    logger: FilteringBoundLogger = structlog.get_logger(name)
    return logger


def configure_logging(level: str) -> None:
    """JSON lines on stderr, from `level` on; the standard library's loggers included."""
    number = getattr(logging, level.upper())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(
        stream=sys.stderr, level=number, format="%(levelname)s %(name)s %(message)s"
    )
    # Its access log names full paths; the gateway writes its own.
    logging.getLogger("uvicorn.access").disabled = True
    # One line for each call of the engine is for those who debug it.
    logging.getLogger("httpx2").setLevel(max(number, logging.WARNING))
    logging.getLogger("alembic").setLevel(logging.WARNING)


class Metrics:
    """The gateway's metrics on a registry of their own, so that two gateways fit in a process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter(
            "http_requests", "Requests answered.", "route", "method", "status"
        )
        self.turns = self._counter("turns", "Turns, by how they ended.", "model", "outcome")
        self.tokens = self._counter(
            "tokens", "Tokens of committed turns, by kind.", "model", "kind"
        )
        self.rebases = self._counter(
            "log_rebases", "Turns whose rendering did not continue the log.", "model"
        )
        self.node_failures = self._counter(
            "node_failures", "Calls of the node agent that failed.", "operation"
        )
        self.unattributed = self._counter(
            "loaded_tokens_unattributed", "Loaded tokens whose tier the agent did not tell."
        )
        self.pages_remade = self._counter(
            "pages_remade", "Pages made again, since the engine held them and no tier did."
        )
        self.pages_expected = self._counter(
            "pages_expected",
            "Pages that the logs of turns should have below the GPU.",
        )
        self.pages_received = self._counter(
            "pages_received", "Of these, pages that the node agent had soon after the turn."
        )
        self.pages_missing = self._counter(
            "pages_missing",
            "Of these, pages that it did not get; they are made again.",
        )
        self.leases_lost = self._counter("leases_lost", "Turns fenced off by a newer lease.")
        self.durability_given_up = self._counter(
            "durability_given_up", "Logs whose pages did not become durable in time."
        )
        self.pages_unpromised = self._counter(
            "pages_unpromised",
            "Pages that are kept as cache only, by why they are not promised.",
            "reason",
        )
        self.hibernations = self._counter(
            "sessions_hibernated", "Sessions hibernated, by cause: asked or idle.", "cause"
        )
        self.expired = self._counter(
            "expired", "What was deleted at the end of its term, by kind.", "kind"
        )
        self.lapse_failures = self._counter(
            "lapse_failures", "Sessions left for a later attempt, by what was tried.", "operation"
        )
        self.durability_oldest = Gauge(
            "agentmem_durability_oldest_seconds",
            "Age of the oldest log whose pages are claimed and not all durable yet; 0: none.",
            registry=self.registry,
        )
        self.ttft = self._histogram(
            "ttft_seconds", "Request to first token.", _TTFT_BUCKETS, "model"
        )
        self.turn_seconds = self._histogram(
            "turn_seconds", "Request to committed turn.", _TURN_BUCKETS, "model"
        )
        self.durability_lag = self._histogram(
            "durability_lag_seconds", "Commit of a turn to all its pages durable.", _LAG_BUCKETS
        )
        self.turns_running = Gauge(
            "agentmem_turns_running", "Turns running now.", registry=self.registry
        )

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"agentmem_{name}", help_text, labels, registry=self.registry)

    def _histogram(
        self, name: str, help_text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(
            f"agentmem_{name}", help_text, labels, buckets=buckets, registry=self.registry
        )


def bind_log_fields(**fields: Any) -> None:
    """Adds fields to every log line of the current request."""
    structlog.contextvars.bind_contextvars(**fields)
