"""One street: its lanes and pavements, and the place where everything else is put.

Lengths are metres. `s` runs across the street from the middle of the carriageway to the right, z
along it; on a bend x = s - (s of the camera) + bend z^2. Sides are -1 (left) and 1 (right).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from fassd.synth.canvas import Canvas, Upright
from fassd.synth.colors import Color, leaves, pavement, scaled
from fassd.synth.ground import REACH, SPAN, UNMARKED, Ground, Kind, Material
from fassd.synth.light import Light
from fassd.synth.solids import LABEL, Solid, Span
from fassd.synth.textures import Bank

SIDES = (-1, 1)
GAUGE = 1.44  # between the rails

Item = TypeVar("Item")


def pick(rng: np.random.Generator, items: Sequence[Item]) -> Item:
    return items[int(rng.integers(len(items)))]


class Street:
    """A street without the objects on it. Nothing here knows the size of the picture."""

    def __init__(self, rng: np.random.Generator, bank: Bank) -> None:
        self.rng, self.bank = rng, bank
        self.light = Light(rng)
        self.mirrored = bool(rng.random() < 0.35)  # traffic keeps to the left
        self.bend = rng.normal(0, 0.0016) if rng.random() < 0.6 else 0.0
        self.ground = Ground()
        self._queue: list[tuple[float, int, Callable[[Canvas], None]]] = []
        self._taken: list[tuple[float, float, float, float]] = []  # s and z ranges of the objects
        self._draw_carriageway()
        self._draw_sides()
        self._draw_crossing()

    def _draw_carriageway(self) -> None:
        """From the left kerb to the right: parking, oncoming lanes, track or island, lanes."""
        rng = self.rng
        lane = rng.uniform(2.9, 3.5)
        left, right = (int(rng.choice([1, 2], p=[0.7, 0.3])) for _ in range(2))
        parking = [rng.uniform(2.1, 2.4) if rng.random() < 0.7 else 0.3 for _ in range(2)]
        self.has_track = bool(rng.random() < 0.68)
        track = rng.uniform(3.1, 3.6) if self.has_track else 0.0
        island = 0.0 if self.has_track or rng.random() < 0.75 else rng.uniform(1.2, 3.0)
        edge = -(sum(parking) + (left + right) * lane + track + island) / 2
        self.kerbs = {-1: edge, 1: -edge}
        edge += parking[0]
        self.oncoming = [edge + lane * (i + 0.5) for i in range(left)]
        edge += left * lane
        self.track, self.track_width = edge + track / 2, track
        self.island = (edge, edge + island) if island else None
        edge += track + island
        self.lanes = [edge + lane * (i + 0.5) for i in range(right)]
        self.lane = lane
        self.parking = {-1: parking[0] > 1, 1: parking[1] > 1}
        self.here = pick(rng, self.lanes) + rng.normal(0, 0.25)  # lane of the camera

    def _draw_sides(self) -> None:
        """Beyond each kerb: a pavement, and perhaps a green verge before or behind it."""
        rng = self.rng
        self.walk: dict[int, tuple[float, float]] = {}  # metres beyond the kerb
        self.verge: dict[int, tuple[float, float] | None] = {}
        self.facade: dict[int, float] = {}  # s of the house fronts
        for side in SIDES:
            wide, green = rng.uniform(2.4, 5.5), rng.uniform(1.2, 3.2)
            kind = str(rng.choice(["none", "inner", "outer"], p=[0.4, 0.3, 0.3]))
            start = green if kind == "inner" else 0.0
            self.walk[side] = (start, start + wide)
            verges = {"inner": (0.25, green), "outer": (wide, wide + green)}
            self.verge[side] = verges.get(kind)
            self.facade[side] = self.kerbs[side] + side * (wide + (green if kind != "none" else 0))

    def _draw_crossing(self) -> None:
        """A side street from the left to the right, and a zebra crossing (its near edge)."""
        rng = self.rng
        self.crossing: tuple[float, float] | None = None
        if rng.random() < 0.55:
            start = rng.uniform(14, 34)
            self.crossing = (start, start + rng.uniform(6, 10))
        self.zebra = rng.uniform(11, 28) if rng.random() < 0.4 else None
        if self.crossing:
            self.zebra = self.crossing[0] - rng.uniform(3.5, 5) if rng.random() < 0.7 else None

    # ---------------------------------------------------------------------------- the ground

    def lay_ground(self) -> None:
        """Choose the materials of the ground, and lay it out."""
        self.materials = self._draw_materials()
        rng, ground = self.rng, self.ground
        for side, walk in ((-1, Kind.LEFT_WALK), (1, Kind.RIGHT_WALK)):
            ground.lay(walk, (self.kerbs[side], self.facade[side]))
            verge = self.verge[side]
            if verge:
                ground.lay(Kind.GRASS, (self.edge(side, verge[0]), self.edge(side, verge[1])))
        ground.lay(Kind.ROAD, (self.kerbs[-1], self.kerbs[1]))
        stone = rng.uniform(0.14, 0.34)
        for side in SIDES:
            ground.lay(Kind.KERB, (self.kerbs[side], self.edge(side, stone)))
            ground.mark(74, (self.kerbs[side], self.edge(side, -0.12)))
        if self.green_track:
            half = self.track_width / 2
            ground.lay(Kind.TRACK_BED, (self.track - half, self.track + half))
        if self.island:
            a, b = self.island
            ground.lay(Kind.KERB, (a, b))
            ground.lay(Kind(int(rng.choice([Kind.GRASS, Kind.LEFT_WALK]))), (a + 0.2, b - 0.2))
        if self.crossing:
            ground.lay(Kind.ROAD, (-SPAN, SPAN), self.crossing)
            ground.mark(UNMARKED, (-SPAN, SPAN), self.crossing)
        self._mark_repairs()
        self._mark_lanes()
        if self.has_track:
            for rail in (-GAUGE / 2, GAUGE / 2):
                s = self.track + rail
                ground.mark(70, (s - 0.13, s + 0.13))
                ground.mark(188, (s - 0.05, s + 0.05))

    def _draw_materials(self) -> list[Material]:
        """One material for each `Kind`; road and pavement have the same textures and colours."""
        rng, bank = self.rng, self.bank

        def paved(label: str, color: Color | None = None) -> Material:
            texture, tile = pick(rng, bank.ground), rng.uniform(1.6, 4.5)
            turned = bool(rng.random() < 0.5)
            return Material(texture, tile, turned, color or pavement(rng), LABEL[label])

        road = paved("road")
        red, green, blue = (c * rng.uniform(0.85, 1.18) for c in road.color)
        left = paved("sidewalk", (red, green, blue) if rng.random() < 0.5 else None)
        right = left if rng.random() < 0.6 else paved("sidewalk")
        lawn = leaves(rng)
        if rng.random() < 0.25:  # bare earth
            lawn = scaled((1.0, 0.86, 0.68), rng.uniform(80, 150))
        texture, tile = pick(rng, bank.grass), rng.uniform(1.5, 4)
        grass = Material(texture, tile, False, lawn, LABEL["terrain"])
        gray = rng.uniform(70, 205)
        kerb = Material(bank.ground[0], 2.0, False, (gray, gray, gray), LABEL["sidewalk"])
        self.green_track = self.has_track and bool(rng.random() < 0.3)
        bed = grass if self.green_track else road
        yard = grass if rng.random() < 0.75 else left
        return [road, kerb, left, right, grass, bed, yard]

    def _mark_repairs(self) -> None:
        """Darker and lighter patches, on road and pavement alike."""
        rng = self.rng
        for _ in range(int(rng.integers(2, 9))):
            s, z = rng.uniform(-9, 8), rng.uniform(3, 40)
            wide, long = rng.uniform(0.4, 3), rng.uniform(0.5, 9)
            tone = int(rng.choice([104, 112, 118, 138]))
            self.ground.mark(tone, (s, s + wide), (z, z + long))

    def _mark_lanes(self) -> None:
        """Dashes between lanes, lines beside parked cars, and the zebra crossing."""
        rng, ground = self.rng, self.ground
        white = int(rng.uniform(195, 245))
        dashed, edged = rng.random() < 0.85, rng.random() < 0.6
        period, dash = rng.uniform(6, 11), rng.uniform(2.5, 4)
        lines = [s + self.lane / 2 for s in self.oncoming] + [s - self.lane / 2 for s in self.lanes]
        for s in lines if dashed and not self.green_track else ():
            if self._on_island(s, 0.1):
                continue
            for z in np.arange(rng.uniform(0, 6), REACH, period).tolist():
                if not (self.crossing and self.crossing[0] - 2 < z < self.crossing[1]):
                    ground.mark(white, (s - 0.07, s + 0.07), (z, z + dash))
        for side, s in ((-1, self.oncoming[0]), (1, self.lanes[-1])):
            if edged and self.parking[side]:
                s += side * self.lane / 2
                ground.mark(white, (s - 0.06, s + 0.06))
        if self.zebra is None:
            return
        width = rng.uniform(2.6, 4)
        for s in np.arange(self.kerbs[-1] + 0.4, self.kerbs[1] - 0.5, 1.0).tolist():
            green = self.green_track and abs(s - self.track) < self.track_width / 2
            if not green and not self._on_island(s + 0.25):
                ground.mark(white, (s, s + 0.5), (self.zebra, self.zebra + width))

    def _on_island(self, s: float, margin: float = 0.0) -> bool:
        return self.island is not None and (self.island[0] - margin < s < self.island[1] + margin)

    # ----------------------------------------------------------------------- places on it

    def x(self, s: float, z: float) -> float:
        """World x of a position on the street."""
        return s - self.here + self.bend * z * z

    def heading(self, z: float) -> float:
        """Direction of the street at z, in radians to the right."""
        return float(np.arctan(2 * self.bend * z))

    def edge(self, side: int, beyond: float) -> float:
        """s of the line `beyond` metres outside a kerb; negative lies on the road."""
        return self.kerbs[side] + side * beyond

    def crosses(self, z: float) -> bool:
        """True if z lies on the side street."""
        return self.crossing is not None and (self.crossing[0] - 1 < z < self.crossing[1] + 1)

    def panel(self, s: float, near: float, far: float, height: float, base: float = 0.0) -> Upright:
        """An upright rectangle along the street between two depths."""
        start = self.x(s, near)
        across, along = self.x(s, far) - start, far - near
        length = float(np.hypot(across, along))
        return Upright((start, base, near), (across / length, along / length), length, height)

    # ------------------------------------------------------------------ putting things there

    def claim(self, s: Span, z: Span) -> bool:
        """Claim a rectangle of the ground; False if it is occupied."""
        if any(s[0] < b and s[1] > a and z[0] < d and z[1] > c for a, b, c, d in self._taken):
            return False
        self._taken.append((*s, *z))
        return True

    def cast(self, corners: list[tuple[float, float]], height: float) -> None:
        """Shadow of an object, and its contact with the ground, on the hull of `corners` (s, z)."""
        if self.light.direct:
            right, up, ahead = self.light.sun
            tips = [(s - right / up * height, z - ahead / up * height) for s, z in corners]
            self.ground.hull(self.ground.shadow, corners + tips)
        self.ground.hull(self.ground.contact, corners, 200)

    def add(self, z: float, paint: Callable[[Canvas], None]) -> None:
        """Register something to paint: after everything farther than z, before what is nearer."""
        self._queue.append((-z, len(self._queue), paint))

    def stand(
        self, solid: Solid, s: float, z: float, height: float, half: Span = (0.1, 0.1),
        room: float = 0.15,
    ) -> None:  # fmt: skip
        """Put something upright at (s, z), if there is `room` on all sides.

        It extends `half` metres across and along the street, which sets the size of its shadow.
        """
        if self.claim((s - room, s + room), (z - room, z + room)):
            self.cast([(s - half[0], z - half[1]), (s + half[0], z + half[1])], height)
            self.add(z, lambda canvas: canvas.solid(solid, self.x(s, z), z))

    def paint(self, canvas: Canvas) -> None:
        """Paint everything on the street from far to near."""
        for _, _, paint in sorted(self._queue, key=lambda item: item[:2]):
            paint(canvas)
        canvas.develop()
