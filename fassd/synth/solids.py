"""Objects made of flat faces, the faces' outlines, and the projection of many at once.

An outline is a list of points in metres: (right, up) for a face across the street, (ahead, up) for
one along it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fassd.io.palette import CITYSCAPES
from fassd.synth.arrays import Bytes, Floats
from fassd.synth.colors import Color

Span = tuple[float, float]
Outline = list[tuple[float, float]]
Points = list[tuple[float, float, float]]

LABEL = {info.name: index for index, info in enumerate(CITYSCAPES)}
NEAR = 0.4  # metres: nothing closer than this is painted
SHIFT = 4  # polygons have corners in sixteenths of a pixel


def rectangle(low: Span, high: Span) -> Outline:
    """Upright, between two opposite corners."""
    return [low, (high[0], low[1]), high, (low[0], high[1])]


def oval(center: Span, radius: float, tall: float | None = None, corners: int = 10) -> Outline:
    """An ellipse `radius` to either side and `tall` (by default as much) up and down."""
    (x, y), up = center, radius if tall is None else tall
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return [(x + radius * float(np.cos(a)), y + up * float(np.sin(a))) for a in angles]


def limb(a: Span, b: Span, thick: float) -> Outline:
    """A straight bar from `a` to `b`."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    length = (dx * dx + dy * dy) ** 0.5 + 1e-9
    ox, oy = -dy / length * thick / 2, dx / length * thick / 2
    return [
        (a[0] + ox, a[1] + oy), (b[0] + ox, b[1] + oy), (b[0] - ox, b[1] - oy),
        (a[0] - ox, a[1] - oy),
    ]  # fmt: skip


class Solid:
    """Flat faces of one thing in its own coordinates: (right, up, ahead) from its foot, metres.

    Faces are painted in the order in which they were added. With a `center` they form a body that
    is convex around it, and faces directed away from the camera vanish; without one, or where they
    are `flat`, both of their sides are visible.
    """

    def __init__(self, label: str, center: tuple[float, float, float] | None = None) -> None:
        self.label, self.flat, self.center = label, center is None, center or (0, 1, 0)
        self.points: Points = []
        self.counts: list[int] = []
        self.colors: list[Color] = []
        self.labels: list[int] = []
        self.flags: list[tuple[bool, bool]] = []  # (cull, glows)

    def face(
        self, points: Points, color: Color, *, flat: bool = False, glows: bool = False,
        label: str | None = None,
    ) -> None:  # fmt: skip
        """A polygon with at least three corners."""
        self.points += points
        self.counts.append(len(points))
        self.colors.append(color)
        self.labels.append(LABEL[label or self.label])
        self.flags.append((not (flat or self.flat), glows))

    def front(
        self, outline: Outline, color: Color, at: float = 0.0, *, flat: bool = False,
        glows: bool = False, label: str | None = None,
    ) -> None:  # fmt: skip
        """A face across the street, `at` metres ahead of the foot."""
        points = [(x, y, at) for x, y in outline]
        self.face(points, color, flat=flat, glows=glows, label=label)

    def side(
        self, outline: Outline, color: Color, x: float = 0.0, *, flat: bool = False,
        label: str | None = None,
    ) -> None:  # fmt: skip
        """A face along the street, `x` metres to the right of the foot."""
        self.face([(x, y, u) for u, y in outline], color, flat=flat, label=label)


class Placed(NamedTuple):
    """A solid with its foot at (x, 0, z), turned right by `heading` radians."""

    solid: Solid
    x: float
    z: float
    heading: float


def in_world(placed: list[Placed]) -> tuple[Floats, Floats]:
    """All corners, (n, 3), and the centre of the solid of every face, (faces, 3)."""
    places = np.array([item[1:] for item in placed])

    def turned(points: Floats, counts: list[int]) -> Floats:
        x, z, heading = np.repeat(places, counts, axis=0).T
        sine, cosine = np.sin(heading), np.cos(heading)
        right, up, ahead = points.T
        return np.column_stack(
            [x + right * cosine + ahead * sine, up, z - right * sine + ahead * cosine]
        )

    points = np.array([point for item in placed for point in item.solid.points])
    faces = [len(item.solid.counts) for item in placed]
    centers = np.repeat(np.array([item.solid.center for item in placed], float), faces, axis=0)
    return turned(points, [len(item.solid.points) for item in placed]), turned(centers, faces)


def normals_of(
    points: Floats, first: Bytes, counts: Bytes, centers: Floats, eye: Floats
) -> tuple[Floats, Bytes]:
    """Unit normals away from the centres, (faces, 3), and a mask of those away from the camera."""
    corner = points[first]
    following = np.arange(1, len(points) + 1)
    following[first + counts - 1] = first
    # Newell's normal also suits faces that are not quite flat, such as a car's flank.
    normals = np.add.reduceat(np.cross(points, points[following]), first)
    normals /= np.sqrt((normals**2).sum(1, keepdims=True)) + 1e-9
    normals *= np.where(((corner - centers) * normals).sum(1) < 0, -1.0, 1.0)[:, None]
    return normals, ((corner - eye) * normals).sum(1) > 0


def outlines_of(
    pixels: Floats, first: Bytes, counts: Bytes, shown: Bytes, size: tuple[int, int]
) -> list[Bytes | None]:
    """Corners of every face for OpenCV; None for faces outside the view or not `shown`."""
    depth = pixels[:, 2]
    scaled = pixels[:, :2] / np.maximum(depth, NEAR)[:, None] * (1 << SHIFT)
    corners = np.clip(scaled, -1e6, 1e6).round().astype(np.int32)
    low, high = np.minimum.reduceat(corners, first), np.maximum.reduceat(corners, first)
    limit = np.array(size) << SHIFT
    whole = np.minimum.reduceat(depth, first) > NEAR
    shown = shown & (np.maximum.reduceat(depth, first) > NEAR)
    shown &= ~whole | ((high > -(1 << SHIFT)) & (low < limit)).all(1)
    outlines: list[Bytes | None] = [None] * len(counts)
    for k in np.flatnonzero(shown).tolist():
        face = slice(first[k], first[k] + counts[k])
        outlines[k] = corners[face] if whole[k] else clipped_outline(pixels[face])
    return outlines


def clipped_outline(pixels: Floats) -> Bytes | None:
    """Homogeneous pixels (n, 3) clipped at `NEAR`, as corners for OpenCV; None if all behind."""
    kept = []
    for a, b in zip(pixels, np.roll(pixels, -1, axis=0), strict=True):
        if a[2] > NEAR:
            kept.append(a)
        if (a[2] > NEAR) != (b[2] > NEAR):
            kept.append(a + (b - a) * ((NEAR - a[2]) / (b[2] - a[2])))
    if len(kept) < 3:
        return None
    corners = np.array(kept)
    scaled = corners[:, :2] / corners[:, 2:] * (1 << SHIFT)
    return np.clip(scaled, -1e6, 1e6).round().astype(np.int32)
