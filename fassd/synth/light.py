"""Sun, sky and air of one scene."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fassd.synth.arrays import Floats
from fassd.synth.colors import Color

__all__ = ["Light", "Sky", "draw_light"]


@dataclass(frozen=True)
class Light:
    """Where light comes from and what the air does to it."""

    sun: tuple[float, float, float]  # unit vector towards the sun
    direct: float  # strength of the sun; 0 under clouds
    ambient: float
    tint: Color  # factors, about 1
    haze: Color
    visibility: float  # metres over which haze takes 63% of the colour
    lamps: bool  # windows and lamps are lit

    def shade(self, normals: Floats) -> Floats:
        """Brightness of surfaces with unit normals (n, 3)."""
        facing = np.maximum(normals @ np.asarray(self.sun), 0)
        return self.ambient * (0.88 + 0.12 * normals[:, 1]) + self.direct * facing

    def shade_of(self, x: float, z: float) -> float:
        """Brightness of an upright surface whose unit normal is (x, 0, z)."""
        return float(self.shade(np.array([[x, 0.0, z]]))[0])

    def seen(self, colors: Floats, distance: Floats | float) -> Floats:
        """Colours (..., 3) through `distance` metres of air."""
        clear = np.exp(np.asarray(distance) / -self.visibility)[..., None]
        return colors * np.asarray(self.tint) * clear + np.asarray(self.haze) * (1 - clear)


@dataclass(frozen=True)
class Sky:
    zenith: Color
    clouds: float  # how much of the blue they hide, 0 .. 1


class _Mood(NamedTuple):
    direct: float
    ambient: float
    tint: Color
    haze: Color
    zenith: Color
    visibility: float
    clouds: float


MOODS = {
    "sun": _Mood(0.62, 0.58, (1.03, 1.0, 0.96), (200, 214, 228), (66, 120, 196), 420, 0.8),
    "low sun": _Mood(0.72, 0.48, (1.14, 0.98, 0.80), (238, 208, 168), (104, 134, 182), 300, 0.6),
    "clouds": _Mood(0.0, 0.92, (0.97, 0.99, 1.02), (192, 192, 192), (163, 163, 163), 260, 0.3),
    "fog": _Mood(0.0, 0.95, (0.98, 0.99, 1.0), (205, 208, 210), (212, 214, 216), 75, 0.05),
    "dusk": _Mood(0.0, 0.62, (0.92, 0.92, 1.10), (110, 104, 124), (52, 62, 104), 280, 0.35),
}
ODDS = [0.4, 0.17, 0.25, 0.08, 0.1]


def draw_light(rng: np.random.Generator) -> tuple[Light, Sky]:
    """The weather of a scene: one of `MOODS`, the sun from any side."""
    name = str(rng.choice(list(MOODS), p=ODDS))
    mood = MOODS[name]
    high = rng.uniform(0.5, 1.1) if name == "sun" else rng.uniform(0.25, 0.45)
    turn = rng.uniform(-np.pi, np.pi)
    sun = (np.sin(turn) * np.cos(high), np.sin(high), np.cos(turn) * np.cos(high))
    strength = rng.uniform(0.9, 1.1)
    red, green, blue = (np.array(mood.tint) * (1 + rng.normal(0, 0.025, 3))).tolist()
    haze, zenith, gray = mood.haze, mood.zenith, rng.uniform(150, 235)
    if name == "clouds":
        haze, zenith = (gray, gray, gray), (gray * 0.85, gray * 0.85, gray * 0.85)
    visibility = mood.visibility * rng.uniform(0.7, 1.4)
    lamps = name == "dusk" or (name in ("fog", "clouds") and rng.random() < 0.4)
    light = Light(
        sun, mood.direct * strength, mood.ambient * strength, (red, green, blue), haze,
        visibility, lamps,
    )  # fmt: skip
    return light, Sky(zenith, mood.clouds)
