"""Sun, sky and air of one scene."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fassd.synth.arrays import Floats
from fassd.synth.colors import Color, scaled


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


class Light:
    """Sun, sky and air of a scene: one of `MOODS`, the sun from any side."""

    def __init__(self, rng: np.random.Generator) -> None:
        name = str(rng.choice(list(MOODS), p=ODDS))
        mood = MOODS[name]
        high = rng.uniform(0.5, 1.1) if name == "sun" else rng.uniform(0.25, 0.45)
        turn = rng.uniform(-np.pi, np.pi)
        # The unit vector towards the sun.
        self.sun = (np.sin(turn) * np.cos(high), np.sin(high), np.cos(turn) * np.cos(high))
        strength = rng.uniform(0.9, 1.1)
        self.direct = mood.direct * strength  # brightness of the sun; 0 under clouds
        self.ambient = mood.ambient * strength
        self.tint = (np.array(mood.tint) * (1 + rng.normal(0, 0.025, 3))).tolist()  # factors
        gray = rng.uniform(150, 235)
        self.haze, self.zenith = mood.haze, mood.zenith
        if name == "clouds":
            self.haze, self.zenith = (gray, gray, gray), scaled((gray, gray, gray), 0.85)
        # Metres over which haze takes 63% of the colour.
        self.visibility = mood.visibility * rng.uniform(0.7, 1.4)
        self.clouds = mood.clouds  # fraction of the blue that they hide, 0 .. 1
        # True if windows and lamps are lit.
        self.lamps = name == "dusk" or (name in ("fog", "clouds") and rng.random() < 0.4)

    @property
    def full(self) -> float:
        """Brightness of level ground in the sun."""
        return self.ambient + self.direct * max(self.sun[1], 0)

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
