"""Channels of images: 1 is gray, 2 is gray with a region of interest, 3 is RGB, 4 is RGB with a region.

The region is the last channel: 1 inside, 0 outside. Arrays and tensors are (..., C, H, W). Imports no torch.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Images = TypeVar("Images", NDArray[Any], "Tensor")

CHANNELS = (1, 2, 3, 4)
"""Numbers of channels that an image may have."""


def has_region(channels: int) -> bool:
    """Return whether images of a number of channels have a region of interest.

    Example:
        >>> [has_region(channels) for channels in CHANNELS]
        [False, True, False, True]
    """
    return channels % 2 == 0


def split_region(images: Images) -> tuple[Images, Images]:
    """Return views of the 1 or 3 channels of color, and of the region, which has 0 or 1.

    Example:
        >>> import numpy as np
        >>> [part.shape for part in split_region(np.zeros((4, 8, 8), np.uint8))]
        [(3, 8, 8), (1, 8, 8)]
    """
    colors = images.shape[-3] - has_region(images.shape[-3])
    return images[..., :colors, :, :], images[..., colors:, :, :]


def in_color(images: Images) -> Images:
    """Return images whose gray is repeated to three channels, a copy, and others unchanged.

    Example:
        >>> import numpy as np
        >>> in_color(np.array([[[7]], [[1]]], np.uint8)).ravel().tolist()
        [7, 7, 7, 1]
    """
    channels = images.shape[-3]
    return images if channels > 2 else images[..., [0, 0, 0, 1][: channels + 2], :, :]


def alike(images: Sequence[Images]) -> list[Images]:
    """Return images that can be stacked: gray ones are repeated if others have color.

    Example:
        >>> import numpy as np
        >>> [x.shape for x in alike([np.zeros((1, 8, 8), np.uint8), np.zeros((3, 8, 8), np.uint8)])]
        [(3, 8, 8), (3, 8, 8)]
    """
    colored = any(image.shape[-3] > 2 for image in images)
    return [in_color(image) for image in images] if colored else list(images)
