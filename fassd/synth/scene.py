"""A whole scene: street, objects, camera and lens, all drawn before any pixel is painted."""

from __future__ import annotations

import cv2
import numpy as np

from fassd.synth.arrays import Bytes
from fassd.synth.backdrop import paint_ground, paint_sky
from fassd.synth.camera import Camera, Lens
from fassd.synth.canvas import Canvas
from fassd.synth.frontage import build_far_end, build_sides
from fassd.synth.street import Street, pick
from fassd.synth.textures import Bank
from fassd.synth.traffic import furnish, populate


class Scene:
    """One scene, which can be rendered at any size."""

    def __init__(self, rng: np.random.Generator, bank: Bank) -> None:
        self.street = Street(rng, bank)
        self.camera = Camera(rng)
        self.street.lay_ground()
        build_sides(self.street)
        build_far_end(self.street)
        furnish(self.street)
        populate(self.street)
        self.clouds = pick(rng, bank.clouds)
        self.lens = Lens(rng, bank.noise)

    def show(self, height: int, width: int) -> tuple[Bytes, Bytes]:
        """The picture, (height, width, 3) RGB, and its trainIds, (height, width)."""
        street = self.street
        canvas = Canvas((height, width), self.camera, street.light)
        paint_sky(canvas, self.clouds)
        paint_ground(canvas, street)
        street.paint(canvas)
        pixels = cv2.flip(canvas.pixels, 1) if street.mirrored else canvas.pixels
        rgb = np.ascontiguousarray(pixels[..., :3])
        return self.lens.expose(rgb), np.ascontiguousarray(pixels[..., 3])
