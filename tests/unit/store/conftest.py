"""Disk tiers that a test opens, and opens again as after a restart."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from agentmem.store.disk import DiskTier
from tests.unit.store.records import PACK_BYTES

Opener = Callable[..., Awaitable[DiskTier]]


class Clock:
    """Time that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def open_disk(tmp_path: Path, clock: Clock) -> AsyncIterator[Opener]:
    opened: list[DiskTier] = []

    async def open_one(
        budget_bytes: int = 1 << 30, meanwhile: Callable[[], object] = lambda: None
    ) -> DiskTier:
        if opened:
            await opened.pop().close()
        meanwhile()
        disk = DiskTier(tmp_path, "0" * 16, budget_bytes, pack_bytes=PACK_BYTES, clock=clock)
        disk.recovery = await disk.open()  # type: ignore[attr-defined]
        opened.append(disk)
        return disk

    yield open_one
    for disk in opened:
        await disk.close()
