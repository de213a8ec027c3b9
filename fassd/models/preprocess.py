"""From a picture to the network's input, exactly as the original weights were trained."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

MEAN = (0.406, 0.456, 0.485)
"""ImageNet channel means in 0 .. 1, in BGR order as the network takes its channels."""

STD = (0.225, 0.224, 0.229)
"""ImageNet channel standard deviations in 0 .. 1, in BGR order."""

MEAN_COLOR = tuple(round(255 * mean) for mean in reversed(MEAN))
"""The RGB colour that `normalize` brings closest to zeros, (124, 116, 104)."""


@functools.cache
def _levels() -> npt.NDArray[np.float32]:
    """What each of the 256 levels of a channel becomes, (3, 256) in BGR order."""
    level = np.arange(256, dtype=np.float64)
    mean, std = (255 * np.array(values)[:, None] for values in (MEAN, STD))
    return ((level - mean) / std).astype(np.float32)


def normalize(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Turn a picture into the network's input: (x - 255 * MEAN) / (255 * STD), channels BGR.

    Computed in float64 and rounded once. A channel has only 256 levels, so they are computed once
    and looked up.

    Args:
        image: (H, W, 3) uint8 RGB.

    Returns:
        (3, H, W) float32, channels in BGR order, C-contiguous.

    Raises:
        ValueError: `image` has another shape or dtype.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"image must be uint8 of shape (H, W, 3), got {image.dtype} of shape {image.shape}"
        )
    result = np.empty((3, *image.shape[:2]), np.float32)
    for channel, levels in enumerate(_levels()):
        # "clip" is never needed for uint8, but it spares NumPy the buffer that "raise" makes.
        np.take(levels, image[..., 2 - channel], out=result[channel], mode="clip")
    return result
