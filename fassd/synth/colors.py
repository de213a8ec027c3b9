"""Colours by what they are used for. The ranges overlap: no colour reveals a class.

Road and pavement draw from one range, houses, walls and fences from another, grass and leaves from
a third, and everything that drives from a fourth.
"""

from __future__ import annotations

import colorsys

import numpy as np

Color = tuple[float, float, float]
"""Red, green, blue; 0 .. 255."""


def scaled(color: Color, factor: float) -> Color:
    return (color[0] * factor, color[1] * factor, color[2] * factor)


def _hsv(hue: float, saturation: float, value: float) -> Color:
    return scaled(colorsys.hsv_to_rgb(hue, saturation, value), 255)


def paint(rng: np.random.Generator) -> Color:
    """Lacquer or cloth: half of them grey, the others of any hue."""
    if rng.random() < 0.5:
        gray = rng.uniform(25, 235)
        return (gray, gray + rng.normal(0, 3), gray + rng.normal(0, 5))
    return _hsv(rng.random(), rng.uniform(0.3, 0.95), rng.uniform(0.25, 0.92))


def metal(rng: np.random.Generator) -> Color:
    """Posts: mostly grey, from dark to light."""
    if rng.random() < 0.2:
        return paint(rng)
    gray = rng.uniform(40, 205)
    return (gray, gray, gray * rng.uniform(0.95, 1.08))


def glass(rng: np.random.Generator) -> Color:
    """Windows of vehicles."""
    base = rng.uniform(22, 95)
    return (base, base * 1.08, base * 1.18)


def skin(rng: np.random.Generator) -> Color:
    return scaled((1.0, 0.78, 0.63), rng.uniform(95, 225))


def pavement(rng: np.random.Generator) -> Color:
    """Surfaces to walk or drive on: grey to brown, red or bluish."""
    gray, warm = rng.uniform(62, 185), rng.normal(0.02, 0.05)
    return (gray * (1 + warm), gray, gray * (1 - warm))


def facade(rng: np.random.Generator) -> Color:
    """Plaster, brick, concrete or wood, and any paint on it."""
    hue = rng.choice([rng.uniform(0.0, 0.14), rng.random()], p=[0.75, 0.25])
    return _hsv(float(hue), rng.uniform(0.02, 0.40), rng.uniform(0.35, 0.95))


def leaves(rng: np.random.Generator) -> Color:
    """Leaves and grass: green, sometimes autumn."""
    hue = rng.uniform(0.17, 0.36) if rng.random() < 0.8 else rng.uniform(0.06, 0.17)
    return _hsv(hue, rng.uniform(0.25, 0.65), rng.uniform(0.3, 0.62))
