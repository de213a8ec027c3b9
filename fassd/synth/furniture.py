"""Objects along the kerb: lamps, masts, bollards, traffic lights and signs.

`inward` is +1 where the road lies to the right of the post, and -1 where it lies to the left.
"""

from __future__ import annotations

import numpy as np

from fassd.synth.colors import Color, metal, scaled
from fassd.synth.solids import Outline, Solid, limb, oval, rectangle

RED: Color = (206, 30, 36)
WHITE: Color = (240, 240, 236)
SIGN_COLORS: list[Color] = [
    RED, (28, 78, 172), (238, 238, 232), (246, 200, 40), (30, 120, 70), (240, 130, 30),
]  # fmt: skip
SHELLS: list[Color] = [
    (30, 32, 34), (30, 32, 34), (52, 58, 54), (186, 150, 40), (40, 74, 58),
]  # fmt: skip
LAMPS: list[Color] = [(60, 226, 130), (255, 190, 40), (255, 48, 40)]


def _pole(
    post: Solid, high: float, thick: float, color: Color, x: float = 0.0, taper: float = 0.0
) -> None:
    """A round pole from the ground: one half lit, the other darker."""
    low, top = thick / 2, thick / 2 * (1 - taper)
    for left, tone in ((-1, color), (0.1, scaled(color, 0.72))):
        foot, head = (x + low * left, 0), (x + top * left, high)
        post.front([foot, (x + low, 0), (x + top, high), head], tone)


def bollard(rng: np.random.Generator) -> Solid:
    """A short post, some with a white ring."""
    post = Solid("pole")
    color, high, thick = metal(rng), rng.uniform(0.8, 1.1), rng.uniform(0.13, 0.24)
    _pole(post, high, thick, color)
    if rng.random() < 0.5:
        post.front(limb((-thick / 2, high * 0.8), (thick / 2, high * 0.8), 0.1), (232, 232, 226))
    return post


def lamp(rng: np.random.Generator, inward: int, lit: bool) -> Solid:
    """A street lamp with one arm, or a lantern on top."""
    post = Solid("pole")
    color, high, thick = metal(rng), rng.uniform(4.5, 9.0), rng.uniform(0.16, 0.30)
    _pole(post, high, thick, color, taper=0.35)
    glow = (255, 236, 180) if lit else (206, 206, 198)
    if rng.random() < 0.65:
        reach = inward * rng.uniform(1.0, 2.4)
        post.front(limb((0, high - 0.08), (reach, high + 0.35), 0.12), color)
        head = limb((reach - inward * 0.1, high + 0.32), (reach + inward * 0.6, high + 0.38), 0.2)
        post.front(head, glow, glows=lit)
    else:
        post.front(oval((0, high + 0.2), 0.28, 0.3, 8), glow, glows=lit)
    return post


def mast(rng: np.random.Generator, inward: int, reach: float) -> Solid:
    """A mast whose arm carries the wire of a tram, `reach` metres over the road."""
    post = Solid("pole")
    color, high = metal(rng), rng.uniform(6.2, 7.5)
    _pole(post, high, rng.uniform(0.2, 0.32), color)
    post.front(limb((0, high - 0.5), (inward * reach, high - 0.6), 0.09), color)
    post.front(limb((0, high - 0.05), (inward * reach * 0.6, high - 0.52), 0.06), color)
    return post


# --------------------------------------------------------------------------------- traffic lights


def traffic_light(rng: np.random.Generator, inward: int) -> Solid:
    """Lights on a post, sometimes with a second set on an arm over the road."""
    post = Solid("pole")
    color, size = metal(rng), rng.uniform(1.1, 1.5)
    arm = rng.random() < 0.45
    high = rng.uniform(5.4, 6.4) if arm else rng.uniform(2.9, 3.6)
    _pole(post, high, rng.uniform(0.14, 0.24), color)
    _lights(post, rng, -inward * 0.1, rng.uniform(2.1, 2.5), size)
    if arm:
        reach = inward * rng.uniform(2.5, 4.5)
        post.front(limb((0, high - 0.15), (reach, high), 0.14), color)
        _lights(post, rng, reach * 0.92, high - 0.9, size * 1.05)
    return post


def _lights(post: Solid, rng: np.random.Generator, x: float, low: float, size: float) -> None:
    """A box with three lamps, one of them on, with its lower edge at `low`."""
    shell = SHELLS[int(rng.integers(len(SHELLS)))]
    half, tall = 0.44 * size / 2, 1.2 * size
    if rng.random() < 0.35:
        edge = 0.1 * size
        board = rectangle((x - half - edge, low - edge), (x + half + edge, low + tall + edge))
        post.front(board, (22, 22, 24), label="traffic light")
    post.front(rectangle((x - half, low), (x + half, low + tall)), shell, label="traffic light")
    on = int(rng.integers(3))
    for i, color in enumerate(LAMPS):
        outline = oval((x, low + (0.22 + 0.38 * i) * size), 0.15 * size)
        shown = color if i == on else scaled(color, 0.22)
        post.front(outline, shown, glows=i == on, label="traffic light")


# ------------------------------------------------------------------------------------------ signs


def sign(rng: np.random.Generator) -> Solid:
    """A post with one or two signs, or a direction board on two posts."""
    post, color = Solid("pole"), metal(rng)
    if rng.random() < 0.25:
        _board(post, rng, color)
        return post
    high = rng.uniform(2.5, 3.4)
    _pole(post, high, rng.uniform(0.09, 0.15), color)
    y = high - 0.3
    for _ in range(int(rng.choice([1, 1, 2]))):
        kind, size = int(rng.integers(6)), rng.uniform(0.36, 0.5)
        outer, inner = (SIGN_COLORS[int(rng.integers(6))] for _ in range(2))
        upright = kind != 2 or rng.random() < 0.6
        for outline, tone in _plate(kind, y, size, outer, inner, upright):
            post.front(outline, tone, label="traffic sign")
        y -= size + 0.45
    return post


def _plate(
    kind: int, y: float, size: float, outer: Color, inner: Color, upright: bool
) -> list[tuple[Outline, Color]]:
    """The faces of one sign around the height y: disc, triangle, diamond, octagon or square."""
    if kind <= 1:
        return [
            (oval((0, y), size, corners=16), outer),
            (oval((0, y), size * 0.74, corners=16), inner),
        ]
    if kind == 2:
        edge = [(-size * 1.05, y - size * 0.7), (size * 1.05, y - size * 0.7), (0, y + size)]
        field = [(x * 0.66, y + (v - y) * 0.6) for x, v in edge]
        if not upright:
            edge = [(x, 2 * y - v) for x, v in edge]
        return [(edge, RED), (field, (242, 240, 228))]
    if kind == 3:
        return [
            (oval((0, y), size * 1.2, corners=4), WHITE),
            (oval((0, y), size * 0.95, corners=4), outer),
        ]
    if kind == 4:
        bar = limb((-size * 0.6, y), (size * 0.6, y), size * 0.4)
        return [(oval((0, y), size, corners=8), RED), (bar, (242, 242, 238))]
    stroke = limb((-size * 0.3, y - size * 0.6), (size * 0.3, y + size * 0.6), size * 0.35)
    return [(rectangle((-size, y - size), (size, y + size)), outer), (stroke, inner)]


def _board(post: Solid, rng: np.random.Generator, color: Color) -> None:
    """A direction board with a few lines of writing."""
    wide, tall, low = rng.uniform(1.3, 2.4), rng.uniform(0.8, 1.5), rng.uniform(1.9, 2.6)
    for x in (-wide * 0.4, wide * 0.4):
        _pole(post, low + tall, 0.11, color, x=x)
    ground = SIGN_COLORS[int(rng.choice([1, 2, 3, 4]))]
    half, top = wide / 2, low + tall
    post.front(rectangle((-half, low), (half, top)), (236, 236, 230), label="traffic sign")
    inside = rectangle((-half + 0.05, low + 0.05), (half - 0.05, top - 0.05))
    post.front(inside, ground, label="traffic sign")
    ink = (30, 30, 32) if sum(ground) > 420 else (238, 238, 234)
    for i in range(int(rng.integers(1, 4))):
        y = low + tall * (0.25 + 0.25 * i)
        line = limb((-wide * 0.35, y), (wide * rng.uniform(0, 0.38), y), 0.11)
        post.front(line, ink, label="traffic sign")
