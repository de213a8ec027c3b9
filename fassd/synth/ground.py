"""The ground of a street as a plan seen from above.

`s` runs across the street from the middle of the carriageway to the right, z along it, in metres.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import cv2
import numpy as np

from fassd.synth.arrays import Bytes
from fassd.synth.colors import Color

Span = tuple[float, float]

SPAN, REACH = 25.0, 100.0  # half width and depth of the plan
WHOLE = (0.0, REACH)
ACROSS, ALONG = 0.05, 0.1  # metres per cell
SHAPE = round(REACH / ALONG), round(2 * SPAN / ACROSS)
UNMARKED = 128


class Kind(IntEnum):
    """The parts of the ground, each with a `Material`."""

    ROAD = 0
    KERB = 1
    LEFT_WALK = 2
    RIGHT_WALK = 3
    GRASS = 4
    TRACK_BED = 5
    YARD = 6


@dataclass(frozen=True)
class Material:
    """The material of a part of the ground."""

    texture: list[Bytes]  # a pyramid
    tile: float  # metres that the texture spans
    turned: bool
    color: Color
    label: int


def _layer(value: int) -> Bytes:
    return np.full(SHAPE, value, np.uint8)


@dataclass
class Ground:
    """Layers of the plan, (rows along z, columns along s).

    `marks` whitens above `UNMARKED` and darkens below; `shadow` and `contact` are strongest at 255.
    """

    kinds: Bytes = field(default_factory=lambda: _layer(Kind.YARD))
    marks: Bytes = field(default_factory=lambda: _layer(UNMARKED))
    shadow: Bytes = field(default_factory=lambda: _layer(0))
    contact: Bytes = field(default_factory=lambda: _layer(0))

    def lay(self, kind: Kind, s: Span, z: Span = WHOLE) -> None:
        """Make a rectangle of one material."""
        self.kinds[_cells(s, z)] = kind

    def mark(self, value: int, s: Span, z: Span = WHOLE) -> None:
        """Paint a rectangle."""
        self.marks[_cells(s, z)] = value

    def hull(self, layer: Bytes, corners: list[tuple[float, float]], value: int = 255) -> None:
        """Fill the convex hull of points (s, z) in one of the layers."""
        at = np.array([((s + SPAN) / ACROSS, z / ALONG) for s, z in corners])
        points = np.clip(at * 4, -1e5, 1e5).round().astype(np.int32)
        cv2.fillConvexPoly(layer, cv2.convexHull(points), value, cv2.LINE_8, 2)


def _cells(s: Span, z: Span) -> tuple[slice, slice]:
    (a, b), (near, far) = sorted(s), z
    columns = (max(0, round((edge + SPAN) / ACROSS)) for edge in (a, b))
    rows = (max(0, round(edge / ALONG)) for edge in (near, far))
    return slice(*rows), slice(*columns)
