"""How long a request's KV is to be kept, as OpenAI's API says it: retention classes.

| said | class |
|---|---|
| `retention` (agentmem's own) | the class of that name |
| `prompt_cache_options.ttl`, or a breakpoint's: the longest of `30m`, `12h` | ephemeral, standard |
| `prompt_cache_retention`: `in_memory`, `24h` | ephemeral, persistent |

The first line that applies holds. Pages are found by what they hold and all of them are kept, so
that breakpoints and keys need not say where a prefix ends or where it lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired

from pydantic import ConfigDict
from typing_extensions import TypedDict

from agentmem.plans.classes import RetentionName

Ttl = Literal["30m", "12h"]
LegacyRetention = Literal["in_memory", "in-memory", "24h"]

_STRICT = ConfigDict(extra="forbid", strict=True)
_OF_TTL: dict[str, RetentionName] = {"30m": "ephemeral", "12h": "standard"}
_OF_LEGACY: dict[str, RetentionName] = {
    "in_memory": "ephemeral",
    "in-memory": "ephemeral",
    "24h": "persistent",
}


class CacheBreakpoint(TypedDict):
    """Where a prefix ends that is worth keeping, and for how long."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    mode: Literal["explicit"]
    ttl: NotRequired[Ttl | None]


def retention_name(
    named: RetentionName | None,
    options_ttl: str | None,
    breakpoints: Sequence[Mapping[str, Any]],
    legacy: str | None,
) -> RetentionName | None:
    """See the module's docstring; None: the tenant's policy."""
    if named is not None:
        return named
    ttls = [options_ttl, *(mark.get("ttl") for mark in breakpoints)]
    for ttl in ("12h", "30m"):
        if ttl in ttls:
            return _OF_TTL[ttl]
    return None if legacy is None else _OF_LEGACY[legacy]
