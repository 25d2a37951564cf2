"""What is done for the object tier all the time: rewriting, letting go, looking for what is new."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

import lmdb

from agentmem.errors import StoreRefused
from agentmem.node.objectsweep import ObjectSweep
from agentmem.store.keyring import Keyring
from agentmem.store.object import ObjectTier

logger = logging.getLogger(__name__)

_PAUSE_SECONDS = 1.0
_REFRESH_SECONDS = 30.0


class ObjectTending:
    """Runs one loop. A store or an index that fails stalls it, one kind of work at a time."""

    def __init__(self, objects: ObjectTier, keyring: Keyring, sweep: ObjectSweep) -> None:
        self._objects = objects
        self._keyring = keyring
        self._sweep = sweep

    async def run(self) -> None:
        """Tends until cancelled."""
        refresh_at = 0.0
        while True:
            await self._attempt(self._objects.reclaim, "deleted pages stay there for now")
            await self._attempt(self._sweep.step, "pages that nothing claims stay for now")
            if time.monotonic() >= refresh_at:
                await self._objects.refresh_soon()
                await self._attempt(self._keyring.refresh, "erased keys are not looked for")
                refresh_at = time.monotonic() + _REFRESH_SECONDS
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _attempt(self, work: Callable[[], Awaitable[object]], otherwise: str) -> None:
        try:
            await work()
        except StoreRefused as error:
            logger.warning("object tier: %s: %s", otherwise, error)
        except (OSError, lmdb.Error):
            self._objects.counters["housekeeping_failed"] += 1
            logger.exception("object tier: %s", otherwise)
