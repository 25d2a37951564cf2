"""What an API key may do."""

from __future__ import annotations

from collections.abc import Iterable

from agentmem.catalog.keys import DEFAULT_SCOPES
from agentmem.errors import InvalidRequest

INFERENCE = "inference"
SESSIONS_READ = "sessions:read"
BILLING_READ = "billing:read"
ADMIN = "admin"
SCOPES = (INFERENCE, SESSIONS_READ, BILLING_READ, ADMIN)


def scopes_text(scopes: Iterable[str] | None) -> str:
    """Scopes as they are stored, in one order; None: those that a key has by default.

    Raises InvalidRequest for an unknown one, or for none at all.
    """
    if scopes is None:
        return DEFAULT_SCOPES
    wanted = set(scopes)
    unknown = sorted(wanted - set(SCOPES))
    if unknown or not wanted:
        named = f"{unknown[0]!r} is no scope" if unknown else "A key needs a scope"
        raise InvalidRequest(f"{named}; there are {', '.join(SCOPES)}.", param="scopes")
    return " ".join(scope for scope in SCOPES if scope in wanted)


def scopes_of(text: str) -> frozenset[str]:
    """Stored scopes as a set."""
    return frozenset(text.split())
