"""Builds the C data path into the wheel, and in place for an editable install."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeBuildHook(BuildHookInterface[Any]):
    """Compiles `agentmem/native/src`; without a compiler the wheel holds the Python twin only."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Runs before files are collected (`version`: standard or editable)."""
        # Like `-I`: nothing but the module itself, which needs the standard library only.
        sys.path.insert(0, str(Path(self.root, "agentmem", "native")))
        try:
            import build as native  # type: ignore[import-not-found]
        finally:
            sys.path.pop(0)
        try:
            library = native.build()
        except RuntimeError as error:
            self.app.display_warning(f"the C data path was not built: {error}")
            return
        build_data["artifacts"].append(f"/agentmem/native/{library.name}")
        if version == "standard":
            build_data["tag"] = "py3-none-linux_x86_64"
            build_data["pure_python"] = False
