"""A storage plugin that can be made to fail in each of its methods, from outside, while it runs.

A file `fault-NAME` in the run directory switches a fault on; removing it switches it off.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentmem.core import PageHash
from agentmem.engine.sglang.plugin import PageStorage
from agentmem.native.jobs import PageBuffers


class FaultyStorage(PageStorage):
    """`find`, `store`, `load` fail inside of the plugin; `escape` lets an exception out of it."""

    def _fail_if(self, name: str) -> None:
        if (Path(self._config["proof_dir"]).parent / f"fault-{name}").exists():
            raise RuntimeError(f"injected fault: {name}")

    def _find(self, hashes: Sequence[PageHash]) -> int:
        self._fail_if("find")
        return super()._find(hashes)

    def _store(self, hashes: Sequence[PageHash], buffers: PageBuffers) -> list[bool]:
        self._fail_if("store")
        return super()._store(hashes, buffers)

    def _load(self, hashes: Sequence[PageHash], buffers: PageBuffers) -> list[bool]:
        self._fail_if("load")
        return super()._load(hashes, buffers)

    def batch_set_v1(
        self, keys: list[str], host_indices: Any, extra_info: Any = None
    ) -> list[bool]:
        self._fail_if("escape")
        return super().batch_set_v1(keys, host_indices, extra_info)
