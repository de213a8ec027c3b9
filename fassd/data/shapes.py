"""Shapes of annotation files, and their meaning in a card."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from fassd.data.raster import Region, Ring
from fassd.io.palette import IGNORE
from fassd.io.untrusted import shown

Kind = Literal["labelme", "coco", "yolo"]
Key = str | int

MOST_SHAPES = 100_000
"""Maximum number of shapes in a picture."""

FARTHEST = 1e6
"""Largest coordinate, in pixels."""


class ShapeError(ValueError):
    """Shapes cannot be read or drawn; the message says which one, but does not name the file."""


@dataclass(frozen=True)
class ShapeCode:
    """The meaning of shapes.

    Attributes:
        kind: format of their file.
        labels: class index or `IGNORE` for each name (LabelMe, COCO) or number (YOLO) of a class in
            the file.
        background: label of the pixels outside all shapes.
        ignore_unlisted: True ignores shapes of other classes; False makes them errors.
        holes: True makes a polygon inside another one of the same COCO annotation a hole.
    """

    kind: Kind
    labels: Mapping[Key, int]
    background: int = IGNORE
    ignore_unlisted: bool = False
    holes: bool = False

    def relabelled(self, label: Callable[[int], int]) -> ShapeCode:
        """A copy with other labels: `label` of each."""
        labels = {key: label(own) for key, own in self.labels.items()}
        return replace(self, labels=labels, background=label(self.background))


@dataclass(frozen=True)
class Shape:
    """A shape of a file.

    Attributes:
        place: position in the file, such as "shapes[3]".
        key: name or number of its class.
        parts: groups of rings; the pixels within an odd number of a group's rings belong to the
            shape.
        bitmap: function that makes a region which belongs to the shape as well.
        corners: corners of the bitmap, (N, 2), x and y.
    """

    place: str
    key: Key
    parts: Sequence[Sequence[Ring]] = ()
    bitmap: Callable[[], Region] | None = None
    corners: Ring | None = None

    @property
    def extent(self) -> tuple[Ring, Ring]:
        """The smallest x and y, and the largest, each (2,)."""
        rings = [ring for part in self.parts for ring in part]
        rings += [] if self.corners is None else [self.corners]
        return np.min([r.min(0) for r in rings], 0), np.max([r.max(0) for r in rings], 0)


@dataclass
class ShapeList:
    """The shapes of a picture; its size (height, width), if the file gives it; and remarks."""

    shapes: Sequence[Shape]
    size: tuple[int, int] | None = None
    remarks: list[str] = field(default_factory=list)


def polygon(values: object, place: str, scale: tuple[float, float] = (1, 1)) -> Ring:
    """Make a ring from a file's numbers, (N, 2) or flat, times a scale (x, y).

    Raises:
        ShapeError: there are fewer than 3 corners, or a coordinate is not a number up to
            `FARTHEST`.
    """
    try:
        ring = np.array(values, np.float64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError):
        raise ShapeError(
            f"{place}: must be pairs of coordinates x, y, got {shown(values)}"
        ) from None
    if len(ring) < 3:
        raise ShapeError(f"{place}: a polygon must have at least 3 corners, has {len(ring)}")
    within = np.abs(ring * scale) <= FARTHEST  # False for NaN
    if not within.all():
        corner, axis = np.argwhere(~within)[0]
        raise ShapeError(
            f"{place}: the {'xy'[axis]} of corner {corner} is {ring[corner, axis]:g}; coordinates "
            f"must be numbers of at most {FARTHEST:,.0f} pixels"
        )
    return ring * scale
