"""Which sessions one start of a worker probably still holds in HBM: no question, no waiting."""

from __future__ import annotations

from collections import OrderedDict

from agentmem.core import SessionId


class WarmSessions:
    """The sessions that this gateway last ran on the worker, as many as its HBM takes.

    A model of the engine's least-recently-used eviction, on the cautious side: pages shared by
    forks count for each of them, and after a restart of the gateway nothing is warm.
    """

    def __init__(self, tokens_max: int) -> None:
        self._tokens_max = tokens_max
        self._tokens = 0
        self._sessions: OrderedDict[SessionId, int] = OrderedDict()

    def touch(self, session_id: SessionId, tokens: int) -> None:
        """The worker has just computed or loaded this session's log of `tokens` tokens."""
        self.forget(session_id)
        self._sessions[session_id] = tokens
        self._tokens += tokens
        while self._tokens > self._tokens_max and self._sessions:
            _, evicted = self._sessions.popitem(last=False)
            self._tokens -= evicted

    def forget(self, session_id: SessionId) -> None:
        """The session was let go of."""
        self._tokens -= self._sessions.pop(session_id, 0)

    def __contains__(self, session_id: object) -> bool:
        return session_id in self._sessions
