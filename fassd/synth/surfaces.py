"""Upright surfaces with a texture: walls, house fronts and fences."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from fassd.synth.arrays import Bytes
from fassd.synth.canvas import Canvas, Upright, tint
from fassd.synth.colors import Color
from fassd.synth.textures import BAYS, SIZE, Facade

FENCE_TILE = 2.0  # metres along that a fence's texture spans
LIT_WINDOW = (255, 214, 140)
GLASS = (0.62, 0.66, 0.74)  # fraction of each colour of the sky that panes mirror


@dataclass(frozen=True)
class Look:
    """The appearance of a house front."""

    wall: list[Bytes]
    color: Color
    windows: Facade
    frame: Color
    glass: float  # brightness of the sky in the panes


def _level(canvas: Canvas, panel: Upright, texels: float, levels: int) -> int:
    """The pyramid level whose texels, `texels` a metre at level 0, come nearest to one pixel."""
    near = max(panel.corner[2], 1.5)
    far = max(panel.corner[2] + panel.along[1] * panel.length, near)
    depth = float(np.sqrt(near * far))
    return int(np.clip(np.log2(max(texels * depth / canvas.focal, 1e-3)) + 0.3, 0, levels - 1))


def paint_wall(
    canvas: Canvas, panel: Upright, texture: list[Bytes], tile: float, color: Color, label: str,
    bright: float,
) -> None:  # fmt: skip
    """One texture, `tile` metres wide, over the whole panel."""
    if not canvas.sees(panel):
        return
    shown = texture[_level(canvas, panel, SIZE / tile, len(texture))]
    texels = shown.shape[0] / tile
    canvas.surface(panel, tint(shown, color), (texels, texels), label, bright)


def paint_fence(
    canvas: Canvas, panel: Upright, grid: list[Bytes], color: Color, bright: float
) -> None:
    """Bars with the background between them; the label covers both, as in Cityscapes."""
    holes = grid[_level(canvas, panel, SIZE / FENCE_TILE, len(grid) - 1)]
    side = holes.shape[0]
    texels = side / FENCE_TILE, side / panel.height
    canvas.surface(panel, _flat(holes, color), texels, "fence", bright, holes)


def paint_front(
    canvas: Canvas, panel: Upright, look: Look, bay: float, storey: float, bright: float
) -> None:
    """A wall with windows every `bay` metres along and `storey` metres up, from the top down."""
    if panel.height < 0.5 or not canvas.sees(panel):
        return
    windows, levels = look.windows, len(look.windows.glass)
    # Composed at the size at which it is seen: most fronts are far away and cost next to nothing.
    level = _level(canvas, panel, SIZE / (BAYS * bay), levels)
    tile = tint(look.wall[level], look.color)
    cv2.copyTo(_flat(tile, look.frame), windows.frames[level], tile)
    red, green, blue = (
        c * 0.9 * look.glass * k for c, k in zip(canvas.light.haze, GLASS, strict=True)
    )
    cv2.copyTo(tint(windows.glass[level], (red, green, blue)), windows.panes[level], tile)
    if canvas.light.lamps:
        cv2.copyTo(_flat(tile, LIT_WINDOW), windows.lit[level], tile)
    cell = tile.shape[0] / BAYS
    canvas.surface(panel, tile, (cell / bay, cell / storey), "building", bright)


def _flat(like: Bytes, color: Color) -> Bytes:
    """A picture of one colour, as large as `like`."""
    flat = np.empty((*like.shape[:2], 3), np.uint8)
    flat[:] = np.clip(color, 0, 255)
    return flat
