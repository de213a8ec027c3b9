"""What lines the street: houses, walls, fences, hedges, trees, and the houses at its far end.

A wall and the windowless ground floor of a house look alike: what tells them apart is what stands
on top, or the windows further along.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fassd.synth.arrays import Bytes
from fassd.synth.canvas import Canvas, Panel
from fassd.synth.colors import Color, facade, leaves, scaled
from fassd.synth.solids import Solid
from fassd.synth.street import SIDES, Street, pick
from fassd.synth.surfaces import Look, paint_fence, paint_front, paint_wall

__all__ = ["build_far_end", "build_railing", "build_sides", "plant"]

FAR = 95.0  # where the street ends
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


@dataclass(frozen=True)
class _House:
    base: float  # height of the ground floor
    height: float
    depth: float
    storey: float
    bay: float
    upper: Look
    lower: Look | None  # None: no windows on the ground floor
    plinth: tuple[list[Bytes], Color]  # texture and colour of the ground floor
    roof: float  # height of the ridge above the eaves; 0 for a flat roof
    tiles: Color


def _draw_house(street: Street, length: float) -> _House:
    rng, bank = street.rng, street.bank
    small = rng.random() < 0.3
    storey, base = rng.uniform(2.8, 3.5), rng.uniform(3.0, 4.2)
    if small:
        floors = 0 if rng.random() < 0.4 else int(rng.integers(1, 3))
    else:
        floors = int(rng.integers(2, 7))
    height = base + floors * storey + rng.uniform(0.2, 0.9)
    color, second = facade(rng), facade(rng)
    wall, plinth = pick(rng, bank.wall), pick(rng, bank.wall)
    windows = pick(rng, bank.facades)
    blank = rng.random() < 0.35 and floors > 0
    shops = None if blank else pick(rng, bank.shops if rng.random() < 0.5 else bank.facades)
    bay = length / max(1, round(length / rng.uniform(2.3, 3.6)))
    frame, depth = facade(rng), rng.uniform(8, 14)
    roof = rng.uniform(1.5, 4) if rng.random() < 0.45 else 0.0
    tiles = scaled(facade(rng), 0.6)
    skirt = (wall, color) if rng.random() < 0.5 else (plinth, second)
    glass = rng.uniform(0.6, 1.3)
    lower = None if shops is None else Look(*skirt, shops, frame, glass)
    upper = Look(wall, color, windows, frame, glass)
    return _House(base, height, depth, storey, bay, upper, lower, skirt, roof, tiles)


def _build_house(street: Street, side: int, near: float, far: float, line: float) -> None:
    """A house whose front stands at s = `line`."""
    house = _draw_house(street, far - near)
    back = line + side * house.depth
    street.cast([(line, near), (line, far), (back, near), (back, far)], house.height)
    street.add(far, lambda canvas: _paint_house(canvas, street, house, side, near, far, line))


def _paint_house(
    canvas: Canvas, street: Street, house: _House, side: int, near: float, far: float, line: float
) -> None:
    """The gable towards us, the roof, the front floor by floor, and the cornices."""
    front = street.panel(line, near, far, house.height)
    bright, gable_bright = _brightness(street, front, side)
    gable = Panel(front.corner, (float(side), 0.0), house.depth, house.height)
    wall, color = house.upper.wall, house.upper.color
    paint_wall(canvas, gable, wall, BRICKWORK, color, "building", gable_bright)
    if house.roof:
        canvas.solid(_roof(house, side, front.length), front.corner[0], near, front.heading)
    above = street.panel(line, near, far, house.height - house.base, house.base)
    paint_front(canvas, above, house.upper, house.bay, house.storey, bright)
    below = street.panel(line, near, far, house.base)
    if house.lower is None:
        paint_wall(canvas, below, house.plinth[0], BRICKWORK, house.plinth[1], "building", bright)
    else:
        paint_front(canvas, below, house.lower, house.bay, house.base, bright)
    trim = Solid("building")
    for low, tall in ((house.height - 0.35, 0.35), (house.base - 0.12, 0.25)):
        _ledge(trim, -side * 0.12, low, low + tall, front.length, scaled(color, 0.8))
    canvas.solid(trim, front.corner[0], near, front.heading)


def _brightness(street: Street, front: Panel, side: int) -> tuple[float, float]:
    """Of a surface along the street on this side, and of one that faces us."""
    across, along = front.along
    return street.light.shade_of(-side * along, side * across), street.light.shade_of(0, -1)


def _roof(house: _House, side: int, length: float) -> Solid:
    """The triangle above the gable, and the slope towards the street."""
    height, middle, eaves = house.height, side * house.depth / 2, -side * 0.3
    roof = Solid("building")
    ridge = height + house.roof
    gable = [(0.0, height, 0.0), (middle, ridge, 0.0), (side * house.depth, height, 0.0)]
    roof.face(gable, scaled(house.upper.color, 0.95))
    slope = [(eaves, height - 0.1, 0.0), (middle, ridge, 0.0), (middle, ridge, length),
             (eaves, height - 0.1, length)]  # fmt: skip
    roof.face(slope, house.tiles)
    return roof


def _ledge(solid: Solid, x: float, low: float, high: float, length: float, color: Color) -> None:
    """A level band along the street."""
    band = [(x, low, 0.0), (x, low, length), (x, high, length), (x, high, 0.0)]
    solid.face(band, color, flat=True)


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
        panel = Panel((street.x(s, FAR) - wide / 2, 0.0, z), (1.0, 0.0), wide, height)
        _queue_far_house(street, panel, look)


def _queue_far_house(street: Street, panel: Panel, look: Look) -> None:
    bright = street.light.shade_of(0, -1)
    street.add(
        panel.corner[2] + 40, lambda canvas: paint_front(canvas, panel, look, 3.0, 3.2, bright)
    )


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
    back = line + thick
    street.cast([(line, near), (line, far), (back, near), (back, far)], height)

    def paint(canvas: Canvas) -> None:
        front = street.panel(line, near, far, height)
        bright, end_bright = _brightness(street, front, side)
        if kind == "fence":
            paint_fence(canvas, front, grid, color, bright)
            return
        end = Panel(front.corner, (float(side), 0.0), abs(thick), height)
        paint_wall(canvas, end, texture, tile, color, label, end_bright)
        paint_wall(canvas, front, texture, tile, color, label, bright)
        top, length = height + 0.1, front.length
        cap = Solid(label, (side * 0.1, height - 1, length / 2))
        if kind == "wall":
            _ledge(cap, -side * 0.08, height - 0.02, height + 0.12, length, scaled(color, 0.82))
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

    def queue(panel: Panel) -> None:
        bright = _brightness(street, panel, side)[0]
        street.add(
            panel.corner[2] + 1, lambda canvas: paint_fence(canvas, panel, grid, color, bright)
        )

    # In short pieces, so that people may stand behind it and cars before it.
    for z in np.arange(near, far, 2.0).tolist():
        queue(street.panel(s, z, z + 2, height))


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
    """Part of the tree, and so vegetation: thicker than a pole, and it bears a crown."""
    stem = Solid("vegetation")
    foot, top = thick / 2, thick / 3
    stem.face([(-foot, 0, 0), (foot, 0, 0), (top, high, 0), (-top, high, 0)], bark)
    dark = scaled(bark, 0.75)
    stem.face([(0, 0, 0), (foot, 0, 0), (top, high, 0), (0, high, 0)], dark)
    return stem


def _shade_tree(street: Street, s: float, z: float, middle: float, wide: float) -> None:
    """The shadow of a crown whose middle is at height `middle`."""
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
