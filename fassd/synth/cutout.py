"""Flat figures in upright planes, and the outlines that they are drawn with.

An outline is a list of points in metres: (right, up) for a figure that faces along the street,
(ahead, up) for one that is seen from the side.
"""

from __future__ import annotations

import numpy as np

from fassd.synth.colors import Color
from fassd.synth.solids import Solid

__all__ = ["DARK", "Cutout", "Outline", "Spot", "limb", "oval", "rectangle"]

Spot = tuple[float, float]
Outline = list[Spot]

DARK: Color = (28, 28, 30)


class Cutout(Solid):
    """A solid of flat faces that are seen from both of their sides."""

    def front(
        self, outline: Outline, color: Color, at: float = 0.0, *, label: int | None = None,
        glows: bool = False,
    ) -> None:  # fmt: skip
        """A face across the street, `at` metres ahead of the foot."""
        points = [(x, y, at) for x, y in outline]
        self.face(points, color, cull=False, glows=glows, label=label)

    def side(self, outline: Outline, color: Color, *, label: int | None = None) -> None:
        """A face along the street."""
        self.face([(0.0, y, u) for u, y in outline], color, cull=False, label=label)


def rectangle(low: Spot, high: Spot) -> Outline:
    """Upright, between two opposite corners."""
    return [low, (high[0], low[1]), high, (low[0], high[1])]


def oval(center: Spot, radius: float, tall: float | None = None, corners: int = 10) -> Outline:
    """An ellipse `radius` to either side and `tall` (by default as much) up and down."""
    (x, y), up = center, radius if tall is None else tall
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return [(x + radius * float(np.cos(a)), y + up * float(np.sin(a))) for a in angles]


def limb(a: Spot, b: Spot, thick: float) -> Outline:
    """A straight bar from `a` to `b`."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    length = (dx * dx + dy * dy) ** 0.5 + 1e-9
    ox, oy = -dy / length * thick / 2, dx / length * thick / 2
    return [
        (a[0] + ox, a[1] + oy), (b[0] + ox, b[1] + oy), (b[0] - ox, b[1] - oy),
        (a[0] - ox, a[1] - oy),
    ]  # fmt: skip
