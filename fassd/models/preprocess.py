"""From a picture to the network's input, exactly as when the original weights were trained."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

MEAN = (0.406, 0.456, 0.485)
"""ImageNet channel means in 0 .. 1, in BGR order, which is the network's."""

STD = (0.225, 0.224, 0.229)
"""ImageNet channel standard deviations in 0 .. 1, in BGR order."""

BANDS = (0.5, 0.25)
"""Default mean and deviation in 0 .. 1 of a band, for pictures that are not three colours."""

MOST_BANDS = 512
"""Largest number of channels that a network may take."""

PerChannel = tuple[float, ...]
Channels = Literal["BGR", "RGB", "bands"]


@dataclass(frozen=True)
class Preprocessing:
    """Normalisation of a network's pictures: (x - 255 * mean) / (255 * std), and channel order.

    Attributes:
        mean, std: mean and deviation of each channel in 0 .. 1, in the order that the network
            takes.
        channels: name of that order; "bands" is the picture's own, with any number of bands.
    """

    mean: PerChannel = MEAN
    std: PerChannel = STD
    channels: Channels = "BGR"

    @classmethod
    def of_bands(cls, count: int) -> Preprocessing:
        """The normalisation of pictures of `count` bands, with mean and deviation `BANDS` each."""
        mean, std = BANDS
        return cls((mean,) * count, (std,) * count, "bands")

    @property
    def bands(self) -> int | None:
        """Number of bands; None for three colours."""
        return len(self.mean) if self.channels == "bands" else None

    @classmethod
    def checked(cls, mean: Any, std: Any, channels: Any) -> Preprocessing:
        """The normalisation that a file describes.

        Raises:
            ValueError, TypeError: the values make no sense.
        """
        means, deviations = (tuple(map(float, values)) for values in (mean, std))
        if channels not in get_args(Channels):
            raise ValueError(f"channels must be BGR, RGB or bands, got {channels!r:.40}")
        count = len(means)
        if len(deviations) != count or not (1 <= count <= MOST_BANDS):
            raise ValueError(
                f"mean and std must be equally many, 1 to {MOST_BANDS}, got {mean!r:.80}, "
                f"{std!r:.80}"
            )
        if channels != "bands" and count != 3:
            raise ValueError(f"{channels} has three channels, got a mean of {count}")
        if not np.isfinite((means, deviations)).all() or min(deviations) <= 0:
            raise ValueError(
                f"mean and std must be finite, std above 0, got {mean!r:.80}, {std!r:.80}"
            )
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
        """The RGB colour, or the levels of the bands, that are normalised closest to zero."""
        levels = [round(level) for level in self.mean_levels]
        return tuple(reversed(levels) if self.channels == "BGR" else levels)


OURS = Preprocessing()
"""The normalisation of HarDNet's encoders, as FASSD-Net's authors trained them."""

MEAN_COLOR = OURS.mean_color
"""The RGB colour that `normalize` brings closest to zeros, (124, 116, 104)."""


def preprocessing_of(network: object) -> Preprocessing:
    """The normalisation of a network's pictures; also for a part of it, or a wrapper around it.

    It is read from the attribute ``preprocessing``; without one it is `OURS`.
    """
    modules: Any = getattr(network, "modules", tuple)
    found = (vars(part).get("preprocessing") for part in modules())
    return next((own for own in found if isinstance(own, Preprocessing)), OURS)


def check_bands(image: npt.NDArray[Any], count: int) -> None:
    """Raise ValueError unless `image` is (H, W, count) uint8."""
    if image.ndim != 3 or image.shape[2] != count or image.dtype != np.uint8:
        raise ValueError(
            f"image must be uint8 of shape (H, W, {count}), got {image.dtype} of shape "
            f"{image.shape}"
        )


@functools.lru_cache(8)
def _levels(preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    """Values of the 256 levels of each channel, (channels, 256) in the network's order."""
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
        image: (H, W, 3) uint8 RGB, or (H, W, bands) with the network's number of bands.
        preprocessing: normalisation of the network (`preprocessing_of`).

    Returns:
        (channels, H, W) float32, in the order of `preprocessing`, BGR by default; C-contiguous.

    Raises:
        ValueError: `image` has another shape or dtype.
    """
    count = len(preprocessing.mean)
    check_bands(image, count)
    result = np.empty((count, *image.shape[:2]), np.float32)
    planes = image[..., ::-1] if preprocessing.channels == "BGR" else image
    for channel, levels in enumerate(_levels(preprocessing)):
        # uint8 never needs "clip", but it spares NumPy the buffer that "raise" makes.
        np.take(levels, planes[..., channel], out=result[channel], mode="clip")
    return result
