"""Stand-in for `torchvision.transforms.v2`."""

from torchvision._missing import missing_from

from . import functional
from .._modes import InterpolationMode

__all__ = ["InterpolationMode", "functional"]

__getattr__ = missing_from("torchvision.transforms.v2")
