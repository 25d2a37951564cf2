"""Stand-in for `torchvision.transforms`."""

from torchvision._missing import missing_from

from . import functional, v2
from ._modes import InterpolationMode

__all__ = ["InterpolationMode", "functional", "v2"]


# Classes are subclassed or instantiated at import time by no text model.
__getattr__ = missing_from("torchvision.transforms")
