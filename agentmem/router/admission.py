"""Admission of resumes: SGLang loads nothing for a prompt once half its host pool is being fetched.

So tokens that are being loaded stay below that half, per worker; the rest wait in line.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class TokenGate:
    """A first-come, first-served semaphore counted in tokens.

    Half-open invariant: 0 <= held <= limit, except that one prompt larger than the limit is let
    in when it is alone.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._holders = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def hold(self, tokens: int) -> AsyncIterator[None]:
        """Waits until `tokens` fit, holds them for the block. 0 tokens never wait."""
        if tokens <= 0:
            yield
            return
        await self._enter(tokens)
        try:
            yield
        finally:
            self._leave(tokens)

    async def _enter(self, tokens: int) -> None:
        if not self._waiting and self._fits(tokens):
            self._take(tokens)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (tokens, turn)
        self._waiting.append(entry)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._leave(tokens)  # it was our turn just as the caller gave up
            else:
                # `_wake` may have come before us and dropped the entry already.
                with contextlib.suppress(ValueError):
                    self._waiting.remove(entry)
                self._wake()  # whoever stood behind may fit
            raise

    def _fits(self, tokens: int) -> bool:
        return self._holders == 0 or self.held + tokens <= self.limit

    def _take(self, tokens: int) -> None:
        self.held += tokens
        self._holders += 1

    def _leave(self, tokens: int) -> None:
        self.held -= tokens
        self._holders -= 1
        assert self.held >= 0, "more tokens left the gate than entered"
        assert self._holders >= 0, "more holders left the gate than entered"
        self._wake()

    def _wake(self) -> None:
        while self._waiting:
            tokens, turn = self._waiting[0]
            # Given up, by a task that has not run since: nothing of it may be taken.
            if not turn.cancelled():
                if not self._fits(tokens):
                    return
                self._take(tokens)
                turn.set_result(None)
            self._waiting.popleft()
