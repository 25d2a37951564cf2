"""Sessions and their memory as they are shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agentmem.catalog.records import Session
from agentmem.core import Tier, durable_pages
from agentmem.errors import SessionBusy


@dataclass(frozen=True, slots=True)
class SessionView:
    """A session as shown: its row, whether something holds its lease, and its full pages."""

    session: Session
    running: bool
    pages: int


@dataclass(frozen=True, slots=True)
class TierShare:
    """What one tier holds of a session; a page that lies in two tiers counts in both."""

    pages: int
    tokens: int
    bytes: int


@dataclass(frozen=True, slots=True)
class SessionResidency:
    """Where a session's pages lie below the GPU. `durable_pages` counts all durable ones."""

    tokens: int
    pages: int
    durable_pages: int
    durable_position: int
    tiers: Mapping[Tier, TierShare]


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list, and whether there is more."""

    items: list[SessionView]
    has_more: bool


def conversation_of(session_id: str) -> str:
    """The id of the conversation whose log this session is."""
    return f"conv_{session_id.partition('_')[2]}"


def busy(session: Session, *, retry_after_seconds: float) -> SessionBusy:
    """The error for a session that is held, by the name that its owner knows it by."""
    if session.origin == "conversation":
        name = conversation_of(session.id)
        return SessionBusy(name, retry_after_seconds=retry_after_seconds, kind="conversation")
    return SessionBusy(session.id, retry_after_seconds=retry_after_seconds)


def expected_pages(session: Session) -> int:
    """Full pages that the session has: one more when hibernating made the one at the log's edge."""
    if session.page_tokens is None:
        return 0
    pages = durable_pages(session.tokens, session.page_tokens)
    return max(pages, session.durable_position // session.page_tokens)


def view_of(session: Session, *, running: bool) -> SessionView:
    """The view of a row."""
    return SessionView(session, running=running, pages=expected_pages(session))
