"""Augmentation of pictures and labels, as when the original weights were trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fassd.io.palette import IGNORE
from fassd.models.preprocess import MEAN_COLOR, check_bands

Change = Callable[[npt.NDArray[np.uint8], slice], Any]

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey, as in ITU-R BT.601."""


@dataclass(frozen=True)
class TrainTransform:
    """The authors' augmentation: random scale, crop and mirror; plus colour and focus.

    Picture and labels are scaled by the same factor, uniform in `scale`, and a window of size
    `crop` is taken at a uniform position. A scaled picture that is smaller than the window is
    placed at a uniform position inside it, on `padding` and `IGNORE`. Then left and right are
    swapped with probability `flip`, and with `rotate` the result is turned.

    Only the part visible in the window is resized. Its edges are rounded to whole source pixels, so
    the factor is exact to within a pixel over the window. Shrinking averages pictures over areas
    (the authors' Pillow resize smooths, too), enlarging interpolates linearly; labels are taken
    from the nearest pixel.

    Attributes:
        crop: height and width of the result, in pixels.
        scale: smallest and largest factor.
        flip: probability of mirroring.
        rotate: True turns by 0, 90, 180 or 270 degrees, with equal probability.
        jitter: strength from 0 to 1: brightness, contrast and saturation each change by a factor
            uniform in 1 - jitter .. 1 + jitter; labels and padding do not change. For colours only.
        padding: RGB colour, or a level of each band, around pictures that are smaller than the
            crop.
        gamma: strength, at least 0: values are raised to 2 ** g, with g uniform in -gamma .. gamma.
        blur: largest deviation in pixels, at least 0, of a Gaussian blur on every second picture.
        focus: probability of placing the window over a pixel of a class that is drawn evenly from
            the picture's classes, so that rare ones are seen more often.

    Raises:
        ValueError: an attribute is out of range.
    """

    crop: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    jitter: float = 0.0
    padding: tuple[int, ...] = MEAN_COLOR
    gamma: float = 0.0
    blur: float = 0.0
    focus: float = 0.0
    rotate: bool = False

    def __post_init__(self) -> None:
        if len(self.crop) != 2 or min(self.crop) < 1:
            raise ValueError(f"crop must be a height and a width of at least 1, got {self.crop}")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] < float("inf"):
            raise ValueError(f"scale must be two factors, 0 < low <= high, got {self.scale}")
        for name in ("flip", "jitter", "focus"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        if self.jitter and len(self.padding) != 3:
            raise ValueError(f"jitter works on three colours, got {len(self.padding)} bands")
        for name in ("gamma", "blur"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")

    def __call__(
        self,
        image: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.uint8],
        rng: np.random.Generator,
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Augment one picture; the same state of `rng` gives the same result.

        Args:
            image: (H, W, 3) uint8 RGB, or (H, W, bands) with as many bands as `padding`.
            labels: (H, W) uint8.
            rng: the only source of randomness.

        Returns:
            (h, w, channels) and (h, w) uint8, h x w being `crop`; new arrays, C-contiguous.

        Raises:
            ValueError: a shape or dtype is another.
        """
        check_bands(image, len(self.padding))
        if labels.shape != image.shape[:2] or labels.dtype != np.uint8:
            raise ValueError(
                f"labels must be uint8 of shape {image.shape[:2]} as the image, "
                f"got {labels.dtype} of shape {labels.shape}"
            )
        turns = int(rng.integers(4)) if self.rotate else 0
        crop = self.crop[::-1] if turns % 2 else self.crop
        factor = rng.uniform(*self.scale)
        focused = self.focus and rng.random() < self.focus
        point = _point_of_a_class(labels, rng) if focused else (None, None)
        rows, columns = (
            _window(side, factor, wanted, rng, at)
            for side, wanted, at in zip(labels.shape, crop, point, strict=True)
        )
        mirrored = rng.random() < self.flip
        image = _cut(image, rows, columns, shrink=factor < 1)
        if self.jitter:
            image = _jittered(image, *rng.uniform(1 - self.jitter, 1 + self.jitter, 3))
        if self.gamma:
            image = _raised(image, 2.0 ** rng.uniform(-self.gamma, self.gamma))
        if self.blur and rng.random() < 0.5:
            image = _blurred(image, rng.uniform(0, self.blur))
        labels = _cut(labels, rows, columns, shrink=None)
        return (
            _framed(image, rows, columns, self.padding, mirrored, turns),
            _framed(labels, rows, columns, (IGNORE,), mirrored, turns),
        )


@dataclass(frozen=True)
class _Window:
    """One axis of a crop: source[start:stop], resized to `size`, between paddings."""

    start: int
    stop: int
    size: int
    before: int
    after: int


def _point_of_a_class(
    labels: npt.NDArray[np.uint8], rng: np.random.Generator
) -> tuple[int | None, int | None]:
    """Row and column of a pixel of a class drawn evenly from the picture's; None if it has none."""
    present = np.flatnonzero(np.bincount(labels.ravel(), minlength=IGNORE)[:IGNORE])
    if not len(present):
        return None, None
    places = np.flatnonzero(labels == rng.choice(present))
    row, column = divmod(int(places[rng.integers(len(places))]), labels.shape[1])
    return row, column


def _window(
    side: int, factor: float, wanted: int, rng: np.random.Generator, at: int | None = None
) -> _Window:
    """A window of `wanted` pixels at a random place of `side` pixels scaled by `factor`.

    It contains pixel `at`, if that is given.
    """
    scaled = max(1, round(side * factor))
    slack = scaled - wanted
    # A negative offset puts the picture inside the window, so one draw covers both cases.
    low, high = min(0, slack), max(0, slack)
    if at is not None and slack > 0:
        place = min(int((at + 0.5) * scaled / side), scaled - 1)
        low, high = max(0, place - wanted + 1), min(slack, place)
    offset = int(rng.integers(low, high + 1))
    first, last = max(0, offset), min(scaled, offset + wanted)
    start = min(round(first * side / scaled), side - 1)
    stop = max(round(last * side / scaled), start + 1)
    before = max(0, -offset)
    return _Window(start, stop, last - first, before, wanted - before - (last - first))


def _cut(
    array: npt.NDArray[np.uint8], rows: _Window, columns: _Window, shrink: bool | None
) -> npt.NDArray[np.uint8]:
    """The visible part at its new size; `shrink` is None for labels."""
    import cv2

    # Of OpenCV's two nearest-neighbour modes only EXACT uses pixel centres, like the other modes;
    # the older one is off by half a source pixel when shrinking by two.
    how = {None: cv2.INTER_NEAREST_EXACT, True: cv2.INTER_AREA, False: cv2.INTER_LINEAR}[shrink]
    part = array[rows.start : rows.stop, columns.start : columns.stop]
    size = columns.size, rows.size
    return _by_fours(part, lambda few, _: cv2.resize(few, size, interpolation=how))


def _by_fours(array: npt.NDArray[np.uint8], change: Change) -> npt.NDArray[np.uint8]:
    """Apply a function of OpenCV, which takes up to four channels, to any number of channels.

    Args:
        array: (H, W) or (H, W, channels).
        change: function called with channels and a slice of their positions; may drop an axis of
            size 1.
    """
    if array.ndim == 2:
        return np.asarray(change(array, slice(0, 1)), np.uint8)
    parts = []
    for first in range(0, array.shape[2], 4):
        which = slice(first, min(first + 4, array.shape[2]))
        part = np.ascontiguousarray(array[..., which])
        changed = np.asarray(change(part, which), np.uint8)
        parts.append(changed.reshape(*changed.shape[:2], part.shape[2]))
    return parts[0] if len(parts) == 1 else np.concatenate(parts, 2)


def _framed(
    array: npt.NDArray[np.uint8],
    rows: _Window,
    columns: _Window,
    color: tuple[int, ...],
    mirrored: bool,
    turns: int,
) -> npt.NDArray[np.uint8]:
    """Pad to the window's size, then mirror, then turn by a multiple of 90 degrees."""
    import cv2

    border = rows.before, rows.after, columns.before, columns.after
    if any(border):
        array = _by_fours(
            array,
            lambda few, which: cv2.copyMakeBorder(
                few, *border, cv2.BORDER_CONSTANT, value=color[which]
            ),
        )
    return np.ascontiguousarray(np.rot90(array[:, ::-1] if mirrored else array, turns))


def _jittered(
    image: npt.NDArray[np.uint8], brightness: float, contrast: float, saturation: float
) -> npt.NDArray[np.uint8]:
    """Scale brightness, then contrast about the mean grey, then saturation about each pixel's grey.

    The three are one linear map of the colours, so values are rounded and clipped only once.
    """
    import cv2

    grey = np.tile(LUMA, (3, 1))
    mix = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * grey)
    mean = float(np.dot(cv2.mean(image)[:3], LUMA))  # NumPy takes 4 ms, this 0.1 ms
    shift = np.full((3, 1), (1 - contrast) * brightness * mean)
    return np.asarray(cv2.transform(image, np.hstack([mix, shift])), np.uint8)


def _raised(image: npt.NDArray[np.uint8], exponent: float) -> npt.NDArray[np.uint8]:
    """Values in 0 .. 1, raised to a power."""
    import cv2

    table = np.rint(255 * (np.arange(256) / 255) ** exponent).astype(np.uint8)
    return _by_fours(image, lambda few, _: cv2.LUT(few, table))


def _blurred(image: npt.NDArray[np.uint8], deviation: float) -> npt.NDArray[np.uint8]:
    import cv2

    if deviation < 0.1:  # has no weight beyond the pixel itself
        return image
    return _by_fours(image, lambda few, _: cv2.GaussianBlur(few, (0, 0), deviation))
