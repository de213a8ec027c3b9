"""A split of a dataset for PyTorch."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from fassd.data.card import Card, Pair
from fassd.data.draw import examine_shapes
from fassd.data.masks import examine_mask
from fassd.data.shapes import ShapeCode
from fassd.io.bands import examine_picture
from fassd.io.images import ImageError, ImageWarning


class Sample(NamedTuple):
    """A picture, uint8 RGB (H, W, 3) or (H, W, bands); its labels, uint8 (H, W); and the picture's
    path."""

    image: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    path: Path


def examine_pair(pair: Pair) -> tuple[Sample, list[str]]:
    """Read a picture and its mask, with remarks on both; each names its file.

    Raises:
        ImageError: a file cannot be read, their sizes differ, or the mask contains values that the
            card does not list; the message names the file.
    """
    picture = examine_picture(pair.image, pair.bands, pair.range)
    height, width = picture.pixels.shape[:2]
    if isinstance(pair.code, ShapeCode):
        labels, of_mask = examine_shapes(pair.mask, pair.code, pair.image, (height, width))
    else:
        labels, of_mask = examine_mask(pair.mask, pair.code)
    if labels.shape != (height, width):
        sizes = ["{}x{}".format(*array.shape[:2]) for array in (labels, picture.pixels)]
        raise ImageError(
            f"{pair.mask}: the mask is {sizes[0]} (height x width), but its picture {pair.image} "
            f"is {sizes[1]}"
        )
    remarks = [f"{pair.image}: {remark}" for remark in picture.remarks]
    remarks += [f"{pair.mask}: {remark}" for remark in of_mask]
    return Sample(picture.pixels, labels, pair.image), remarks


class SegmentationDataset(Dataset[Sample]):
    """The pictures of one split, in the order of `card.pairs(split)`, at their own sizes.

    Reading an element raises `fassd.io.images.ImageError` as in `examine_pair`; other elements can
    still be read. Remarks on the first pair are issued as warnings
    (`fassd.io.images.ImageWarning`); `fassd data check` reports those on all pairs.

    Raises:
        fassd.data.card.CardError: there is no such split, it is empty, or a mask is missing.
    """

    def __init__(self, card: Card, split: str) -> None:
        self.card = card
        self.split = split
        self.pairs = card.pairs(split)
        with contextlib.suppress(ImageError):  # raised when the element is read
            for remark in examine_pair(self.pairs[0])[1]:
                told = f"{remark} (the first pair; fassd data check looks at all)"
                warnings.warn(told, ImageWarning, stacklevel=2)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        return examine_pair(self.pairs[index])[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.card.name!r}, {self.split!r}, {len(self)} pictures)"
