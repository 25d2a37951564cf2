"""Ids and times of the catalog's rows."""

from __future__ import annotations

import re
import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_ID_CHARACTERS = 26
_RANDOM_BITS = 80
_PATTERN = re.compile(r"[a-z]{2,8}[_-][0-9a-hjkmnp-tv-z]{26}\Z")


def now_us() -> int:
    """Microseconds since the epoch, UTC."""
    return time.time_ns() // 1_000


def new_id(prefix: str, separator: str = "_") -> str:
    """`prefix_` plus 26 characters: 48 bits of milliseconds, then 80 random ones.

    Ids made later sort later, which keeps new rows together in the index; the random part makes
    them unguessable.
    """
    value = (time.time_ns() // 1_000_000) << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
    characters = [_ALPHABET[(value >> (5 * i)) & 31] for i in range(_ID_CHARACTERS)]
    return f"{prefix}{separator}{''.join(reversed(characters))}"


def is_id(text: str, prefix: str, separator: str = "_") -> bool:
    """Whether `text` could have come from `new_id(prefix)`: what else no query needs to see."""
    return text.startswith(prefix + separator) and _PATTERN.match(text) is not None
