"""Stand-in for `torchvision.transforms.v2.functional`."""

from torchvision._missing import missing_from

from .._modes import InterpolationMode

__all__ = ["InterpolationMode"]

__getattr__ = missing_from("torchvision.transforms.v2.functional")
