"""API keys: `am_<24 characters>_<64 hex digits>`; the first part finds, the rest proves."""

from __future__ import annotations

import re
import secrets

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_ID_CHARACTERS = 24
_SECRET_BYTES = 32
_PATTERN = re.compile(r"(am_[0-9a-z]{24})_[0-9a-f]{64}\Z")


def new_api_key() -> tuple[str, str]:
    """A key to show once, and its prefix."""
    prefix = "am_" + "".join(secrets.choice(_ALPHABET) for _ in range(_ID_CHARACTERS))
    return f"{prefix}_{secrets.token_hex(_SECRET_BYTES)}", prefix


def key_prefix(api_key: str) -> str | None:
    """The prefix of a well-formed key, else None."""
    match = _PATTERN.match(api_key)
    return match.group(1) if match else None
