"""Stand-in for `torchvision.io`."""

from enum import Enum

from torchvision._missing import missing_from


class ImageReadMode(Enum):
    """As in torchvision."""

    UNCHANGED = 0
    GRAY = 1
    GRAY_ALPHA = 2
    RGB = 3
    RGB_ALPHA = 4


__getattr__ = missing_from("torchvision.io")
