"""Cars, trucks, buses and trams.

Bodies are built in metres as (right, up, ahead), from the middle of the tail on the ground.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fassd.synth.colors import Color, glass, paint, scaled
from fassd.synth.solids import Solid, Span, oval, rectangle

DARK: Color = (26, 26, 29)
HUB: Color = (110, 110, 112)
SIGNBOARD: Color = (250, 176, 60)


class Body(Solid):
    """A solid with the details of a vehicle."""

    def box(
        self, half: float, up: Span, ahead: Span, color: Color, roof: Color | None = None
    ) -> None:
        """A cuboid `half` metres to either side."""
        (low, high), (tail, head) = up, ahead
        plan = rectangle((-half, tail), (half, head))
        self.face([(x, high, u) for x, u in plan], roof or color)
        for u in ahead:
            self.panel(u, (-half, half), up, color)
        for x in (-half, half):
            self.side(rectangle((tail, low), (head, high)), color, x)

    def panel(self, ahead: float, right: Span, up: Span, color: Color, glows: bool = False) -> None:
        """A rectangle on the front or the back."""
        outline = rectangle((right[0], up[0]), (right[1], up[1]))
        self.front(outline, color, ahead, glows=glows)

    def pair(self, ahead: float, right: Span, up: Span, color: Color, glows: bool = False) -> None:
        """Two such rectangles, mirror images of one another."""
        for side in (-1, 1):
            self.panel(ahead, (side * right[0], side * right[1]), up, color, glows)

    def flank(self, half: float, ahead: Span, up: Span, color: Color) -> None:
        """A rectangle on both sides."""
        for x in (-half - 0.005, half + 0.005):
            self.side(rectangle((ahead[0], up[0]), (ahead[1], up[1])), color, x)

    def wheels(self, half: float, places: list[float], radius: float, hub: Color) -> None:
        """Wheels on both sides, at distances from the tail."""
        for x in (-half - 0.01, half + 0.01):
            for ahead in places:
                for at, share, corners, color in ((x, 1.0, 12, DARK), (x * 1.005, 0.55, 8, hub)):
                    rim = oval((radius, ahead), share * radius, corners=corners)
                    self.side([(u, y) for y, u in rim], color, at)

    def tyres(self, half: float, ahead: Span, high: float) -> None:
        """The wheels as seen from behind and from the front, below the body."""
        for side in (-1, 1):
            tyre = rectangle((side * (half - 0.24), 0), (side * (half - 0.02), high))
            for u in ahead:
                self.front(tyre, DARK, u, flat=True)


@dataclass
class Vehicle:
    """Parts with bodies of their own, each with the distance of its middle from the tail."""

    length: float
    width: float
    height: float
    parts: list[tuple[float, Solid]] = field(default_factory=list)


# ------------------------------------------------------------------------------------------- cars

# Hatchback, saloon, estate, off-roader, van: length, height, and along the length as shares of it
# the end of the boot, the rear and the front end of the roof, and the foot of the windscreen.
CARS: list[tuple[Span, Span, tuple[float, float, float, float]]] = [
    ((3.6, 4.2), (1.42, 1.55), (0.02, 0.09, 0.55, 0.74)),
    ((4.4, 4.9), (1.38, 1.48), (0.14, 0.30, 0.56, 0.73)),
    ((4.5, 4.9), (1.42, 1.52), (0.02, 0.07, 0.56, 0.73)),
    ((4.4, 4.9), (1.62, 1.85), (0.02, 0.08, 0.56, 0.72)),
    ((4.7, 5.4), (1.85, 2.15), (0.01, 0.03, 0.66, 0.82)),
]
VAN = 4


def car(rng: np.random.Generator, lit: bool) -> Vehicle:
    """A car of any make, its lamps `lit` or not."""
    kind = int(rng.integers(len(CARS)))
    lengths, heights, shares = CARS[kind]
    length, high, half = rng.uniform(*lengths), rng.uniform(*heights), rng.uniform(0.84, 0.97)
    belt = high * rng.uniform(0.58, 0.64)
    body, pane = paint(rng), glass(rng)
    boot, rear, front, cowl = (share * length for share in shares)
    narrow = half * (0.92 if kind == VAN else 0.84)
    outline = [  # (ahead, up, half width) from the tail over the roof to the nose
        (0.05, 0.28, half * 0.97), (0.0, 0.55, half), (0.03, belt, half),
        (boot, belt * 1.03, half), (rear, high, narrow), (front, high, narrow), (cowl, belt, half),
        (length - 0.12, belt * 0.80, half * 0.96), (length, 0.55, half * 0.95),
        (length - 0.06, 0.26, half * 0.93),
    ]  # fmt: skip
    solid = Body("car", (0, 0.55 * high, 0.45 * length))
    solid.tyres(half, (0.75, length - 0.75), 0.45)
    _shell(solid, outline, body, pane)
    lamps = half * 0.95 - 0.08, half * 0.95 - 0.42
    up = 0.62 * belt + 0.1
    solid.pair(-0.02, lamps, (up, up + 0.17), (214, 26, 24) if lit else (150, 20, 22), lit)
    white = (255, 250, 226) if lit else (214, 216, 214)
    solid.pair(length + 0.02, lamps, (up - 0.06, up + 0.11), white, lit)
    solid.panel(-0.01, (-0.27, 0.27), (0.48, 0.6), (226, 226, 220))
    solid.panel(length + 0.01, (-half * 0.5, half * 0.5), (0.42, 0.56), DARK)
    _car_sides(solid, outline, body, pane)
    solid.wheels(half, [0.17 * length, 0.82 * length], rng.uniform(0.30, 0.38), (150, 152, 156))
    return Vehicle(length, 2 * half, high, [(length / 2, solid)])


def _shell(
    solid: Body, outline: list[tuple[float, float, float]], body: Color, pane: Color
) -> None:
    """The parts that span the width of a car: bumpers, bonnet, screens, roof and boot."""
    for i in (8, 7, 6, 0, 1, 2, 3, 5, 4):  # the roof hides the parts behind it
        (u0, y0, w0), (u1, y1, w1) = outline[i], outline[i + 1]
        color = scaled(body, 0.72) if i in (0, 8) else body
        solid.face([(-w0, y0, u0), (w0, y0, u0), (w1, y1, u1), (-w1, y1, u1)], color)
        if i in (3, 5):  # a screen inside its frame
            (a, b, c), (d, e, f) = (
                (u0 * (1 - t) + u1 * t, y0 * (1 - t) + y1 * t, 0.88 * (w0 * (1 - t) + w1 * t))
                for t in (0.1, 0.92)
            )
            solid.face([(-c, b, a), (c, b, a), (f, e, d), (-f, e, d)], pane)


def _car_sides(
    solid: Body, outline: list[tuple[float, float, float]], body: Color, pane: Color
) -> None:
    boot, rear, front, cowl = (outline[i][0] for i in (3, 4, 5, 6))
    belt, half = outline[2][1:]
    high, narrow = outline[4][1:]
    middle, post = (rear + front) / 2, (boot * 0.3 + cowl * 0.7 + rear) / 2
    for side in (-1, 1):
        solid.face([(side * w, y, u) for u, y, w in (*outline[:4], *outline[6:])], body)
        solid.face([(side * w, y, u) for u, y, w in outline[3:7]], body)
        window = []
        for (u, y, w), inward in zip(outline[3:7], (0.12, 0.10, 0.10, 0.12), strict=True):
            up = y - 0.06 if y > belt * 1.1 else y + 0.03
            window.append((side * (w + 0.01), up, u + (middle - u) * inward))
        solid.face(window, pane)
        low, top = side * (half + 0.02), side * (narrow + 0.02)
        pillar = [(low, belt, post), (low, belt, post + 0.1),
                  (top, high - 0.05, post + 0.1), (top, high - 0.05, post)]  # fmt: skip
        solid.face(pillar, scaled(body, 0.8))


# ------------------------------------------------------------------------------- buses and trams


Livery = tuple[Color, Color, Color]  # colours of the body, its stripe and its windows


def _coachwork(
    rng: np.random.Generator, solid: Body, half: float, up: Span, ahead: Span, livery: Livery,
    ends: tuple[bool, bool], lit: bool,
) -> None:  # fmt: skip
    """The body that buses and trams share: its proportions and colours reveal nothing.

    `ends` says whether the tail and the head have a face, or couple to another car.
    """
    (low, high), (tail, head) = up, ahead
    tall, length = high - low, head - tail
    body, stripe, pane = livery
    solid.box(half, up, ahead, body, scaled(body, 0.8))
    base, top = low + tall * 0.40, low + tall * rng.uniform(0.74, 0.84)
    count = max(2, round(length / rng.uniform(1.1, 2.0)))
    solid.flank(half, ahead, (low, low + tall * rng.uniform(0.1, 0.3)), stripe)
    doors = set(rng.integers(0, count, 2).tolist())
    for i in range(count):
        window = tail + (i + 0.06) * length / count, tail + (i + 0.94) * length / count
        solid.flank(half, window, (low + 0.12 if i in doors else base, top), pane)
    lamps = (half * 0.62, half * 0.92), (low + 0.3, low + 0.55)
    if ends[0]:
        back = tail - 0.01
        solid.panel(back, (-half * 0.8, half * 0.8), (base + 0.1, top + 0.08), pane)
        solid.pair(back - 0.01, *lamps, (190, 24, 24), lit)
    if ends[1]:
        face = head + 0.01
        solid.panel(face, (-half * 0.92, half * 0.92), (base - 0.25, top + 0.08), pane)
        board = (-half * 0.7, half * 0.7), (top + 0.12, high - 0.1)
        solid.panel(face + 0.005, *board, (28, 26, 24))
        letters = (-half * 0.5, half * 0.45), (top + 0.17, high - 0.15)
        solid.panel(face + 0.01, *letters, SIGNBOARD, True)
        white = (255, 248, 224) if lit else (220, 220, 216)
        solid.pair(face + 0.01, *lamps, white, lit)


def bus(rng: np.random.Generator, lit: bool) -> Vehicle:
    """A city bus: wheels, mirrors, and no rails under it."""
    length, half = rng.uniform(8.5, 12.5), rng.uniform(1.2, 1.3)
    low, high = 0.32, rng.uniform(2.9, 3.5)
    solid = Body("bus", (0, 1.6, length / 2))
    solid.tyres(half, (0.3, length - 0.3), low + 0.05)
    _coachwork(
        rng,
        solid,
        half,
        (low, high),
        (0, length),
        (paint(rng), paint(rng), glass(rng)),
        (True, True),
        lit,
    )
    solid.wheels(half, [0.2 * length, 0.78 * length], 0.5, (120, 122, 126))
    for x in (-half - 0.12, half + 0.12):  # mirrors
        solid.panel(length + 0.1, (x - 0.1, x + 0.1), (1.9, 2.4), DARK)
    return Vehicle(length, 2 * half, high, [(length / 2, solid)])


def tram(rng: np.random.Generator, lit: bool) -> Vehicle:
    """One to three cars on rails: skirts down to the track, a pantograph on the roof."""
    count = int(rng.integers(1, 4))
    each, half = rng.uniform(7.5, 11), rng.uniform(1.15, 1.3)
    low, high = 0.12, rng.uniform(3.0, 3.6)
    livery = (paint(rng), paint(rng), glass(rng))
    vehicle = Vehicle(count * each, 2 * half, high)
    for i in range(count):
        tail, head = i * each + 0.15, (i + 1) * each - 0.15
        solid = Body("train", (0, 1.6, (tail + head) / 2))
        ends = (i == 0, i == count - 1)
        _coachwork(rng, solid, half, (low, high), (tail, head), livery, ends, lit)
        vehicle.parts.append(((tail + head) / 2, solid))
        if i < count - 1:
            joint = Body("train", (0, 1.6, head + 0.15))
            joint.box(half * 0.88, (low + 0.1, high - 0.12), (head, head + 0.3), (44, 44, 46))
            vehicle.parts.append((head + 0.15, joint))
    ahead = each * (count - 0.5)
    vehicle.parts.append((ahead, _pantograph(ahead, high)))
    return vehicle


def _pantograph(at: float, roof: float) -> Solid:
    """A folded arm with a bar across its top, and a box of resistors; flat, for it is thin."""
    arm = Solid("train")
    for half, (y0, u0), (y1, u1), color in (
        (0.07, (0.0, 0.0), (0.7, 0.8), DARK),
        (0.07, (0.7, 0.8), (1.3, 0.0), DARK),
        (0.8, (1.28, 0.0), (1.38, 0.0), DARK),
        (0.7, (0.0, -1.0), (0.3, -1.0), (90, 92, 96)),
    ):
        low, top = (roof + y0, at + u0), (roof + y1, at + u1)
        arm.face([(-half, *low), (half, *low), (half, *top), (-half, *top)], color)
    return arm


# ----------------------------------------------------------------------------------------- trucks


def truck(rng: np.random.Generator, lit: bool) -> Vehicle:
    """A cab, and behind it a box, a tarpaulin, a tipper or a loaded platform."""
    kind = str(rng.choice(["box", "box", "tarp", "tipper", "flat"]))
    bed, cab = rng.uniform(4.2, 8.5), rng.uniform(1.7, 2.3)
    half, high = rng.uniform(1.15, 1.3), rng.uniform(2.5, 3.1)
    floor, start = 0.95, bed + 0.25
    length = start + cab
    top = {"box": high + 0.6, "tarp": high + 0.5, "tipper": 2.1, "flat": 1.15}[kind]
    top += rng.uniform(-0.25, 0.25)
    body, load, pane = paint(rng), paint(rng), glass(rng)
    chassis = Body("truck", (0, 0.7, length / 2))
    chassis.tyres(half, (0.5, length - 0.4), 0.95)
    chassis.box(half * 0.8, (0.5, floor), (0.1, length - 0.2), (48, 48, 50))
    axles = [0.16 * length, 0.3 * length, 0.84 * length]
    chassis.wheels(half * 0.97, axles, 0.5, HUB)
    cargo = _cargo(rng, kind, half, (floor, top), bed, load, lit)
    front = _cab(half, high, (start, length), body, pane, lit)
    return Vehicle(
        length, 2 * half, max(top, high),
        [(length / 2 - 0.01, chassis), (bed / 2, cargo), (length - cab / 2, front)],
    )  # fmt: skip


def _cargo(
    rng: np.random.Generator, kind: str, half: float, up: Span, bed: float, load: Color, lit: bool
) -> Body:
    floor, top = up
    tall = top - floor
    cargo = Body("truck", (0, 1.5 if kind == "flat" else (floor + top) / 2, bed / 2))
    if kind == "flat":
        goods = paint(rng)
        cargo.box(half, up, (0, bed), load)
        cargo.box(half * 0.85, (top, top + rng.uniform(0.6, 1.4)), (0.4, bed * 0.9), goods)
    else:
        cargo.box(half, up, (0, bed), load, scaled(load, 0.9))
    if kind in ("tarp", "tipper"):
        ribs = int(rng.integers(4, 9))
        for i in range(ribs):
            u = (i + 0.45) * bed / ribs
            cargo.flank(half, (u, u + 0.09), (floor + 0.05, top - 0.05), scaled(load, 0.72))
    if kind in ("box", "tarp"):
        if rng.random() < 0.6:
            low = rng.uniform(0.3, 0.6)
            band = floor + tall * low, floor + tall * (low + 0.25)
            cargo.flank(half, (bed * 0.15, bed * 0.8), band, paint(rng))
        cargo.panel(-0.01, (-0.03, 0.03), (floor, top - 0.1), scaled(load, 0.6))
    for x in (-half * 0.55, -half * 0.92, half * 0.55, half * 0.92):  # hinges
        cargo.panel(-0.015, (x - 0.03, x + 0.03), (floor, top - 0.1), scaled(load, 0.75))
    lamps = half * 0.7, half * 0.98
    cargo.pair(-0.02, lamps, (floor + 0.02, floor + 0.2), (200, 26, 24), lit)
    return cargo


def _cab(half: float, high: float, ahead: Span, body: Color, pane: Color, lit: bool) -> Body:
    start, length = ahead
    cab = length - start
    front = Body("truck", (0, high / 2 + 0.2, start + cab / 2))
    front.box(half * 0.97, (0.45, high), ahead, body)
    face = length + 0.01
    front.panel(face, (-half * 0.88, half * 0.88), (high * 0.52, high * 0.86), pane)
    front.panel(face, (-half * 0.6, half * 0.6), (0.75, high * 0.45), scaled(body, 0.6))
    front.panel(face + 0.005, (-half * 0.93, half * 0.93), (0.45, 0.68), (60, 60, 62))
    window = start + cab * 0.35, length - 0.15
    front.flank(half * 0.97, window, (high * 0.55, high * 0.84), pane)
    white = (255, 248, 224) if lit else (220, 220, 214)
    front.pair(face + 0.01, (half * 0.62, half * 0.92), (0.72, 0.92), white, lit)
    for x in (-half - 0.14, half + 0.14):  # mirrors
        front.panel(length - 0.1, (x - 0.1, x + 0.1), (high * 0.55, high * 0.8), DARK)
    front.wheels(half * 0.975, [length - cab * 0.5], 0.5, HUB)
    return front
