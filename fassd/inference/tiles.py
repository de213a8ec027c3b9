"""Pictures of any size by any network: overlapping tiles, each labelled separately.

An approximation: a tile does not see the picture beyond its border. In the part that two tiles
share, each provides the half that is farther from its border. `fassd.inference.strips` computes the
labels of the whole picture, for the networks that it supports.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from fassd.inference.fields import Field
from fassd.inference.maps import MapFile
from fassd.inference.steps import MapStep, Picture, Target
from fassd.inference.strips import check_colors

if TYPE_CHECKING:
    from fassd.inference.segmenter import Segmenter
    from fassd_kernels.reference.upsample import Measure

OVERLAP = 4
"""Tiles share one part in `OVERLAP` of their side with the next tile."""


class Span(NamedTuple):
    """Positions [first, last) that a tile sees, and [top, bottom) that it provides labels for."""

    first: int
    last: int
    top: int
    bottom: int


def windows(total: int, side: int) -> list[Span]:
    """The tiles along an axis: of equal sides, the last one moved back to the end.

    Args:
        total: number of pixels of the axis.
        side: side of a tile in pixels; a shorter axis is one tile.
    """
    if total <= side:
        return [Span(0, total, 0, total)]
    step = side - side // OVERLAP
    firsts = [*range(0, total - side, step), total - side]
    borders = [0, *((one + side + other) // 2 for one, other in pairwise(firsts)), total]
    seen = zip(firsts, pairwise(borders), strict=True)
    return [Span(first, first + side, *kept) for first, kept in seen]


class TileStep(MapStep):
    """A picture's labels, a row of tiles at a time.

    Args:
        segmenter: segmenter that labels a tile.
        picture: picture to label.
        folder: folder for the labels' file.
        side: side of a tile in pixels, at least 1.
        measure: measure of certainty, which becomes a second target; None for labels alone.

    Raises:
        ValueError: the side is invalid, or the network takes other bands than RGB.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        picture: Picture,
        folder: Path,
        side: int,
        measure: Measure | None = None,
    ) -> None:
        if side < 1:
            raise ValueError(f"tiles must have a side of at least 1 pixel, got {side}")
        check_colors(segmenter)
        height, width = picture.height, picture.width
        self.rows, self.columns = windows(height, side), windows(width, side)
        self.segmenter, self.picture, self.measure = segmenter, picture, measure
        dtype = torch.uint8 if len(segmenter.classes) <= 256 else torch.uint16
        names = ["labels"] if measure is None else ["labels", "certainty"]
        maps = [MapFile(folder / f"{name}.raw", (height, width, 1), dtype) for name in names]
        targets: Sequence[Target] = [Target(each, 1) for each in maps]
        seen = Field(1, 0, height, width, float(width))
        super().__init__("labels", targets, height, seen, lambda *_: [])

    @property
    def units(self) -> int:
        return len(self.rows)

    def units_within(self, values: float, rows: int | None, height: int) -> int:
        return 1

    def least_values(self) -> float:
        return 0

    def do(self, first: int, last: int) -> None:
        for row in self.rows[first:last]:
            band = self.picture.read(row.first, row.last)
            kept = []
            for column in self.columns:
                tile = band[:, column.first : column.last]
                if self.measure is None:
                    found = self.segmenter.predict(tile)[None]
                else:
                    found = np.stack(self.segmenter.predict(tile, confidence=self.measure))
                inner = found[:, row.top - row.first : row.bottom - row.first]
                kept.append(inner[..., column.top - column.first : column.bottom - column.first])
            for target, plane in zip(self.targets, np.concatenate(kept, 2), strict=True):
                target.map.write(row.top, torch.from_numpy(plane)[None, None])
