"""People on foot, and bicycles and motorcycles with or without a rider."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fassd.synth.colors import Color, paint, scaled, skin
from fassd.synth.solids import Outline, Points, Solid, Span, limb, oval, rectangle

DARK: Color = (28, 28, 30)


def person(rng: np.random.Generator) -> Solid:
    """A person who stands or walks, facing the camera or away from it."""
    solid = Solid("person")
    k = rng.uniform(0.92, 1.08) * (0.68 if rng.random() < 0.12 else 1.0)  # one in eight is a child
    stride, wide = rng.uniform(0.02, 0.30), rng.uniform(0.20, 0.29)
    top, legs, hair = paint(rng), scaled(paint(rng), 0.7), scaled(paint(rng), 0.35)
    face = skin(rng)
    hem, bag = float(rng.choice([0.88, 0.88, 0.6, 0.45])), rng.random() < 0.35
    flare = wide * (1.0 if hem > 0.7 else 1.2)

    def put(outline: Outline, color: Color) -> None:
        solid.front([(x * k, y * k) for x, y in outline], color)

    for side in (-1, 1):
        foot = side * (0.07 + stride)
        put(limb((side * 0.09, 0.92), (foot, 0.03), 0.17), scaled(legs, 1 if side < 0 else 0.82))
        put([(foot - 0.09, 0), (foot + 0.1, 0), (foot + 0.09, 0.09), (foot - 0.08, 0.09)], DARK)
    swing = rng.uniform(-0.1, 0.2)
    for side in (-1, 1):
        hand = (side * (wide + 0.05 + swing * 0.5), 0.82)
        put(limb((side * wide * 0.88, 1.42), hand, 0.12), scaled(top, 0.84))
    put([(-wide, 1.46), (-0.08, 1.52), (0.08, 1.52), (wide, 1.46), (wide * 0.86, 1.0),
         (flare, hem), (-flare, hem), (-wide * 0.86, 1.0)], top)  # fmt: skip
    if bag:
        side = int(rng.choice([-1, 1]))
        put(limb((side * 0.3, 0.95), (side * 0.3, 0.6), 0.26), paint(rng))
    put(oval((0, 1.66), 0.105, 0.14), face)
    put(oval((0, 1.73), 0.115, 0.085, 8), hair)
    if rng.random() < 0.5:  # seen from behind
        put(oval((0, 1.68), 0.11, 0.13, 8), hair)
    return solid


# ------------------------------------------------------------------------------------- two wheels


@dataclass(frozen=True)
class TwoWheeler:
    """A bicycle or motorcycle, perhaps ridden; `discs` are see-through wheels to paint first."""

    solid: Solid
    discs: list[Points]
    length: float


@dataclass(frozen=True)
class _Frame:
    """Positions of the parts of a two-wheeler: metres ahead of the tail, and up."""

    motor: bool
    radius: float
    rear: float  # hubs
    front: float
    seat: float
    bar: float


def two_wheeler(rng: np.random.Generator, motor: bool, ridden: bool) -> TwoWheeler:
    """Build it twice, from the side and from the front: seen at an angle, the planes cross."""
    solid = Solid("motorcycle" if motor else "bicycle")
    body, metal = paint(rng), scaled((1, 1, 1), rng.uniform(40, 190))
    radius = rng.uniform(0.28, 0.33) if motor else rng.uniform(0.33, 0.37)
    base = rng.uniform(1.3, 1.5) if motor else rng.uniform(0.98, 1.1)
    seat, bar = (0.80, 1.02) if motor else (0.92, 1.04)
    frame = _Frame(motor, radius, radius, radius + base, seat, bar)
    discs: list[Points] = []
    if motor:
        _motorcycle(solid, rng, frame, body, metal)
    else:
        discs = _bicycle(solid, rng, frame, body)
    if ridden:
        _rider(solid, rng, frame)
    return TwoWheeler(solid, discs, frame.front + radius)


def _tyre(solid: Solid, hub: Span, radius: float) -> None:
    for a in np.linspace(0, 2 * np.pi, 12, endpoint=False):
        start, end = (
            (hub[0] + radius * float(np.cos(b)), hub[1] + radius * float(np.sin(b)))
            for b in (a, a + np.pi / 6)
        )
        solid.side(limb(start, end, 0.055), DARK)


def _tyre_fronts(solid: Solid, frame: _Frame, half: float) -> None:
    for hub_ahead in (frame.front, frame.rear):
        solid.front(rectangle((-half, 0), (half, 2 * frame.radius)), DARK, hub_ahead)


def _bicycle(solid: Solid, rng: np.random.Generator, frame: _Frame, body: Color) -> list[Points]:
    """Tubes, saddle and handlebar; some carry a basket. Returns the wheels' discs."""
    radius, rear, front, seat, bar = (
        frame.radius, frame.rear, frame.front, frame.seat, frame.bar,
    )  # fmt: skip
    hubs, crank = ((rear, radius), (front, radius)), (rear + 0.44, radius * 0.9)
    for hub in hubs:
        _tyre(solid, hub, radius)
    for a, b in (
        ((rear, radius), crank),
        (crank, (rear + 0.28, seat)),
        (crank, (front - 0.18, 0.82)),
        ((rear + 0.3, seat - 0.12), (front - 0.2, 0.84)),
        ((rear, radius), (rear + 0.27, seat - 0.1)),
        ((front, radius), (front - 0.22, bar)),
    ):
        solid.side(limb(a, b, 0.065), body)
    solid.side(limb((rear + 0.14, seat), (rear + 0.4, seat), 0.09), DARK)
    solid.side(limb((front - 0.34, bar), (front - 0.12, bar + 0.02), 0.07), DARK)
    if rng.random() < 0.3:
        x, basket = front - 0.1, front + 0.25
        solid.side([(x, 0.75), (basket, 0.75), (front + 0.28, 1.0), (x, 1.0)], paint(rng))
    _tyre_fronts(solid, frame, 0.045)
    solid.front(limb((-0.29, bar), (0.29, bar), 0.06), DARK, front - 0.2)
    solid.front(limb((0, radius), (0, bar), 0.07), body, front - 0.2)
    return [[(0.0, y, u) for u, y in oval(hub, radius, corners=14)] for hub in hubs]


def _motorcycle(
    solid: Solid, rng: np.random.Generator, frame: _Frame, body: Color, metal: Color
) -> None:
    """Wheels, fork, engine, seat, tank and lamps; a scooter has a leg shield and a boot instead."""
    r, f, radius, bar = frame.rear, frame.front, frame.radius, frame.bar
    for hub in ((r, radius), (f, radius)):
        solid.side(oval(hub, radius, corners=14), DARK)
        solid.side(oval(hub, radius * 0.5, corners=8), metal)
    solid.side(limb((f, radius), (f - 0.32, 1.0), 0.10), metal)
    engine = [(r - 0.02, 0.34), (f - 0.42, 0.25), (f - 0.38, 0.62), (r + 0.1, 0.66)]
    solid.side(engine, (52, 52, 56))
    solid.side(limb((r - 0.25, 0.3), (r + 0.5, 0.28), 0.11), metal)  # the exhaust
    scooter: list[Outline] = [
        [(f - 0.45, 0.25), (f - 0.2, 0.3), (f - 0.3, 1.0), (f - 0.42, 1.0)],
        [(r - 0.3, 0.45), (r + 0.5, 0.35), (r + 0.5, 0.72), (r - 0.3, 0.78)],
    ]
    roadster: list[Outline] = [
        [(r + 0.45, 0.62), (f - 0.36, 0.60), (f - 0.28, 0.92), (r + 0.62, 0.98)],
        [(r - 0.32, 0.72), (r + 0.1, 0.6), (r + 0.2, 0.8), (r - 0.34, 0.88)],
        [(f - 0.34, 0.72), (f - 0.05, 0.78), (f - 0.22, 1.16), (f - 0.4, 0.98)],
    ]
    for outline in scooter if rng.random() < 0.4 else roadster:
        solid.side(outline, body)
    solid.side([(r - 0.2, 0.72), (r + 0.55, 0.7), (r + 0.55, 0.84), (r - 0.24, 0.88)], DARK)
    solid.side(limb((f - 0.42, 1.05), (f - 0.24, 1.02), 0.09), DARK)
    _tyre_fronts(solid, frame, 0.09)
    fairing = [(-0.168, 0.45), (0.168, 0.45), (0.24, 0.95), (-0.24, 0.95)]
    solid.front(fairing, body, r + 0.5)
    solid.front(limb((-0.4, bar + 0.04), (0.4, bar + 0.04), 0.07), DARK, r + 0.9)
    for side in (-1, 1):  # mirrors
        solid.front(oval((side * 0.38, bar + 0.2), 0.08, 0.06, 6), DARK, r + 0.9)
    solid.front(oval((0, 0.82), 0.1, 0.09, 8), (236, 232, 214), f)  # headlamp and tail lamp
    solid.front(rectangle((-0.1, 0.7), (0.1, 0.79)), (196, 24, 24), r - 0.1)


def _rider(solid: Solid, rng: np.random.Generator, frame: _Frame) -> None:
    """A person in the saddle: bent legs, arms to the bar, often a helmet."""
    top, legs, face, cap = paint(rng), scaled(paint(rng), 0.7), skin(rng), paint(rng)
    sleeve, shin = scaled(top, 0.84), scaled(legs, 0.85)
    hip = (frame.rear + 0.27, frame.seat + 0.06)
    lean = rng.uniform(0.12, 0.35)
    neck = (hip[0] + lean, hip[1] + 0.56)
    knee, foot = (hip[0] + 0.40, hip[1] - 0.22), (hip[0] + 0.22, 0.34 if frame.motor else 0.28)
    head = (neck[0] + 0.06, neck[1] + 0.17)
    hat = 0.145 if frame.motor else 0.125
    hand = (frame.front - 0.28, frame.bar + 0.05)
    for outline, color in (
        (limb(hip, knee, 0.18), legs),
        (limb(knee, foot, 0.14), shin),
        (limb((hip[0], hip[1] - 0.06), (neck[0], neck[1] + 0.02), 0.30), top),
        (limb((neck[0], neck[1] - 0.06), hand, 0.11), sleeve),
        (oval(head, 0.12, 0.145), face),
        (oval((head[0] - 0.01, head[1] + 0.05), hat, hat * 0.9, 8), cap),
    ):
        solid.side(outline, color, label="rider")

    def front(outline: Outline, color: Color, at: float = hip[0]) -> None:
        solid.front(outline, color, at, label="rider")

    for side in (-1, 1):
        front(limb((side * 0.11, hip[1]), (side * 0.20, knee[1]), 0.16), legs)
        front(limb((side * 0.19, knee[1] + 0.05), (side * 0.14, foot[1]), 0.13), shin)
        front(limb((side * 0.2, neck[1] - 0.05), (side * 0.30, frame.bar + 0.06), 0.11), sleeve)
    front([(-0.23, neck[1]), (-0.07, neck[1] + 0.06), (0.07, neck[1] + 0.06), (0.23, neck[1]),
           (0.19, hip[1] - 0.06), (-0.19, hip[1] - 0.06)], top)  # fmt: skip
    front(oval((0, head[1]), 0.11, 0.145), face, hip[0] + lean)
    front(oval((0, head[1] + 0.05), hat, hat * 0.9, 8), cap, hip[0] + lean)
