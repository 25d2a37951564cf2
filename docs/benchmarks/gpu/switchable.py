"""agentmem's storage plugin with a switch: while its `mode_file` says "off", nothing is stored.

For measuring what storing costs a prefill, on one engine, with all else equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentmem.engine.sglang.plugin import PageStorage


class SwitchableStorage(PageStorage):
    """`PageStorage`; switched off, it says of every page that it is safe and does nothing."""

    def batch_set_v1(
        self, keys: list[str], host_indices: Any, extra_info: Any = None
    ) -> list[bool]:
        """Stores, or only says so."""
        if self._is_off():
            return [True] * len(keys)
        stored: Sequence[bool] = super().batch_set_v1(keys, host_indices, extra_info)
        return list(stored)

    def _is_off(self) -> bool:
        try:
            return Path(self._config["mode_file"]).read_text() == "off"
        except OSError:
            return False
