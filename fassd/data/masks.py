"""From a mask file to labels: the meaning of a mask's pixels, and reading them.

Masks of ids are read as stored, whatever colours a palette gives them: 1, 2, 4, 8 and 16 bits of
grey, also as three equal channels or with an opaque alpha, PGM of any largest value, palette
indices, and NumPy arrays. Masks are only read as colours if the card says so.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from fassd.io.images import (
    MAX_PIXELS,
    ImageError,
    TooManyPixelsError,
    open_image,
    pages_passed_over,
    unreadable_because,
)
from fassd.io.levels import has_high_bytes, stored, stretch
from fassd.io.palette import IGNORE

MAX_ID = 65535
"""Largest id of a mask: 16 bits."""

UNLABELLED = -1
"""The only id below 0 that a mask may contain, if the card ignores it."""

STRAY = 256  # in the lookup tables: an id that the card does not list
STRAYS_NAMED = 5


@dataclass(frozen=True)
class MaskCode:
    """The meaning of a mask's pixels.

    Attributes:
        kind: kind of values: "ids" (numbers), "colors" (RGB), or "threshold" (grey, bright is class
            1).
        labels: class index or `IGNORE` of each id, colour (from `color_key`) or side of a threshold
            (0 dark, 1 bright). `UNLABELLED` may be one of the ids.
        ignore_unlisted: True ignores ids and colours outside `labels`; False makes them errors.
        above: with "threshold", the brightest grey that is still class 0.
    """

    kind: Literal["ids", "colors", "threshold"]
    labels: Mapping[int, int]
    ignore_unlisted: bool = False
    above: int = 127

    @functools.cached_property
    def _table(self) -> npt.NDArray[np.int16]:
        """The label of every id or colour key; `STRAY` if it is neither listed nor ignored."""
        # UNLABELLED is -1, and so indexes the last entry.
        size = {"ids": MAX_ID + 2, "colors": 1 << 24, "threshold": 2}[self.kind]
        table = np.full(size, IGNORE if self.ignore_unlisted else STRAY, np.int16)
        table[list(self.labels)] = list(self.labels.values())
        return table

    def relabelled(self, label: Callable[[int], int]) -> MaskCode:
        """A copy with other labels: `label` of each."""
        return replace(self, labels={key: label(own) for key, own in self.labels.items()})

    def __getstate__(self) -> dict[str, Any]:
        """The state without the table of up to 32 MB, which worker processes compute anew."""
        return {key: value for key, value in self.__dict__.items() if key != "_table"}


def color_key(color: tuple[int, int, int]) -> int:
    """An RGB colour as one number, 0xRRGGBB."""
    red, green, blue = color
    return red << 16 | green << 8 | blue


def examine_mask(
    path: str | os.PathLike[str], code: MaskCode
) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Read a mask as labels, (H, W) uint8: class indices and `IGNORE`; EXIF rotation is applied.

    Remarks report pages or frames after the first, which are skipped.

    Raises:
        ImageError: the file cannot be read, has channels that the card does not describe, or
            contains ids or colours outside the card; the message names the file.
    """
    values, remarks = read_values(path, code.kind)
    if code.kind == "threshold":
        values = (values > code.above).astype(np.uint8)
    labels = code._table[values]
    if labels.max() == STRAY:
        raise ImageError(f"{os.fspath(path)}: {_strays(values, labels == STRAY, code.kind)}")
    return labels.astype(np.uint8), remarks


def read_values(path: str | os.PathLike[str], kind: str) -> tuple[npt.NDArray[Any], list[str]]:
    """Ids, grey levels or colour keys (`kind` of a `MaskCode`) of a mask, (H, W), and remarks.

    Raises:
        ImageError: as in `examine_mask`, except for values that a card does not list.
    """
    try:
        if os.path.splitext(path)[1].lower() == ".npy":
            return _of_array(path, kind), []
        with open_image(path) as image:
            remarks = pages_passed_over(image)
            if kind == "ids" and has_high_bytes(image):
                return _one_channel(stored(image)[0], 65535), remarks
            factor = stretch(image) if kind == "ids" else 1
            image.load()
            values = _VALUES[kind](ImageOps.exif_transpose(image))
            return values if factor == 1 else np.rint(values / factor).astype(int), remarks
    except Exception as error:  # decoders raise almost anything for damaged files
        raise ImageError(f"{os.fspath(path)}: {unreadable_because(path, error)}") from error


def _of_array(path: str | os.PathLike[str], kind: str) -> npt.NDArray[Any]:
    """Values of a NumPy file: whole numbers (H, W), or bytes (H, W, 3) for colours."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)  # its header may claim any size
    accepted = "(H, W, 3)" if kind == "colors" else "(H, W)"
    shape = (*array.shape[:2], 3) if kind == "colors" else array.shape[:2]
    if array.ndim < 2 or array.shape != shape or array.size == 0:
        raise ImageError(f"an array must be {accepted}, got {array.shape}")
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise TooManyPixelsError(
            f"has {array.shape[0]}x{array.shape[1]} pixels, {MAX_PIXELS:,} are read"
        )
    if array.dtype.kind not in "biuf" or (kind == "colors" and array.dtype != np.uint8):
        bytes_ = "uint8" if kind == "colors" else "whole numbers"
        raise ImageError(f"an array must be of {bytes_}, got {array.dtype}")
    values: npt.NDArray[Any] = np.array(array)
    if kind == "colors":
        return _color_keys(Image.fromarray(values))
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values % 1 == 0).all()):
        raise ImageError("an array must be of whole numbers, got others")
    return _within(values) if kind == "ids" else values


def _within(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Ids that are in the range of a card, as integers."""
    if not (values.min() >= UNLABELLED and values.max() <= MAX_ID):
        raise ImageError(
            f"ids must be {UNLABELLED} to {MAX_ID}, got {values.min()} to {values.max()}"
        )
    return values.astype(np.int32)


def _ids(image: Image.Image) -> npt.NDArray[Any]:
    if image.mode in ("RGB", "RGBA", "LA"):
        return _one_channel(np.asarray(image), 255)
    if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16"):
        raise ImageError(
            f"a mask of ids must be grey or have a palette, got mode {image.mode} (if its colours "
            "stand for classes, the card has to say so: values: colors)"
        )
    if image.mode == "1":  # in an array its true pixels would be bytes of 255
        return np.asarray(image.convert("L")) // 255
    values = np.asarray(image)
    return _within(values) if image.mode == "I" else values


def _one_channel(values: npt.NDArray[Any], opaque: int) -> npt.NDArray[Any]:
    """The grey of equal channels, (H, W, 2 to 4); the last of 2 or 4 is alpha."""
    colors = values[..., : values.shape[2] - (values.shape[2] + 1) % 2]
    differ = (colors != colors[..., :1]).any(2)
    if differ.any():
        row, column = np.argwhere(differ)[0]
        raise ImageError(
            f"a mask of ids must be grey or have a palette, got {colors[row, column].tolist()} at "
            f"row {row}, column {column} (if its colours stand for classes, the card has to say "
            "so: values: colors)"
        )
    if values.shape[2] != colors.shape[2] and (values[..., -1] != opaque).any():
        raise ImageError("a mask of ids must be opaque: the card does not say what alpha means")
    return colors[..., 0]


def _grey(image: Image.Image) -> npt.NDArray[Any]:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return np.asarray(image)
    return np.asarray(image.convert("L"))


def _color_keys(image: Image.Image) -> npt.NDArray[np.int32]:
    rgb = np.asarray(image.convert("RGB")).astype(np.int32)
    return rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]


_VALUES = {"ids": _ids, "threshold": _grey, "colors": _color_keys}


def _strays(values: npt.NDArray[np.integer], where: npt.NDArray[np.bool_], kind: str) -> str:
    """Message about ids or colours outside the card: which ones, how many, and where first."""
    found, counts = np.unique(values[where], return_counts=True)
    row, column = np.argwhere(where)[0]
    named = [_named(int(value), kind) for value in found[:STRAYS_NAMED]]
    if len(found) > STRAYS_NAMED:
        named.append(f"... ({len(found)} in all)")
    what = ("id" if kind == "ids" else "colour") + "s" * (len(found) > 1)
    return (
        f"{what} {', '.join(named)} outside the card, in {counts.sum():,} pixels "
        f"(first at row {row}, column {column})"
    )


def _named(value: int, kind: str) -> str:
    if kind == "ids":
        return str(value)
    return f"({value >> 16}, {value >> 8 & 255}, {value & 255})"
