"""Texture banks: tileable grey patterns, facades, foliage and clouds, one bank per split.

A texture is grey, (SIZE, SIZE) uint8 with mean near 128, and is coloured when it is used. The banks
of "train" and "val" share no texture: their seeds differ, and with them the parameters, and each
has families of its own (`patterns.FAMILIES`). "test" uses a third bank with the families of "val".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from fassd.synth.arrays import Bytes, Floats
from fassd.synth.patterns import FAMILIES, SIZE, Family, cloudy, grassy, leafy

SPLITS = {"train": 0x7121, "val": 0x7A1, "test": 0x7E57}
BAYS = 4  # windows across and up one facade texture


@dataclass(frozen=True)
class Facade:
    """Windows for a wall, `BAYS` x `BAYS` of them on one tile."""

    glass: list[Bytes]  # brightness of the panes
    panes: list[Bytes]  # masks, 0 or 255
    frames: list[Bytes]
    lit: list[Bytes]  # panes with a lamp behind


@dataclass(frozen=True)
class Foliage:
    """The outline and shading of a tree crown or a bush."""

    mask: list[Bytes]
    shade: list[Bytes]


# ------------------------------------------------------------------------------ facades and trees


def _pyramid(values: Floats, levels: int = 6) -> list[Bytes]:
    pyramid: list[Bytes] = [np.clip(values, 0, 255).astype(np.uint8)]
    while len(pyramid) < levels:
        half = (pyramid[-1].shape[1] // 2, pyramid[-1].shape[0] // 2)
        pyramid.append(cv2.resize(pyramid[-1], half, interpolation=cv2.INTER_AREA))
    return pyramid


def _mask_pyramid(mask: Bytes) -> list[Bytes]:
    return [cv2.threshold(level, 110, 255, cv2.THRESH_BINARY)[1] for level in _pyramid(mask)]


def _pattern(rng: np.random.Generator, family: Family) -> list[Bytes]:
    return _pyramid(128 + family(rng))


def _fine(pyramid: list[Bytes]) -> list[Bytes]:
    """Put an enlargement first, for the ground at the camera's feet."""
    return [cv2.resize(pyramid[0], None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC), *pyramid]


def _windows(rng: np.random.Generator, shop: bool) -> Facade:
    """One tile of windows: the same shape in each bay, another reflection in each pane."""
    bay = SIZE // BAYS
    panes, frames, lit = (np.zeros((SIZE, SIZE), np.uint8) for _ in range(3))
    glass = np.clip(70 + cloudy(rng, 1.4) * 25, 0, 255).astype(np.uint8)
    half = bay * (rng.uniform(0.34, 0.46) if shop else rng.uniform(0.16, 0.38))
    low, high = (0.04, rng.uniform(0.6, 0.8)) if shop else (rng.uniform(0.1, 0.35), 0.0)
    high = high or rng.uniform(low + 0.35, 0.9)
    frame, arched = int(rng.integers(1, 5)), bool(rng.random() < 0.2)
    upright, level = rng.random() < 0.6, rng.random() < 0.4  # bars
    for j in range(BAYS):
        for i in range(BAYS):
            middle, base = (i + 0.5) * bay, (BAYS - j) * bay
            left, right, top = int(middle - half), int(middle + half), int(base - high * bay)
            door = shop and rng.random() < 0.3
            sill = base if door else int(base - low * bay)
            box = left, top, right, sill
            _opening(frames, box, frame, arched, half)
            _opening(panes, box, 0, arched, half)
            if upright:
                cv2.line(panes, (int(middle), top), (int(middle), sill), 0, 1)
            if level:
                y = top + (sill - top) // 3
                cv2.line(panes, (left, y), (right, y), 0, 1)
            if rng.random() < 0.45:
                cv2.rectangle(lit, (left, top), (right, sill), 255, -1)
            patch = glass[max(top, 0) : sill, left:right]
            patch[:] = np.clip(patch.astype(int) + int(rng.integers(-45, 80)), 0, 255)
    lit &= panes
    return Facade(_pyramid(glass), *(_mask_pyramid(mask) for mask in (panes, frames, lit)))


def _opening(
    mask: Bytes, box: tuple[int, int, int, int], grow: int, arched: bool, half: float
) -> None:
    """A rectangle (left, top, right, bottom), perhaps with an arch on top."""
    left, top, right, bottom = box
    cv2.rectangle(mask, (left - grow, top - grow), (right + grow, bottom + grow), 255, -1)
    if arched:
        axes = (int(half) + grow, int(half * 0.6) + grow)
        cv2.ellipse(mask, (int((left + right + 1) / 2), top), axes, 0, 180, 360, 255, -1)


def _grid(rng: np.random.Generator, make: int) -> list[Bytes]:
    """A fence seen from the front: 255 where a bar, wire, rail or board is. One tile is 2 m.

    A fence has few parameters, and two draws may agree. `make`, which differs between splits, moves
    its cross rails and slants its wires, so that no two splits have a fence in common.
    """
    bars = np.zeros((SIZE, SIZE), np.uint8)
    kind = rng.choice(["bars", "mesh", "boards", "rails"])
    if kind == "bars":
        count, thick = int(rng.integers(8, 20)), int(rng.integers(4, 9))
        for i in range(count):
            x = int((i + 0.5) * SIZE / count)
            cv2.rectangle(bars, (x - thick // 2, 0), (x + thick // 2, SIZE), 255, -1)
        for y in (0.08 + 0.06 * make, 0.9 - 0.04 * make):
            cv2.rectangle(bars, (0, int(y * SIZE)), (SIZE, int(y * SIZE) + 9), 255, -1)
    elif kind == "mesh":
        step, slant = SIZE // int(rng.choice([8, 16])), SIZE // (make + 1)
        for x in range(-SIZE, 2 * SIZE, step):
            cv2.line(bars, (x, 0), (x + slant, SIZE), 255, 3)
            cv2.line(bars, (x, SIZE), (x + slant, 0), 255, 3)
        bars[:10] = bars[-8:] = 255
        bars[:, :10] = 255
    elif kind == "boards":
        count = int(rng.integers(6, 14))
        gap = max(2, int(SIZE / count * rng.uniform(0.08, 0.4)))
        bars[:] = 255
        for i in range(count):
            x = int(i * SIZE / count)
            bars[:, x : x + gap] = 0
        for y in (0.2 + 0.05 * make, 0.75 - 0.05 * make):
            bars[int(y * SIZE) : int(y * SIZE) + 16] = 255
    else:
        count = int(rng.integers(2, 6))
        for i in range(count):
            y = int((i + 0.3 + 0.1 * make) * SIZE / count)
            bars[y : y + int(SIZE / count * rng.uniform(0.2, 0.5))] = 255
        bars[:, : int(rng.integers(10, 18))] = 255
    return _pyramid(bars, 5)


def _crown(rng: np.random.Generator, leaves: Bytes) -> Foliage:
    """An uneven heap of leaf clusters, brighter towards top and left."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    light = np.zeros((SIZE, SIZE), np.float32)
    wide, tall = rng.uniform(0.55, 1.0), rng.uniform(0.55, 1.0)
    clusters = []
    for _ in range(int(rng.integers(14, 34))):
        angle, far = rng.uniform(0, 2 * np.pi), np.sqrt(rng.random())
        size = rng.uniform(0.14, 0.34) * SIZE / 2
        reach = SIZE / 2 - size - 4
        x = SIZE / 2 + np.cos(angle) * far * reach * wide
        y = SIZE / 2 + np.sin(angle) * far * reach * tall
        clusters.append((y, x, size))
    for y, x, size in sorted(clusters, reverse=True):
        shade = float(0.7 - 0.45 * (y / SIZE - 0.5) * 2 - 0.2 * (x / SIZE - 0.5) * 2)
        cv2.circle(light, (int(x), int(y)), int(size * 1.05), shade, -1)
        cv2.circle(mask, (int(x), int(y)), int(size), 255, -1)
    rough = 40 * cloudy(rng, rng.uniform(0.5, 1.0)).astype(np.float32)
    soft = cv2.GaussianBlur(mask, (0, 0), 5).astype(np.float32) + rough
    near = cv2.dilate(mask, np.ones((15, 15))) > 0
    outline = cv2.medianBlur(np.where((soft > 128) & near, 255, 0).astype(np.uint8), 7)
    glow = cv2.GaussianBlur(light, (0, 0), 6)
    foliage = (leaves.astype(np.float32) - 128) * 0.8 + 40 + 90 * glow
    # Cropped to its outline, so that a crown fills the size at which it is painted.
    down, across = (np.flatnonzero(outline.sum(axis) > 1500) for axis in (1, 0))
    cut = slice(int(down[0]), int(down[-1]) + 1), slice(int(across[0]), int(across[-1]) + 1)
    full = [cv2.resize(a[cut].astype(np.float32), (SIZE, SIZE)) for a in (outline, foliage)]
    return Foliage(_pyramid(full[0]), _pyramid(full[1]))


class Bank:
    """All textures of one split; a list of grey pictures is a pyramid, finest first."""

    def __init__(self, split: str) -> None:
        rng = np.random.default_rng([0x7E47, SPLITS[split]])
        families = FAMILIES["train" if split == "train" else "val"]
        self.ground = [
            _fine(_pattern(rng, family)) for family in families["ground"] for _ in range(4)
        ]
        self.wall = [_pattern(rng, family) for family in families["wall"] for _ in range(4)]
        self.grass = [_fine(_pattern(rng, grassy)) for _ in range(6)]
        self.leaves = [_pattern(rng, leafy) for _ in range(5)]
        self.facades = [_windows(rng, shop=False) for _ in range(14)]
        self.shops = [_windows(rng, shop=True) for _ in range(5)]
        make = list(SPLITS).index(split)
        self.grids = [_grid(rng, make) for _ in range(14)]  # fences: 255 where a bar is
        self.crowns = [_crown(rng, self.leaves[i % len(self.leaves)][0]) for i in range(14)]
        self.clouds = [_pyramid(128 + 50 * cloudy(rng, rng.uniform(1.3, 1.9)))[0] for _ in range(4)]
        grain = 0.6 * rng.standard_normal((2 * SIZE, 2 * SIZE, 3))
        grain += 0.8 * rng.standard_normal((2 * SIZE, 2 * SIZE, 1))
        # Noise of the sensor around 128, (2 SIZE, 2 SIZE, 3).
        self.noise = np.clip(128 + 32 * grain, 0, 255).astype(np.uint8)


@lru_cache(maxsize=3)
def bank(split: str) -> Bank:
    """The textures of one of `SPLITS`, made on first use in each process (about a second)."""
    return Bank(split)
