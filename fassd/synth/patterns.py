"""Families of grey patterns that tile: pavements, walls, grass and leaves.

A family draws its parameters from a generator and returns (SIZE, SIZE) floats around 0, to be
added to a middle grey.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from fassd.synth.arrays import Floats

Family = Callable[[np.random.Generator], Floats]

SIZE = 256


def _level(values: Floats, spread: float) -> Floats:
    """Scale to mean 0 and standard deviation `spread`."""
    return (values - values.mean()) * (spread / (values.std() + 1e-6))


def cloudy(rng: np.random.Generator, power: float, stretch: float = 1.0) -> Floats:
    """Noise with an amplitude spectrum of 1 / frequency ** power; it tiles."""
    fy = np.fft.fftfreq(SIZE)[:, None] * stretch
    fx = np.fft.rfftfreq(SIZE)[None] / stretch
    radius = np.hypot(fy, fx)
    radius[0, 0] = 1.0
    white = np.fft.rfft2(rng.standard_normal((SIZE, SIZE)))
    white[0, 0] = 0.0
    noise = np.fft.irfft2(white / radius**power, (SIZE, SIZE))
    return _level(noise, 1.0)


def _plain(rng: np.random.Generator) -> Floats:
    """Asphalt, plaster or concrete."""
    coarse = cloudy(rng, rng.uniform(0.9, 1.8)) * rng.uniform(2, 11)
    return coarse + cloudy(rng, rng.uniform(0, 0.5)) * rng.uniform(2, 11)


def _gravel(rng: np.random.Generator) -> Floats:
    """Stones of one size. The seam of its tile is faintly visible, like a joint."""
    grain = cv2.GaussianBlur(
        rng.standard_normal((SIZE, SIZE)).astype(np.float32), (0, 0), rng.uniform(0.8, 2.0),
        borderType=cv2.BORDER_REFLECT,
    )  # fmt: skip
    return _level(np.tanh(_level(grain, 1.5)), rng.uniform(9, 22))


def _blocks(
    rng: np.random.Generator, rows: int, columns: int, shift: float, joint: float
) -> Floats:
    """Bricks or slabs in courses, each with its own tone."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    row = np.floor(y * rows).astype(int)
    across = x * columns + row * shift
    column = np.floor(across).astype(int) % columns
    tone = _level(rng.standard_normal((rows, columns)), rng.uniform(3, 15))[row, column]
    edge_x = np.minimum(across % 1, 1 - across % 1) / columns
    edge_y = np.minimum(y * rows % 1, 1 - y * rows % 1) / rows
    seam = np.minimum(edge_x, edge_y) * SIZE < joint
    depth = rng.choice([-1, -1, 1]) * rng.uniform(12, 45)
    return tone + depth * seam + _plain(rng) * 0.6


def _bricks(rng: np.random.Generator) -> Floats:
    rows = 2 * int(rng.integers(5, 14))
    return _blocks(rng, rows, max(2, rows // int(rng.integers(2, 4))), 0.5, rng.uniform(0.7, 1.8))


def _slabs(rng: np.random.Generator) -> Floats:
    rows = int(rng.choice([3, 4, 5, 6, 8, 10]))
    return _blocks(rng, rows, int(rng.choice([rows, rows, rows + 2])), 0, rng.uniform(0.6, 2.2))


def _cells(rng: np.random.Generator, count: int, jitter: float) -> tuple[Floats, Floats]:
    """Voronoi cells on a jittered grid: the tone of each pixel's cell and its seams."""
    grid = (np.mgrid[:count, :count].reshape(2, -1).T + 0.5) / count
    seeds = grid + rng.uniform(-jitter, jitter, grid.shape) / count
    offset = np.array([[i, j] for i in (-1, 0, 1) for j in (-1, 0, 1)])
    points = (seeds[None] + offset[:, None]).reshape(-1, 2)
    at = np.round((points + 1) * SIZE).astype(int) % (3 * SIZE)
    dots = np.full((3 * SIZE, 3 * SIZE), 255, np.uint8)
    dots[at[:, 0], at[:, 1]] = 0
    tones = np.tile(rng.standard_normal(len(seeds)), 9)
    _, labels = cv2.distanceTransformWithLabels(
        dots, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    table = np.zeros(labels.max() + 1)
    table[labels[at[:, 0], at[:, 1]]] = tones
    middle = labels[SIZE - 1 : 2 * SIZE + 1, SIZE - 1 : 2 * SIZE + 1]
    seam = (middle[1:-1, 1:-1] != middle[2:, 1:-1]) | (middle[1:-1, 1:-1] != middle[1:-1, 2:])
    return table[middle[1:-1, 1:-1]], seam.astype(float)


def _cobbles(rng: np.random.Generator) -> Floats:
    tone, seam = _cells(rng, int(rng.integers(10, 26)), rng.uniform(0.1, 0.4))
    return tone * rng.uniform(4, 14) - seam * rng.uniform(15, 50) + _plain(rng) * 0.5


def _flagstones(rng: np.random.Generator) -> Floats:
    tone, seam = _cells(rng, int(rng.integers(3, 7)), rng.uniform(0.35, 0.5))
    seam = cv2.dilate(seam, np.ones((2, 2)))
    return tone * rng.uniform(4, 12) - seam * rng.uniform(10, 40) + _plain(rng) * 0.7


def _boards(rng: np.random.Generator) -> Floats:
    """Planks or corrugated sheet, upright."""
    count = int(rng.integers(8, 30))
    x = np.arange(SIZE) / SIZE * count
    tone = rng.standard_normal(count)[np.floor(x).astype(int)] * rng.uniform(2, 12)
    if rng.random() < 0.5:
        relief = np.sin(2 * np.pi * x) * rng.uniform(8, 24)
    else:
        relief = np.where(np.minimum(x % 1, 1 - x % 1) < 0.06, -rng.uniform(20, 50), 0)
    return (tone + relief)[None] + cloudy(rng, 1.0, 4.0) * rng.uniform(2, 8)


def _courses(rng: np.random.Generator) -> Floats:
    """Level panels or weatherboards."""
    return _boards(rng).T + _plain(rng) * 0.4


def _stained(rng: np.random.Generator) -> Floats:
    """Plaster or concrete with streaks."""
    return cloudy(rng, 1.2, rng.uniform(2, 6)) * rng.uniform(5, 16) + _plain(rng)


def _herringbone(rng: np.random.Generator) -> Floats:
    count = 4 * int(rng.integers(3, 7))
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE * count
    slant = (x + np.abs(y % 4 - 2)) % 2
    seam = (slant < 0.14) | (y % 2 < 0.12)
    tone = rng.standard_normal((count + 4, count + 4))
    cell = tone[np.floor(y / 2).astype(int), np.floor((x + np.abs(y % 4 - 2)) / 2).astype(int)]
    return cell * rng.uniform(3, 12) - seam * rng.uniform(12, 42) + _plain(rng) * 0.6


def _hexagons(rng: np.random.Generator) -> Floats:
    rows = 2 * int(rng.integers(5, 11))
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE * rows
    best = np.full((2, SIZE, SIZE), 9.0)
    for parity in (0, 1):
        cy = np.round((y - parity) / 2) * 2 + parity
        cx = np.round(x - parity / 2) + parity / 2
        best[parity] = np.hypot((x - cx), (y - cy) * 0.577)
    seam = np.abs(best[0] - best[1]) < rng.uniform(0.05, 0.12)
    tone = np.where(best[0] < best[1], 1, -1) * rng.uniform(0, 8)
    return tone - seam * rng.uniform(12, 40) + _plain(rng) * 0.7


def _basket(rng: np.random.Generator) -> Floats:
    count = 2 * int(rng.integers(4, 9))
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE * count
    along = np.where((np.floor(x) + np.floor(y)) % 2 == 0, x, y)
    seam = (along * 2 % 1 < 0.12) | (x % 1 < 0.06) | (y % 1 < 0.06)
    return _plain(rng) * 0.8 - seam * rng.uniform(12, 40)


def grassy(rng: np.random.Generator) -> Floats:
    fine = cloudy(rng, rng.uniform(0.2, 0.7), rng.uniform(1.0, 2.2)) * rng.uniform(10, 22)
    return fine + cloudy(rng, rng.uniform(1.0, 1.6)) * rng.uniform(5, 15)


def leafy(rng: np.random.Generator) -> Floats:
    """Overlapping leaves, darker in the depth."""
    image = np.full((SIZE, SIZE), -40.0, np.float32)
    large = rng.uniform(3.5, 8)
    for tone in np.linspace(-38, 38, 900):
        x, y, angle = rng.uniform(0, SIZE), rng.uniform(0, SIZE), rng.uniform(0, 180)
        axes = (int(large * rng.uniform(0.7, 1.3)) + 1, int(large * rng.uniform(0.3, 0.7)) + 1)
        value = float(tone + rng.normal(0, 12))
        for dx in (0, -SIZE if x > SIZE / 2 else SIZE):
            for dy in (0, -SIZE if y > SIZE / 2 else SIZE):
                cv2.ellipse(image, (int(x + dx), int(y + dy)), axes, angle, 0, 360, value, -1)
    return image * rng.uniform(0.6, 1.1)


FAMILIES: dict[str, dict[str, list[Family]]] = {
    "train": {
        "ground": [_plain, _gravel, _slabs, _bricks, _cobbles, _basket],
        "wall": [_plain, _bricks, _slabs, _stained, _boards, _courses],
    },
    "val": {
        "ground": [_plain, _gravel, _slabs, _bricks, _cobbles, _herringbone, _hexagons],
        "wall": [_plain, _bricks, _slabs, _stained, _boards, _flagstones],
    },
}
"""Pavements and walls of each split; "test" has those of "val"."""
