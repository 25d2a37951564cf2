"""Retention classes: how long KV is promised to come back, and how long an id is valid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

RetentionName = Literal["ephemeral", "standard", "persistent", "archive"]
NAMES: tuple[RetentionName, ...] = get_args(RetentionName)

_MINUTE, _HOUR, _DAY, _YEAR = 60, 3_600, 86_400, 365 * 86_400


@dataclass(frozen=True, slots=True)
class RetentionClass:
    """A named pair of promises, in seconds from the last turn on."""

    name: RetentionName
    kv_retention_seconds: int
    log_retention_seconds: int


CLASSES: dict[RetentionName, RetentionClass] = {
    "ephemeral": RetentionClass("ephemeral", 30 * _MINUTE, _DAY),
    "standard": RetentionClass("standard", 12 * _HOUR, 30 * _DAY),
    "persistent": RetentionClass("persistent", 30 * _DAY, _YEAR),
    "archive": RetentionClass("archive", _YEAR, _YEAR),
}


def class_of(kv_retention_seconds: int) -> RetentionName:
    """The strongest class that promises no more than so long; ephemeral for anything shorter."""
    name: RetentionName = "ephemeral"
    for terms in CLASSES.values():
        if terms.kv_retention_seconds <= kv_retention_seconds:
            name = terms.name
    return name
