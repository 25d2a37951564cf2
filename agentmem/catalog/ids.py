"""Ids and times of the catalog's rows."""

from __future__ import annotations

import re
import secrets
import time

from agentmem.core import ProjectId, TenantId

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
# Pairs of characters, ten bits at a time.
_PAIRS = [high + low for high in _ALPHABET for low in _ALPHABET]
_ID_CHARACTERS = 26
_RANDOM_BITS = 80
_SHIFTS = range(5 * _ID_CHARACTERS - 10, -1, -10)
_PATTERN = re.compile(r"[a-z]{2,8}[_-][0-9a-hjkmnp-tv-z]{26}\Z")


def now_us() -> int:
    """Microseconds since the epoch, UTC."""
    return time.time_ns() // 1_000


def new_id(prefix: str, separator: str = "_") -> str:
    """`prefix_` plus 26 characters: 48 bits of milliseconds, then 80 random ones.

    Ids made later sort later, which keeps new rows together in the index; the random part makes
    them unguessable.
    """
    random_bits = int.from_bytes(secrets.token_bytes(_RANDOM_BITS // 8))
    value = (time.time_ns() // 1_000_000) << _RANDOM_BITS | random_bits
    pairs = [_PAIRS[(value >> shift) & 1023] for shift in _SHIFTS]
    return f"{prefix}{separator}{''.join(pairs)}"


def is_id(text: str, prefix: str, separator: str = "_") -> bool:
    """Whether `text` could have come from `new_id(prefix)`: what else no query needs to see."""
    return text.startswith(prefix + separator) and _PATTERN.match(text) is not None


def default_project(tenant_id: TenantId) -> ProjectId:
    """The project that a tenant has from the start. What names no project is its: rows from
    before there were projects, above all, which no migration had to touch."""
    return ProjectId(f"prj_{tenant_id.partition('_')[2]}")
