"""Objects that line the street: houses, walls, fences, hedges, trees, and its far end.

A wall and the windowless ground floor of a house look alike: only what stands on top, or the
windows further along, distinguish them.
"""

from __future__ import annotations

from functools import partial
from itertools import product

import numpy as np

from fassd.synth.canvas import Canvas, Upright
from fassd.synth.colors import Color, facade, leaves, scaled
from fassd.synth.solids import Solid, rectangle
from fassd.synth.street import SIDES, Street, pick
from fassd.synth.surfaces import Look, paint_fence, paint_front, paint_wall

FAR = 95.0  # metres: end of the street
LOTS = {"building": 0.41, "wall": 0.25, "fence": 0.21, "hedge": 0.06, "park": 0.07}
BRICKWORK = 3.5  # metres that the texture of a house spans


def build_sides(street: Street) -> None:
    """Lots from near to far on both sides, with a gap where a side street crosses."""
    rng, crossing = street.rng, street.crossing
    for side in SIDES:
        z = -rng.uniform(0, 10)
        while z < FAR:
            if crossing and crossing[0] - 1.5 <= z < crossing[1]:
                z = crossing[1] + 0.5
            kind = str(rng.choice(list(LOTS), p=list(LOTS.values())))
            end = z + (rng.uniform(10, 22) if kind == "building" else rng.uniform(7, 16))
            if crossing and z < crossing[0] < end:
                end = max(crossing[0] - 0.8, z + 1.0)
            if kind == "building":
                _build_house(street, side, z, end, street.facade[side])
            else:
                _build_open_lot(street, side, z, end, kind)
            z = end


# ----------------------------------------------------------------------------------------- houses


class _House:
    """A house whose front stands at s = `line`, from z = `near` to `far`."""

    def __init__(self, street: Street, side: int, near: float, far: float, line: float) -> None:
        rng, bank, length = street.rng, street.bank, far - near
        self.street, self.side = street, side
        self.near, self.far, self.line = near, far, line
        small = rng.random() < 0.3
        self.storey, self.base = rng.uniform(2.8, 3.5), rng.uniform(3.0, 4.2)  # heights
        if small:
            floors = 0 if rng.random() < 0.4 else int(rng.integers(1, 3))
        else:
            floors = int(rng.integers(2, 7))
        self.height = self.base + floors * self.storey + rng.uniform(0.2, 0.9)
        color, second = facade(rng), facade(rng)
        wall, plinth = pick(rng, bank.wall), pick(rng, bank.wall)
        windows = pick(rng, bank.facades)
        blank = rng.random() < 0.35 and floors > 0
        shops = None if blank else pick(rng, bank.shops if rng.random() < 0.5 else bank.facades)
        self.bay = length / max(1, round(length / rng.uniform(2.3, 3.6)))
        frame, self.depth = facade(rng), rng.uniform(8, 14)
        self.roof = rng.uniform(1.5, 4) if rng.random() < 0.45 else 0.0  # height of the ridge
        self.tiles = scaled(facade(rng), 0.6)
        self.plinth = (wall, color) if rng.random() < 0.5 else (plinth, second)
        glass = rng.uniform(0.6, 1.3)
        self.lower = None if shops is None else Look(*self.plinth, shops, frame, glass)
        self.upper = Look(wall, color, windows, frame, glass)

    def paint(self, canvas: Canvas) -> None:
        """The gable towards us, the roof, the front floor by floor, and the cornices."""
        street, side, near, far, line = self.street, self.side, self.near, self.far, self.line
        front = street.panel(line, near, far, self.height)
        bright, gable_bright = _brightness(street, front, side)
        gable = Upright(front.corner, (float(side), 0.0), self.depth, self.height)
        wall, color = self.upper.wall, self.upper.color
        paint_wall(canvas, gable, wall, BRICKWORK, color, "building", gable_bright)
        if self.roof:
            canvas.solid(self._roof(front.length), front.corner[0], near, front.heading)
        above = street.panel(line, near, far, self.height - self.base, self.base)
        paint_front(canvas, above, self.upper, self.bay, self.storey, bright)
        below = street.panel(line, near, far, self.base)
        if self.lower is None:
            paint_wall(canvas, below, self.plinth[0], BRICKWORK, self.plinth[1], "building", bright)
        else:
            paint_front(canvas, below, self.lower, self.bay, self.base, bright)
        trim = Solid("building")
        for low, tall in ((self.height - 0.35, 0.35), (self.base - 0.12, 0.25)):
            band = rectangle((0.0, low), (front.length, low + tall))
            trim.side(band, scaled(color, 0.8), -side * 0.12)
        canvas.solid(trim, front.corner[0], near, front.heading)

    def _roof(self, length: float) -> Solid:
        """The triangle above the gable, and the slope towards the street."""
        side, height, middle = self.side, self.height, self.side * self.depth / 2
        roof, eaves, ridge = Solid("building"), -side * 0.3, height + self.roof
        gable = [(0.0, height), (middle, ridge), (side * self.depth, height)]
        roof.front(gable, scaled(self.upper.color, 0.95))
        slope = [(eaves, height - 0.1, 0.0), (middle, ridge, 0.0), (middle, ridge, length),
                 (eaves, height - 0.1, length)]  # fmt: skip
        roof.face(slope, self.tiles)
        return roof


def _build_house(street: Street, side: int, near: float, far: float, line: float) -> None:
    house = _House(street, side, near, far, line)
    street.cast(list(product((line, line + side * house.depth), (near, far))), house.height)
    street.add(far, house.paint)


def _brightness(street: Street, front: Upright, side: int) -> tuple[float, float]:
    """Brightness of a surface along the street on this side, and of one that faces the camera."""
    across, along = front.along
    return street.light.shade_of(-side * along, side * across), street.light.shade_of(0, -1)


def build_far_end(street: Street) -> None:
    """Houses and trees where the street is lost to sight."""
    rng, bank = street.rng, street.bank
    for across in np.arange(-70, 71, 12.0).tolist():
        s, z = across + rng.uniform(-3, 3) + street.here, FAR + rng.uniform(6, 25)
        if rng.random() < 0.45:
            plant(street, s, z - 5)
        height, wide = rng.uniform(5, 19), rng.uniform(12, 20)
        look = Look(
            pick(rng, bank.wall), facade(rng), pick(rng, bank.facades), facade(rng),
            rng.uniform(0.6, 1.3),
        )  # fmt: skip
        panel = Upright((street.x(s, FAR) - wide / 2, 0.0, z), (1.0, 0.0), wide, height)
        bright = street.light.shade_of(0, -1)
        front = partial(paint_front, panel=panel, look=look, bay=3.0, storey=3.2, bright=bright)
        street.add(z + 40, front)


# --------------------------------------------------------------------- walls, fences and hedges


def _build_open_lot(street: Street, side: int, near: float, far: float, kind: str) -> None:
    """A wall, a fence, a hedge or nothing at the street; greenery or a house behind."""
    rng, line = street.rng, street.facade[side]
    if kind != "park" and rng.random() < 0.45:
        _build_house(street, side, near, far, line + side * rng.uniform(4, 8))
    else:
        for _ in range(int(rng.integers(2, 5))):
            z, beyond = rng.uniform(near, far), rng.uniform(1.5, 7)
            plant(street, line + side * beyond, z, shrub=bool(rng.random() < 0.4))
    if kind != "park":
        _build_barrier(street, side, near, far, kind)


def _build_barrier(street: Street, side: int, near: float, far: float, kind: str) -> None:
    rng, bank, line = street.rng, street.bank, street.facade[side]
    heights = {"wall": rng.uniform(1.5, 4.0), "fence": rng.uniform(1.1, 2.4)}
    height = {**heights, "hedge": rng.uniform(0.9, 2.2)}[kind]
    texture = pick(rng, bank.leaves if kind == "hedge" else bank.wall)
    color = leaves(rng) if kind == "hedge" else facade(rng)
    grid, tile = pick(rng, bank.grids), rng.uniform(1.5, 3.5)
    thick = side * (1.0 if kind == "hedge" else 0.3)
    label = "vegetation" if kind == "hedge" else kind
    street.cast(list(product((line, line + thick), (near, far))), height)

    def paint(canvas: Canvas) -> None:
        front = street.panel(line, near, far, height)
        bright, end_bright = _brightness(street, front, side)
        if kind == "fence":
            paint_fence(canvas, front, grid, color, bright)
            return
        end = Upright(front.corner, (float(side), 0.0), abs(thick), height)
        paint_wall(canvas, end, texture, tile, color, label, end_bright)
        paint_wall(canvas, front, texture, tile, color, label, bright)
        top, length = height + 0.1, front.length
        cap = Solid(label, (side * 0.1, height - 1, length / 2))
        if kind == "wall":
            ledge = rectangle((0, height - 0.02), (length, height + 0.12))
            cap.side(ledge, scaled(color, 0.82), -side * 0.08, flat=True)
        cap.face([(0, top, 0), (0, top, length), (thick, top, length), (thick, top, 0)], color)
        canvas.solid(cap, front.corner[0], near, front.heading)

    street.add(far, paint)


def build_railing(street: Street, s: float, near: float, far: float) -> None:
    """A low fence along the kerb, where no side street crosses."""
    rng = street.rng
    if street.crossing and near < street.crossing[1] and far > street.crossing[0]:
        return
    grid, color, height = pick(rng, street.bank.grids), facade(rng), rng.uniform(0.8, 1.2)
    street.cast([(s, near), (s, far)], height)
    side = 1 if s > street.here else -1

    # In short pieces, so that people may stand behind it and cars in front of it.
    for z in np.arange(near, far, 2.0).tolist():
        panel = street.panel(s, z, z + 2, height)
        bright = _brightness(street, panel, side)[0]
        street.add(z + 1, partial(paint_fence, panel=panel, grid=grid, color=color, bright=bright))


# ------------------------------------------------------------------------------------------ trees


def plant(street: Street, s: float, z: float, shrub: bool = False) -> None:
    """A tree, or a shrub without a trunk."""
    rng = street.rng
    crown, color = pick(rng, street.bank.crowns), leaves(rng)
    wide = rng.uniform(1.2, 2.6) if shrub else rng.uniform(3.2, 6.5)
    tall = wide * rng.uniform(0.65, 1.15)
    base = -0.28 * tall if shrub else rng.uniform(1.8, 3.2)
    trunk, bark = rng.uniform(0.2, 0.45), scaled((1, 0.85, 0.72), rng.uniform(45, 110))
    flip = bool(rng.random() < 0.5)
    _shade_tree(street, s, z, base + tall / 2, wide)
    if street.light.direct and not shrub:
        street.cast([(s - trunk / 2, z), (s + trunk / 2, z)], base)

    def paint(canvas: Canvas) -> None:
        x = street.x(s, z)
        if not shrub:
            canvas.solid(_trunk(trunk, base + tall * 0.4, bark), x, z)
        bright = street.light.ambient + 0.55 * street.light.direct
        canvas.crown((x, base, z), (wide, tall), crown, color, bright, flip)

    street.add(z, paint)


def _trunk(thick: float, high: float, bark: Color) -> Solid:
    """The trunk belongs to the tree, and so to vegetation: thicker than a pole, with a crown."""
    stem = Solid("vegetation")
    foot, top = thick / 2, thick / 3
    stem.front([(-foot, 0), (foot, 0), (top, high), (-top, high)], bark)
    stem.front([(0, 0), (foot, 0), (top, high), (0, high)], scaled(bark, 0.75))
    return stem


def _shade_tree(street: Street, s: float, z: float, middle: float, wide: float) -> None:
    """The shadow of a crown whose centre is at height `middle`."""
    if not street.light.direct:
        return
    right, up, ahead = street.light.sun
    s, z, radius = s - right / up * middle, z - ahead / up * middle, 0.42 * wide
    stretch = 1 + abs(ahead / up) * 0.6
    ring = [
        (s + radius * float(np.cos(a)), z + radius * float(np.sin(a)) * stretch)
        for a in np.linspace(0, 6, 9)
    ]
    street.ground.hull(street.ground.shadow, ring)
