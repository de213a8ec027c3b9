"""Objects along the kerb, and everyone who drives, rides and walks in the street.

A long box with windows is a train if rails run under it, and a bus otherwise; a figure with two
wheels below it is a rider, and without them a person.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np

from fassd.synth.canvas import Canvas
from fassd.synth.figures import TwoWheeler, person, two_wheeler
from fassd.synth.frontage import build_railing, plant
from fassd.synth.furniture import bollard, lamp, mast, sign, traffic_light
from fassd.synth.solids import Span
from fassd.synth.street import SIDES, Street
from fassd.synth.vehicles import Vehicle, bus, car, tram, truck


def furnish(street: Street) -> None:
    """Lamps, masts, trees, signs, bollards, railings and traffic lights; few beyond 45 m."""
    for side in SIDES:
        _line_kerb(street, side)
        _place_lights(street, side)
    if street.island:
        _furnish_island(street, sum(street.island) / 2)


def _line_kerb(street: Street, side: int) -> None:
    rng, edge = street.rng, street.edge
    off, step = rng.uniform(0.45, 0.8), rng.uniform(11, 20)
    s = edge(side, off)
    for z in np.arange(rng.uniform(6, 13), 44, step).tolist():
        if street.crosses(z):
            continue
        if street.has_track and side < 0:
            post = mast(rng, 1, abs(street.track - s))
        else:
            post = lamp(rng, -side, street.light.lamps)
        street.stand(post, s, z, 6.5)
    green, step = rng.random() < 0.5, rng.uniform(7, 13)
    for z in np.arange(rng.uniform(8, 15), 75, step).tolist() if green else ():
        if not street.crosses(z):
            plant(street, edge(side, off + 0.4), z + 2.5)
    for _ in range(int(rng.integers(1, 4))):
        z = rng.uniform(6, 30)
        street.stand(sign(rng), edge(side, rng.uniform(0.5, 1.0)), z, 3.0, (0.06, 0.06))
    if rng.random() < 0.45:
        start = rng.uniform(5, 16)
        if rng.random() < 0.4:
            model = int(rng.integers(2**31))
            for i in range(int(rng.integers(3, 8))):
                post = bollard(np.random.default_rng(model))  # all of one model
                street.stand(post, edge(side, 0.4), start + 1.9 * i, 0.9)
        else:
            build_railing(street, edge(side, 0.35), start, start + rng.uniform(6, 14))


def _place_lights(street: Street, side: int) -> None:
    """Traffic lights before and behind a side street, at a zebra crossing, or anywhere."""
    rng, crossing = street.rng, street.crossing
    at = crossing[0] - 1.2 if crossing else street.zebra
    wanted = at is not None and (crossing is not None or rng.random() < 0.6)
    if at is not None and wanted and rng.random() < 0.9:
        street.stand(traffic_light(rng, -side), street.edge(side, 0.6), at - 0.3, 3.4)
        if crossing and crossing[1] < 34 and rng.random() < 0.6:
            street.stand(traffic_light(rng, -side), street.edge(side, 0.7), crossing[1] + 1.0, 3.4)
    elif rng.random() < 0.75:
        post = traffic_light(rng, -side)
        street.stand(post, street.edge(side, 0.6), rng.uniform(9, 26), 3.4)


def _furnish_island(street: Street, s: float) -> None:
    rng = street.rng
    for z in np.arange(rng.uniform(6, 12), 40, rng.uniform(7, 14)).tolist():
        if street.crosses(z):
            continue
        if rng.random() < 0.5:
            plant(street, s, z, shrub=bool(rng.random() < 0.5))
        else:
            post = sign(rng) if rng.random() < 0.6 else lamp(rng, 1, street.light.lamps)
            street.stand(post, s, z, 3.5)


# ---------------------------------------------------------------------------------------- traffic


def populate(street: Street) -> None:
    """Traffic on the road, parked vehicles, and people."""
    rng = street.rng
    if street.has_track and rng.random() < 0.92:
        toward, vehicle = bool(rng.random() < 0.6), tram(rng, street.light.lamps)
        z = rng.uniform(6, 14) if rng.random() < 0.6 else rng.uniform(14, 40)
        _drive(street, vehicle, street.track, z, toward)
    for _ in range(int(rng.choice([1, 2, 3]))):  # riders who cross the street
        motor, side = bool(rng.random() < 0.5), int(rng.choice(SIDES))
        z = rng.uniform(7, 18)
        s = street.here + rng.uniform(-4.5, 4.5) * z / 10
        _ride(street, two_wheeler(rng, motor, True), s, z, side * rng.uniform(0.9, 2.2))
    _fill_lanes(street, street.oncoming, True, rng.uniform(7, 14))
    _fill_lanes(street, street.lanes, False, rng.uniform(9, 18))
    for side in SIDES:
        if street.parking[side]:
            _park(street, side)
    if street.crossing and rng.random() < 0.5:
        z = sum(street.crossing) / 2 + rng.uniform(-1, 1)
        make = car if rng.random() < 0.5 else _large(rng)
        vehicle = make(rng, street.light.lamps)
        _cross(street, vehicle, rng.uniform(-7, 7), z, bool(rng.random() < 0.5))
    for side in SIDES:
        _people_pavement(street, side)
    if street.zebra is not None:
        for _ in range(int(rng.integers(0, 4))):
            s = rng.uniform(street.kerbs[-1], street.kerbs[1])
            _walk(street, s, street.zebra + rng.uniform(0.3, 2.5))


def _large(rng: np.random.Generator) -> Callable[[np.random.Generator, bool], Vehicle]:
    return bus if rng.random() < 0.5 else truck


def _fill_lanes(street: Street, lanes: list[float], toward: bool, start: float) -> None:
    """Cars, buses, trucks and riders one behind the other, up to 60 m."""
    rng, lit = street.rng, street.light.lamps
    for lane in lanes:
        z = start + (rng.uniform(0, 8) if lane != lanes[0] else 0)
        while z < 60:
            kind, s = rng.random(), lane + rng.normal(0, 0.2)
            if kind < 0.30 and z < 40:
                bike = two_wheeler(rng, bool(rng.random() < 0.55), True)
                heading = rng.normal(0, 0.15) + (np.pi if toward else 0)
                _ride(street, bike, s + rng.uniform(-0.7, 0.9), z, heading)
                z += rng.uniform(4, 9)
            else:
                vehicle = car(rng, lit) if kind < 0.55 else _large(rng)(rng, lit)
                _drive(street, vehicle, s, z, toward)
                z += vehicle.length + rng.uniform(4, 16)


def _park(street: Street, side: int) -> None:
    """Mostly cars along the kerb; some trucks, and two-wheelers side by side."""
    rng, lit = street.rng, street.light.lamps
    s, z = street.edge(side, -1.1), rng.uniform(4, 9)
    while z < 65:
        kind = rng.random()
        if street.crossing and street.crossing[0] - 5 < z < street.crossing[1] + 1:
            z = street.crossing[1] + 1.5
        elif kind < 0.62 or (kind < 0.72 and z > 8):
            vehicle = car(rng, lit) if kind < 0.62 else truck(rng, lit)
            _drive(street, vehicle, s, z, side < 0)
            z += vehicle.length + (rng.uniform(0.6, 2) if kind < 0.62 else 1.5)
        elif kind < 0.88 and z < 36:
            motor = bool(rng.random() < 0.6)
            for _ in range(int(rng.integers(1, 4))):
                _ride(street, two_wheeler(rng, motor, False), s, z, rng.uniform(1.0, 2.1))
                z += rng.uniform(0.9, 1.6)
            z += 1.0
        else:
            z += rng.uniform(3, 7)


def _people_pavement(street: Street, side: int) -> None:
    """People on foot, half of them near, and perhaps a row of bicycles."""
    rng, (inner, outer) = street.rng, street.walk[side]
    for _ in range(int(rng.integers(3, 8))):
        z = rng.uniform(5.5, 16) if rng.random() < 0.5 else rng.uniform(16, 38)
        _walk(street, street.edge(side, rng.uniform(inner + 0.5, outer - 0.3)), z)
    if rng.random() < 0.6:
        motor = bool(rng.random() < 0.25)
        z, beyond = rng.uniform(6, 17), rng.uniform(inner + 0.6, outer - 0.8)
        turn = rng.uniform(0.7, 2.4)
        for i in range(int(rng.integers(1, 5))):
            bike = two_wheeler(rng, motor, False)
            heading = turn + rng.normal(0, 0.1)
            _ride(street, bike, street.edge(side, beyond), z + 0.8 * i, heading)


# ------------------------------------------------------------------------ one thing in its place


def _drive(street: Street, vehicle: Vehicle, s: float, z: float, toward: bool) -> None:
    """Put a vehicle with its nearer end at z, coming `toward` us or going with us."""
    half, end = vehicle.width / 2, z + vehicle.length
    heading = street.heading(z) + (np.pi if toward else 0.0)
    pose = street.x(s, z), end if toward else z, heading
    _put(street, vehicle, (s - half, s + half), (z, end), 0.3, pose, toward)


def _cross(street: Street, vehicle: Vehicle, s: float, z: float, rightward: bool) -> None:
    """Put a vehicle across the street, its tail at s."""
    half, direction = vehicle.width / 2, 1 if rightward else -1
    ends = s, s + direction * vehicle.length
    pose = street.x(s, z), z, direction * np.pi / 2
    tail_first = (s - street.here > 0) == rightward
    _put(street, vehicle, ends, (z - half, z + half), 0.0, pose, tail_first)


def _put(
    street: Street, vehicle: Vehicle, s: Span, z: Span, gap: float,
    pose: tuple[float, float, float], tail_first: bool,
) -> None:  # fmt: skip
    """Put a vehicle on a rectangle with a free `gap` before and behind it, if there is room.

    Its `pose` is x and z of the tail, and the heading. Parts are painted from far to near.
    """
    if not street.claim((min(s), max(s)), (z[0] - gap, z[1] + gap)):
        return
    street.cast(list(product(s, z)), vehicle.height)
    parts = sorted(vehicle.parts, key=lambda part: part[0], reverse=not tail_first)

    def paint(canvas: Canvas) -> None:
        for _, solid in parts:
            canvas.solid(solid, *pose)

    street.add(z[0], paint)


def _ride(street: Street, bike: TwoWheeler, s: float, z: float, heading: float) -> None:
    """Put a two-wheeler with its tail at (s, z)."""
    sine, cosine = float(np.sin(heading)), float(np.cos(heading))
    ends = [(s, z), (s + sine * bike.length, z + cosine * bike.length)]
    (left, right), (near, far) = (sorted(coordinate) for coordinate in zip(*ends, strict=True))
    slim = 0.1  # parked side by side, they may stand close together
    if not street.claim((left - slim, right + slim), (near - slim, far + slim)):
        return
    street.cast([(a + d, b + d) for a, b in ends for d in (-0.12, 0.12)], 1.5)

    def paint(canvas: Canvas) -> None:
        x = street.x(s, z)
        for disc in bike.discs:
            canvas.disc(disc, x, z, heading, bike.solid.label)
        canvas.solid(bike.solid, x, z, heading)

    street.add(near, paint)


def _walk(street: Street, s: float, z: float) -> None:
    """Put a person on foot at (s, z)."""
    street.stand(person(street.rng), s, z, 1.7, (0.22, 0.15), 0.25)
