"""The canvas on which solids, textured surfaces and crowns are painted.

World coordinates are metres: x to the right, y up from the ground, z ahead; the camera stands at
(0, its height, 0). The canvas holds red, green, blue and label together in one (H, W, 4) uint8
array, so that one OpenCV call paints both and they cannot disagree.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Concatenate, NamedTuple, ParamSpec

import cv2
import numpy as np

from fassd.synth.arrays import Bytes, Floats
from fassd.synth.camera import Camera
from fassd.synth.colors import Color
from fassd.synth.light import Light
from fassd.synth.solids import (
    LABEL,
    NEAR,
    SHIFT,
    Placed,
    Points,
    Solid,
    clipped_outline,
    in_world,
    normals_of,
    outlines_of,
)
from fassd.synth.textures import Foliage

LOOK_UP = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
P = ParamSpec("P")


def tint(gray: Bytes, color: Color) -> Bytes:
    """Colour a grey texture; 128 becomes `color`."""
    ramp = np.arange(256)[:, None] * (np.asarray(color) / 128)
    table = np.clip(ramp, 0, 255).astype(np.uint8)[:, None]
    return cv2.LUT(cv2.merge([gray, gray, gray]), table)


class Upright(NamedTuple):
    """An upright rectangle: its near lower corner, the direction of its lower edge, its size."""

    corner: tuple[float, float, float]
    along: tuple[float, float]  # unit vector (x, z)
    length: float
    height: float

    @property
    def heading(self) -> float:
        """Direction of the lower edge, in radians to the right of z."""
        return float(np.arctan2(*self.along))

    @property
    def edge(self) -> Floats:
        """Unit vector of the lower edge, (3,)."""
        return np.array([self.along[0], 0.0, self.along[1]])

    @property
    def corners(self) -> Floats:
        """Both lower corners and both upper ones, around the rectangle, (4, 3)."""
        foot, reach = np.asarray(self.corner, float), self.edge * self.length
        rise = np.array([0.0, self.height, 0.0])
        return np.array([foot, foot + reach, foot + reach + rise, foot + rise])


def _developed(
    paint: Callable[Concatenate[Canvas, P], None],
) -> Callable[Concatenate[Canvas, P], None]:
    """Record the call of a painting method; `Canvas.develop` carries it out."""

    @functools.wraps(paint)
    def note(canvas: Canvas, /, *args: P.args, **options: P.kwargs) -> None:
        canvas._script.append(functools.partial(paint, canvas, *args, **options))

    return note


class Canvas:
    """A view of `size` = (height, width) pixels under one light."""

    def __init__(self, size: tuple[int, int], camera: Camera, light: Light) -> None:
        self.height, self.width = size
        self.camera, self.light = camera, light
        self.pixels = np.zeros((*size, 4), np.uint8)
        self.pixels[..., 3] = LABEL["sky"]
        focal = camera.focal * self.height
        lens = np.array(
            [[focal, 0, self.width / 2 - 0.5], [0, focal, self.height / 2 - 0.5], [0, 0, 1]]
        )
        self.matrix = lens @ camera.rotation  # world directions to homogeneous pixels
        self.matrix_inverse = np.linalg.inv(self.matrix)
        self.eye = np.array([0.0, camera.height, 0.0])
        self.focal = focal
        self._script: list[Placed | Callable[[], None]] = []

    def project(self, points: Floats) -> tuple[Floats, Floats]:
        """World points (n, 3) to homogeneous pixels (n, 3) and their depth (n,)."""
        pixels = (points - self.eye) @ self.matrix.T
        return pixels, pixels[:, 2]

    def rays(self, rows: slice) -> tuple[Floats, Floats, Floats]:
        """World directions (x, y, z) through the pixels of `rows`, each (rows, W) float32."""
        inverse = self.matrix_inverse.astype(np.float32)
        v = np.arange(self.height, dtype=np.float32)[rows, None]
        u = np.arange(self.width, dtype=np.float32)[None]
        x, y, z = (a * u + (b * v + c) for a, b, c in inverse)
        return x, y, z

    # ------------------------------------------------------------------------------ polygons

    def solid(self, solid: Solid, x: float, z: float, heading: float = 0.0) -> None:
        """Paint `solid` with its foot at (x, 0, z), turned right by `heading` radians."""
        self._script.append(Placed(solid, x, z, heading))

    def develop(self) -> None:
        """Carry out all recorded calls, in the order in which they were made.

        All solids are projected at once: one by one they would take four times as long.
        """
        placed = [step for step in self._script if isinstance(step, Placed)]
        faces = iter(self._faces(placed) if placed else [])
        for step in self._script:
            if not isinstance(step, Placed):
                step()
                continue
            for outline, paint in itertools.islice(faces, len(step.solid.counts)):
                if outline is not None:
                    cv2.fillPoly(self.pixels, [outline], paint, cv2.LINE_8, SHIFT)
        self._script.clear()

    def _faces(self, placed: list[Placed]) -> list[tuple[Bytes | None, list[float]]]:
        """Each face of some solids: its outline if visible, with its colour and label."""
        solids = [item.solid for item in placed]
        counts = np.concatenate([solid.counts for solid in solids])
        first = np.cumsum(counts) - counts
        points, centers = in_world(placed)
        normals, away = normals_of(points, first, counts, centers, self.eye)
        cull, glows = np.concatenate([solid.flags for solid in solids]).T
        normals[~cull & away] *= -1  # flat things face the camera whichever way they were drawn

        pixels, depth = self.project(points)
        bright = np.where(glows, 1.0, self.light.shade(normals))
        distance = np.maximum(np.add.reduceat(depth, first) / counts, NEAR)
        colors = np.concatenate([solid.colors for solid in solids]) * bright[:, None]
        colors = np.clip(self.light.seen(colors, distance), 0, 255)
        labels = np.concatenate([solid.labels for solid in solids])
        paints = np.column_stack([colors, labels]).round().tolist()
        outlines = outlines_of(pixels, first, counts, ~(cull & away), (self.width, self.height))
        return list(zip(outlines, paints, strict=True))

    def sees(self, panel: Upright) -> bool:
        """True if a rectangle may touch the picture."""
        pixels, depth = self.project(panel.corners)
        if depth.max() < NEAR:
            return False
        if depth.min() < NEAR:
            return True
        u, v = pixels[:, 0] / depth, pixels[:, 1] / depth
        return bool(
            u.max() > -1 and u.min() < self.width and v.max() > -1 and v.min() < self.height
        )

    # ------------------------------------------------------------------- surfaces and crowns

    @_developed
    def surface(
        self, panel: Upright, texture: Bytes, texels: tuple[float, float], label: str,
        bright: float, holes: Bytes | None = None,
    ) -> None:  # fmt: skip
        """Paint a rectangle with a texture that repeats.

        Args:
            panel: rectangle to paint.
            texture: (h, w, 3); its upper left corner lies at the upper near corner.
            texels: number of texture pixels per metre, (along, up).
            label: class of the whole rectangle, holes included.
            bright: factor for the colours.
            holes: (h, w), 255 where the texture is solid; None if it is solid everywhere.
        """
        pixels, depth = self.project(panel.corners)
        outline = clipped_outline(pixels)
        if outline is None:
            return
        low = np.maximum((outline.min(0) >> SHIFT) - 1, 0)
        high = np.minimum((outline.max(0) >> SHIFT) + 2, (self.width, self.height))
        if (high <= low).any():
            return
        area = self.pixels[low[1] : high[1], low[0] : high[0]]
        # (texture x, texture y, 1) -> pixel of this area, for the plane of the rectangle.
        plane = np.column_stack(
            [panel.edge / texels[0], (0, -1 / texels[1], 0), panel.corners[3] - self.eye]
        )
        shift = np.array([[1, 0, -low[0]], [0, 1, -low[1]], [0, 0, 1.0]])
        inverse = np.linalg.inv(shift @ self.matrix @ plane)
        box = (int(high[0] - low[0]), int(high[1] - low[1]))
        mask = np.zeros(box[::-1], np.uint8)
        corners = outline - (low << SHIFT).astype(np.int32)
        cv2.fillPoly(mask, [corners], 255, cv2.LINE_8, SHIFT)
        shown = self.dim(texture, bright, float(np.maximum(depth, NEAR).mean()))
        seen = cv2.warpPerspective(shown, inverse, box, flags=LOOK_UP, borderMode=cv2.BORDER_WRAP)
        if holes is not None:  # the background shows through, but gets the label
            solid = cv2.warpPerspective(
                holes, inverse, box, flags=LOOK_UP, borderMode=cv2.BORDER_WRAP
            )
            through = cv2.threshold(solid, 100, 255, cv2.THRESH_BINARY_INV)[1]
            cv2.copyTo(np.ascontiguousarray(area[..., :3]), through, seen)
        painted = cv2.merge([*cv2.split(seen), np.full(mask.shape, LABEL[label], np.uint8)])
        cv2.copyTo(painted, mask, area)

    def dim(self, texture: Bytes, bright: float, distance: float) -> Bytes:
        """A texture (h, w, 3) under this light, seen through `distance` metres of air."""
        ramp = np.repeat(np.arange(256.0)[:, None] * bright, 3, 1)
        table = np.clip(self.light.seen(ramp, distance), 0, 255).astype(np.uint8)
        return cv2.LUT(texture, table[:, None])

    @_developed
    def crown(
        self, foot: tuple[float, float, float], size: tuple[float, float], foliage: Foliage,
        color: Color, bright: float, flip: bool,
    ) -> None:  # fmt: skip
        """Paint a tree's crown, `size` = (width, height) metres, that faces the camera.

        `foot` is the middle of its lower edge.
        """
        pixel, depth = self.project(np.array([foot]))
        if depth[0] < 2.0:
            return
        scale = self.focal / depth[0]
        wide, tall = (max(1, round(length * scale)) for length in size)
        left = round(pixel[0, 0] / depth[0] - wide / 2)
        top = round(pixel[0, 1] / depth[0] - tall)
        x0, y0 = max(left, 0), max(top, 0)
        x1, y1 = min(left + wide, self.width), min(top + tall, self.height)
        if x1 <= x0 or y1 <= y0:
            return
        level = int(
            np.clip(np.log2(max(foliage.mask[0].shape[0] / tall, 1)), 0, len(foliage.mask) - 1)
        )
        mask, shade = foliage.mask[level], foliage.shade[level]
        if flip:
            mask, shade = cv2.flip(mask, 1), cv2.flip(shade, 1)
        step_x, step_y = mask.shape[1] / wide, mask.shape[0] / tall
        warp = np.array(
            [[step_x, 0, (x0 - left + 0.5) * step_x - 0.5],
             [0, step_y, (y0 - top + 0.5) * step_y - 0.5]]
        )  # fmt: skip
        box = x1 - x0, y1 - y0
        cut = cv2.warpAffine(mask, warp, box, flags=LOOK_UP)
        cut = cv2.threshold(cut, 127, 255, cv2.THRESH_BINARY)[1]
        shown = self.dim(tint(shade, color), bright, float(depth[0]))
        seen = cv2.warpAffine(shown, warp, box, flags=LOOK_UP)
        painted = cv2.merge([*cv2.split(seen), np.full_like(cut, LABEL["vegetation"])])
        cv2.copyTo(painted, cut, self.pixels[y0:y1, x0:x1])

    @_developed
    def disc(self, points: Points, x: float, z: float, heading: float, label: str) -> None:
        """Paint a see-through wheel: half the background shows between its spokes."""
        sine, cosine = np.sin(heading), np.cos(heading)
        turn = np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]])
        pixels, depth = self.project(np.array(points) @ turn + (x, 0, z))
        if depth.min() < NEAR:
            return
        corners = (pixels[:, :2] / depth[:, None]).round().astype(np.int32)
        low = np.maximum(corners.min(0), 0)
        high = np.minimum(corners.max(0) + 1, (self.width, self.height))
        if (high <= low).any():
            return
        area = self.pixels[low[1] : high[1], low[0] : high[0]]
        mask = np.zeros(area.shape[:2], np.uint8)
        cv2.fillPoly(mask, [corners - low.astype(np.int32)], 255)
        blend = cv2.addWeighted(area, 0.55, np.full_like(area, 60), 0.35, 0)
        blend[..., 3] = LABEL[label]
        cv2.copyTo(blend, mask, area)
