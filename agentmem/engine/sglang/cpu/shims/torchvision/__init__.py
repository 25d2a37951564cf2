"""Stand-in for `torchvision`: `sglang.srt.utils.common` imports it; text models never call it."""

from . import io, transforms

__version__ = "0.0.0+agentmem.cpu"
__all__ = ["io", "transforms"]
