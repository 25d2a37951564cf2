"""SGLang's storage backend (HiCache `dynamic`): hands pages to the node agent and takes them back.

It runs in SGLang's scheduler process, called from its storage threads. An exception that leaves
`batch_set_v1` or `batch_get_v1` ends such a thread for good while `/health` stays 200, so every
method catches at its edge and answers "miss"; the worker's canary notices. Nothing here moves
bytes or waits: `node.transfer` does, within its deadlines.

Contract read from `sglang/srt/mem_cache/hicache_storage.py` of 0.5.20.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sglang.srt.mem_cache.hicache_storage import HiCacheStorage

from agentmem.core import Fingerprint, PageHash
from agentmem.errors import ConfigurationInvalid
from agentmem.native.jobs import PageBuffers
from agentmem.node.transfer import SWITCH_INTERVAL_SECONDS, PageTransfer

logger = logging.getLogger("agentmem.plugin")

_LAYOUTS = ("page_first", "page_first_direct", "layer_first")


class PageStorage(HiCacheStorage):  # type: ignore[misc]
    """One per scheduler process.

    `storage_config.extra_config` is what `launch.plan_launch` wrote: socket, engine id,
    fingerprint, and the layout and page size that the fingerprint stands for.
    """

    def __init__(self, storage_config: Any, kwargs: Any) -> None:
        config = storage_config.extra_config
        if storage_config.tp_size != 1 or storage_config.pp_size != 1:
            raise ConfigurationInvalid("agentmem keeps pages of TP 1 and PP 1 only, so far")
        sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
        self._config = config
        self._page_tokens = int(config["page_tokens"])
        self._fingerprint = Fingerprint(bytes.fromhex(config["fingerprint"]))
        self._transfer = PageTransfer(
            Path(config["socket"]),
            engine_id=config["engine_id"],
            fingerprint=self._fingerprint,
            page_bytes=int(config["page_bytes"]),
        )

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        """Takes the host pool, checks that it is what the fingerprint says, and leaves the proof.

        Raises ConfigurationInvalid, which ends SGLang's start: pages stored under a fingerprint
        that does not describe them would be served to an engine that lays them out otherwise.
        """
        super().register_mem_pool_host(mem_pool_host)
        pool = getattr(mem_pool_host, "anchor_entry", None)
        self._pool = pool.host_pool if pool is not None else mem_pool_host
        expected = (self._config["layout"], self._page_tokens, int(self._config["page_bytes"]))
        page_bytes = self._pool.page_size * self._pool.size_per_token
        actual = (self._pool.layout, self._pool.page_size, page_bytes)
        if actual != expected or actual[0] not in _LAYOUTS:
            raise ConfigurationInvalid(
                f"the host pool has (layout, page tokens, page bytes) {actual}, "
                f"the fingerprint was made for {expected}"
            )
        proof = {
            "pid": os.getpid(),
            "layout": self._pool.layout,
            "dtype": str(self._pool.dtype),
            "host_pool_tokens": int(self._pool.size),
            "hbm_tokens": int(self._pool.device_pool.size),
        }
        path = Path(self._config["proof_dir"]) / "storage.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(proof))
        temporary.replace(path)

    def batch_exists(self, keys: list[str], extra_info: Any = None) -> int:
        """How many of `keys` (hex hashes), counted from the first, are stored."""
        try:
            return self._find(_hashes(keys))
        except Exception:  # plugin edge: an exception would end SGLang's prefetch thread for good
            logger.exception("batch_exists failed: answering that nothing is stored")
            return 0

    def batch_set_v1(
        self, keys: list[str], host_indices: Any, extra_info: Any = None
    ) -> list[bool]:
        """Stores one page per key out of the host pool; True where the page is safe."""
        try:
            return self._store(_hashes(keys), self._buffers(host_indices))
        except Exception:  # plugin edge: an exception would end SGLang's backup thread for good
            logger.exception("batch_set_v1 failed: %d pages were not stored", len(keys))
            return [False] * len(keys)

    def batch_get_v1(
        self, keys: list[str], host_indices: Any, extra_info: Any = None
    ) -> list[bool]:
        """Loads one page per key into the host pool; SGLang recomputes from the first False on."""
        try:
            return self._load(_hashes(keys), self._buffers(host_indices))
        except Exception:  # plugin edge: an exception would end SGLang's I/O thread for good
            logger.exception("batch_get_v1 failed: %d pages will be recomputed", len(keys))
            return [False] * len(keys)

    def exists(self, key: str) -> bool:
        """Whether one page is stored."""
        return self.batch_exists([key]) == 1

    def close(self) -> None:
        """Called by SGLang on detach and on a clean end."""
        self._transfer.close()

    # Faults are injected by overriding these three (see the plugin's tests).
    def _find(self, hashes: Sequence[PageHash]) -> int:
        return self._transfer.find(hashes)

    def _store(self, hashes: Sequence[PageHash], buffers: PageBuffers) -> list[bool]:
        return self._transfer.store(hashes, buffers)

    def _load(self, hashes: Sequence[PageHash], buffers: PageBuffers) -> list[bool]:
        return self._transfer.load(hashes, buffers)

    def _buffers(self, host_indices: Any) -> PageBuffers:
        """The pages' places in the host pool: K and V of each, or K and V of each layer."""
        pointers, sizes = self._pool.get_page_buffer_meta(host_indices)
        per_page = len(pointers) // (len(host_indices) // self._page_tokens)
        return PageBuffers.of_pointers(pointers, sizes, per_page)

    # The interface without `interface_v1` is abstract in SGLang and never called with it.
    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> None:
        """Not part of the interface in use: a miss."""

    def batch_get(
        self, keys: list[str], target_locations: Any = None, target_sizes: Any = None
    ) -> list[None]:
        """Not part of the interface in use: misses."""
        return [None] * len(keys)

    def set(
        self, key: str, value: Any = None, target_location: Any = None, target_sizes: Any = None
    ) -> bool:
        """Not part of the interface in use: nothing is stored."""
        return False

    def batch_set(
        self,
        keys: list[str],
        values: Any = None,
        target_locations: Any = None,
        target_sizes: Any = None,
    ) -> bool:
        """Not part of the interface in use: nothing is stored."""
        return False


def _hashes(keys: list[str]) -> list[PageHash]:
    return [PageHash(bytes.fromhex(key)) for key in keys]
