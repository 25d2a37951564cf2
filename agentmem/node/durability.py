"""Waiting for pages to become durable."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from agentmem.core import PageKey


class _Waiter:
    def __init__(self, missing: set[PageKey]) -> None:
        self.missing = missing
        self.done = asyncio.Event()


class DurabilityWaiters:
    """Who waits for which page."""

    def __init__(self, is_durable: Callable[[PageKey], bool]) -> None:
        self._is_durable = is_durable
        self._waiters: dict[PageKey, set[_Waiter]] = {}

    def awaited(self, key: PageKey) -> bool:
        """Whether someone waits for this page: its write-behind then goes first."""
        return key in self._waiters

    def notify(self, key: PageKey) -> None:
        """The page is durable now."""
        for waiter in self._waiters.pop(key, ()):
            waiter.missing.discard(key)
            if not waiter.missing:
                waiter.done.set()

    async def wait(self, keys: Sequence[PageKey], timeout_seconds: float) -> list[int]:
        """Waits until all are durable. Returns the indexes of those that are not in the end."""
        missing = {key for key in keys if not self._is_durable(key)}
        if missing and timeout_seconds > 0:
            waiter = _Waiter(missing)
            awaited = list(missing)
            for key in awaited:
                self._waiters.setdefault(key, set()).add(waiter)
            try:
                async with asyncio.timeout(timeout_seconds):
                    await waiter.done.wait()
            except TimeoutError:
                pass  # the reply says what is missing
            finally:
                self._leave(waiter, awaited)
        return [index for index, key in enumerate(keys) if not self._is_durable(key)]

    def _leave(self, waiter: _Waiter, keys: list[PageKey]) -> None:
        for key in keys:
            waiters = self._waiters.get(key)
            if waiters is not None:
                waiters.discard(waiter)
                if not waiters:
                    del self._waiters[key]
