"""From a picture to the network's input, exactly as the original weights were trained."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

MEAN = (0.406, 0.456, 0.485)
"""ImageNet channel means in 0 .. 1, in BGR order as the network takes its channels."""

STD = (0.225, 0.224, 0.229)
"""ImageNet channel standard deviations in 0 .. 1, in BGR order."""

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocessing:
    """How a network takes its pictures: (x - 255 * mean) / (255 * std), channels in an order.

    Attributes:
        mean, std: of the channels in 0 .. 1, in the order in which the network takes them.
        channels: that order.
    """

    mean: Triple = MEAN
    std: Triple = STD
    channels: Literal["BGR", "RGB"] = "BGR"

    @classmethod
    def checked(cls, mean: Any, std: Any, channels: Any) -> Preprocessing:
        """What a file says.

        Raises:
            ValueError, TypeError: it makes no sense.
        """
        means, deviations = (
            (float(first), float(second), float(third)) for first, second, third in (mean, std)
        )
        if not np.isfinite((means, deviations)).all() or min(deviations) <= 0:
            raise ValueError(
                f"mean and std must be finite, std above 0, got {mean!r:.80}, {std!r:.80}"
            )
        if channels not in ("BGR", "RGB"):
            raise ValueError(f"channels must be BGR or RGB, got {channels!r:.40}")
        return cls(means, deviations, channels)

    @property
    def mean_levels(self) -> list[float]:
        """`mean` on the scale of bytes."""
        return [255 * value for value in self.mean]

    @property
    def std_levels(self) -> list[float]:
        """`std` on the scale of bytes."""
        return [255 * value for value in self.std]

    @property
    def mean_color(self) -> tuple[int, ...]:
        """The RGB colour that becomes closest to zeros."""
        levels = [round(level) for level in self.mean_levels]
        return tuple(levels if self.channels == "RGB" else reversed(levels))


OURS = Preprocessing()
"""That of HarDNet's encoders, as FASSD-Net's authors trained them."""

MEAN_COLOR = OURS.mean_color
"""The RGB colour that `normalize` brings closest to zeros, (124, 116, 104)."""


def preprocessing_of(network: object) -> Preprocessing:
    """What a network, or a part of it or the one inside a wrapper, says of its pictures.

    It says so in an attribute ``preprocessing``; `OURS` is that of all others.
    """
    modules: Any = getattr(network, "modules", tuple)
    found = (vars(part).get("preprocessing") for part in modules())
    return next((own for own in found if isinstance(own, Preprocessing)), OURS)


@functools.lru_cache(8)
def _levels(preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    """What each of the 256 levels of a channel becomes, (3, 256) in the network's order."""
    level = np.arange(256, dtype=np.float64)
    mean, std = (
        255 * np.array(values)[:, None] for values in (preprocessing.mean, preprocessing.std)
    )
    return ((level - mean) / std).astype(np.float32)


def normalize(
    image: npt.NDArray[np.uint8], preprocessing: Preprocessing = OURS
) -> npt.NDArray[np.float32]:
    """Turn a picture into the network's input: (x - 255 * mean) / (255 * std).

    Computed in float64 and rounded once. A channel has only 256 levels, so they are computed once
    and looked up.

    Args:
        image: (H, W, 3) uint8 RGB.
        preprocessing: of the network (`preprocessing_of`).

    Returns:
        (3, H, W) float32, channels in the order of `preprocessing`, BGR by default; C-contiguous.

    Raises:
        ValueError: `image` has another shape or dtype.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"image must be uint8 of shape (H, W, 3), got {image.dtype} of shape {image.shape}"
        )
    result = np.empty((3, *image.shape[:2]), np.float32)
    planes = image if preprocessing.channels == "RGB" else image[..., ::-1]
    for channel, levels in enumerate(_levels(preprocessing)):
        # "clip" is never needed for uint8, but it spares NumPy the buffer that "raise" makes.
        np.take(levels, planes[..., channel], out=result[channel], mode="clip")
    return result
