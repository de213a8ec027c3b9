"""Position and direction of the camera, and the effect of its lens and sensor on the view."""

from __future__ import annotations

from functools import cached_property

import cv2
import numpy as np

from fassd.synth.arrays import Bytes, Floats


class Camera:
    """A pinhole camera behind the windscreen of a car or a van.

    Its `height` is in metres, angles in radians, the focal length in picture heights.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.height = rng.uniform(1.25, 2.3)
        self.focal = rng.uniform(0.88, 1.25)
        self.pitch = rng.uniform(0.0, 0.11)  # positive looks down
        self.yaw = rng.normal(0, 0.05)
        self.roll = rng.normal(0, 0.008)

    @cached_property
    def rotation(self) -> Floats:
        """World axes to (right, down, ahead) of the camera, 3 x 3."""
        (sp, cp), (sy, cy), (sr, cr) = (
            (np.sin(a), np.cos(a)) for a in (self.pitch, self.yaw, self.roll)
        )
        turn = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
        nod = np.array([[1, 0, 0], [0, -cp, -sp], [0, -sp, cp]])
        lean = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
        return lean @ nod @ turn


class Lens:
    """Faults of an average lens and sensor on a good or a bad day.

    Lengths are thousandths of the picture's height; `grain` is noise around 128, (n, n, 3).
    """

    def __init__(self, rng: np.random.Generator, grain: Bytes) -> None:
        angle, far = rng.uniform(0, np.pi), rng.exponential(0.9) * (rng.random() < 0.4)
        self.motion = (far * np.cos(angle), far * np.sin(angle))
        self.blur = rng.uniform(0.3, 1.3)
        self.vignette = rng.uniform(0, 0.35)  # darkening half way to a square's corner, 0 .. 1
        self.gain = float(np.exp(rng.normal(0, 0.14)))
        self.gamma = float(np.exp(rng.normal(0, 0.12)))
        self.balance = np.exp(rng.normal(0, 0.035, 3)).tolist()
        self.noise = rng.uniform(0.04, 0.28)
        offset = int(rng.integers(len(grain))), int(rng.integers(len(grain)))
        self.grain = np.roll(grain, offset, (0, 1))

    def expose(self, rgb: Bytes) -> Bytes:
        """The picture (H, W, 3) that the sensor makes of a view."""
        height, width = rgb.shape[:2]
        unit = height / 1000
        # At least half a pixel: it smooths the edges, which are painted without antialiasing.
        rgb = cv2.GaussianBlur(rgb, (0, 0), max(self.blur * unit, 0.5))
        dx, dy = self.motion[0] * unit, self.motion[1] * unit
        if dx * dx + dy * dy > 0.25:
            rgb = cv2.filter2D(rgb, -1, _streak(dx, dy))
        rgb = cv2.LUT(rgb, self._curve(rgb))
        if self.vignette > 0.05:
            v = (np.arange(height, dtype=np.float32) / height - 0.5)[:, None]
            u = (np.arange(width, dtype=np.float32) / width - 0.5)[None]
            fall = 1 - np.float32(self.vignette) * (u * u + v * v)
            rgb = cv2.multiply(rgb, cv2.merge([fall, fall, fall]), dtype=cv2.CV_8U)
        copies = (-(-height // len(self.grain)), -(-width // len(self.grain)), 1)
        noise = np.tile(self.grain, copies)[:height, :width]
        return cv2.addWeighted(rgb, 1, noise, self.noise, -128 * self.noise)

    def _curve(self, rgb: Bytes) -> Bytes:
        """A table from scene to sensor: gamma, automatic exposure, white balance; (256, 1, 3)."""
        levels = (np.arange(256) / 255) ** self.gamma
        seen = float(levels[cv2.resize(rgb, (32, 32), interpolation=cv2.INTER_AREA)].mean())
        # Most of the way to a middle grey, as real cameras do.
        gain = self.gain * float(np.clip((0.42 / max(seen, 0.02)) ** 0.75, 0.7, 1.9))
        curve = [_shoulder(levels * gain * b) * 255 for b in self.balance]
        return np.stack(curve, 1).astype(np.uint8)[:, None]


def _streak(dx: float, dy: float) -> Floats:
    """A kernel that smears (dx, dy) pixels to either side."""
    size = 2 * int(max(abs(dx), abs(dy)) + 1) + 1
    kernel = np.zeros((size, size), np.float32)
    for t in np.linspace(-1, 1, 4 * size):
        kernel[round(size // 2 + t * dy), round(size // 2 + t * dx)] += 1
    return kernel / kernel.sum()


def _shoulder(levels: Floats) -> Floats:
    """Compress levels above 0.7, so that highlights do not burn out."""
    return np.where(levels < 0.7, levels, 1 - 0.3 * np.exp((0.7 - levels) / 0.3))
