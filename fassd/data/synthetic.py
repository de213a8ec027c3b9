"""A generated street: one perspective view with its label map, the same for a seed on every run.

The world is measured in metres: x to the right of the road's centre line, y up from the ground, z
away from the camera. Everything stands on the ground or on the two facade planes x = +-FACADE, so
the scene is painted from far to near; the canvas keeps picture, labels and depth together.
All random decisions are made before anything depends on the size in pixels: a seed shows the same
scene at every size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fassd.palette import CITYSCAPES

__all__ = ["render_street"]

Floats = npt.NDArray[np.floating]
Color = Sequence[float]  # red, green, blue; 0 .. 255

LABEL = {info.name: np.uint8(index) for index, info in enumerate(CITYSCAPES)}

CURB, FACADE, STREET_END = 5.6, 9.0, 150.0  # x of the kerb and of the facades; z of the far end
CAMERA_X, CAMERA_Y = 1.7, 1.75  # the camera drives in the right-hand lane
FOCAL, HORIZON = 1.05, 0.44  # in picture heights

CAR_COLORS: list[Color] = [
    (196, 30, 40), (34, 68, 120), (225, 226, 228), (40, 42, 46), (150, 156, 162), (205, 168, 60),
    (62, 104, 84),
]  # fmt: skip
WALL_COLORS: list[Color] = [
    (201, 176, 142), (172, 110, 88), (214, 203, 186), (150, 138, 128), (188, 150, 110),
    (126, 132, 142), (216, 190, 170), (158, 92, 76),
]  # fmt: skip
CLOTHES: list[Color] = [
    (178, 46, 52), (44, 74, 128), (228, 196, 92), (60, 62, 70), (92, 130, 88), (222, 222, 216),
]  # fmt: skip


@dataclass(frozen=True)
class _Mood:
    """Weather and time of day, as colours and strengths."""

    zenith: Color
    horizon: Color
    light: Color  # factor on everything that the sun reaches
    shade: float  # brightness inside a shadow
    visibility: float  # metres over which haze takes 63% of the colour
    clouds: float


MOODS = [
    _Mood((72, 124, 196), (206, 222, 234), (1.04, 1.02, 0.98), 0.62, 320, 0.75),
    _Mood((92, 120, 172), (250, 214, 170), (1.10, 0.98, 0.84), 0.58, 210, 0.55),
    _Mood((158, 168, 180), (216, 219, 222), (0.92, 0.93, 0.95), 0.85, 150, 0.35),
]


@dataclass(frozen=True)
class _Lot:
    """A stretch of one street side between two depths."""

    kind: str  # "building", "wall", "fence" or "garden"
    near: float
    far: float
    height: float
    color: Color
    pitch: float  # metres from window to window
    storey: float


class _Noise:
    """Smooth random texture with values in 0 .. 1, on a lattice that repeats every 256 cells."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.lattice = rng.random((257, 257), np.float32)
        self.lattice[256], self.lattice[:, 256] = self.lattice[0], self.lattice[:, 0]

    def __call__(self, u: npt.ArrayLike, v: npt.ArrayLike) -> Floats:
        """Bilinear interpolation at lattice coordinates (u, v), which broadcast."""
        u, v = _f32(u) % 256, _f32(v) % 256
        i, j = np.minimum(u.astype(np.intp), 255), np.minimum(v.astype(np.intp), 255)
        u, v = u - i, v - j
        top = self.lattice[j, i] * (1 - u) + self.lattice[j, i + 1] * u
        bottom = self.lattice[j + 1, i] * (1 - u) + self.lattice[j + 1, i + 1] * u
        return top * (1 - v) + bottom * v


class _Canvas:
    """Picture, labels and depth of one view, and the shapes that can be painted on them."""

    def __init__(self, height: int, width: int, noise: _Noise) -> None:
        self.height, self.width, self.noise = height, width, noise
        self.rgb = np.zeros((height, width, 3), np.float32)
        self.labels = np.full((height, width), LABEL["sky"])
        self.depth = np.full((height, width), 1e6, np.float32)
        center = width / height / 2
        # Slopes of the ray through each pixel: rightwards and downwards per metre of depth.
        self.right = (((np.arange(width, dtype=np.float32) + 0.5) / height - center) / FOCAL)[None]
        self.down = (((np.arange(height, dtype=np.float32) + 0.5) / height - HORIZON) / FOCAL)[
            :, None
        ]

    def scale(self, z: float) -> float:
        """Pixels per metre at depth `z`."""
        return FOCAL * self.height / z

    def window(
        self, z: float, x: tuple[float, float], y: tuple[float, float]
    ) -> tuple[tuple[slice, slice], Floats, Floats]:
        """The pixels around a rectangle facing the camera: their slices, and their x and y."""
        scale, center = self.scale(z), self.width / 2
        ground = HORIZON * self.height + CAMERA_Y * scale

        def clip(low: float, high: float, size: int) -> slice:
            first = min(max(int(low) - 1, 0), size)
            return slice(first, min(max(int(high) + 2, first), size))

        columns = clip(
            center + (x[0] - CAMERA_X) * scale, center + (x[1] - CAMERA_X) * scale, self.width
        )
        rows = clip(ground - y[1] * scale, ground - y[0] * scale, self.height)
        return (
            (rows, columns),
            self.right[:, columns] * z + CAMERA_X,
            CAMERA_Y - self.down[rows] * z,
        )

    def paint(
        self,
        where: tuple[slice, slice],
        coverage: Floats,
        color: npt.ArrayLike,
        label: str | None,
        z: npt.ArrayLike,
    ) -> None:
        """Blend `color` in by `coverage` (0 .. 1); pixels covered by half take label and depth."""
        area = self.rgb[where]
        area += coverage[..., None] * (_f32(color) - area)
        if label is not None:
            solid = coverage > 0.5
            self.labels[where][solid] = LABEL[label]
            np.copyto(self.depth[where], _f32(z), where=solid)

    def box(
        self,
        x: float,
        y: float,
        z: float,
        size: tuple[float, float],
        color: Color,
        label: str | None,
        *,
        radius: float = 0.0,
        taper: float = 0.0,
    ) -> None:
        """A rounded rectangle facing the camera, standing at height y, its middle at x.

        `size` is (width, height); `taper` is the share by which the top is narrower.
        """
        half, tall = size[0] / 2, size[1]
        where, px, py = self.window(z, (x - half, x + half), (y, y + tall))
        up = np.clip((py - y) / tall, 0, 1)
        across = np.abs(px - x) - half * (1 - taper * up) + radius
        along = np.abs(py - y - tall / 2) - tall / 2 + radius
        inside = np.minimum(np.maximum(across, along), 0)
        distance = np.hypot(np.maximum(across, 0), np.maximum(along, 0)) + inside - radius
        # The lower part is a little darker: less sky reaches it.
        tint = _f32(color) * (0.86 + 0.2 * up)[..., None]
        self.paint(where, np.clip(0.5 - distance * self.scale(z), 0, 1), tint, label, z)

    def ellipse(
        self,
        x: float,
        y: float,
        z: float,
        size: tuple[float, float],
        color: Color,
        label: str | None,
        *,
        leafy: float = 0.0,
        hole: float = 0.0,
    ) -> None:
        """An ellipse facing the camera around (x, y); `size` is (width, height).

        `leafy` roughens edge and colour as foliage; `hole` is the inner share that stays empty.
        """
        a, b = size[0] / 2, size[1] / 2
        where, px, py = self.window(
            z, (x - a * (1 + leafy), x + a * (1 + leafy)), (y - b - leafy * b, y + b + leafy * b)
        )
        radius = np.hypot((px - x) / a, (py - y) / b)
        tint: Floats = _f32(color)
        if leafy:
            rough = self.noise(px * 2.2 + 3 * z, py * 2.2) + self.noise(px * 7, py * 7 + z)
            radius = radius + leafy * (rough - 1)
            light = 0.62 + 0.28 * rough + 0.30 * (py - y) / b
            tint = tint * light[..., None]
        distance = np.abs(radius - (1 + hole) / 2) - (1 - hole) / 2 if hole else radius - 1
        coverage = np.clip(0.5 - distance * min(a, b) * self.scale(z), 0, 1)
        self.paint(where, coverage, tint, label, z)

    def shadow(self, x: float, z: float, size: tuple[float, float]) -> None:
        """A soft dark patch on the ground under something; `size` is (width, depth)."""
        near, far = max(z - size[1], 1.2), z + size[1]
        rows = [round((HORIZON + FOCAL * CAMERA_Y / depth) * self.height) for depth in (far, near)]
        beside = (x - 1.2 * size[0], x + 1.2 * size[0])
        sides = [self.window(depth, beside, (0, 1))[0][1] for depth in (far, near)]
        columns = slice(min(s.start for s in sides), max(s.stop for s in sides))
        where = slice(max(rows[0], 0), min(rows[1] + 1, self.height)), columns
        depth = CAMERA_Y / np.maximum(self.down[where[0]], 1e-4)
        px = self.right[:, columns] * depth + CAMERA_X
        away = ((px - x) / size[0]) ** 2 + ((depth - z) / size[1]) ** 2
        self.rgb[where] *= 1 - 0.55 * np.clip(1.25 - away, 0, 1)[..., None]


def _f32(values: npt.ArrayLike) -> npt.NDArray[np.float32]:
    return np.asarray(values, np.float32)


def _shaded(color: Color, factor: float) -> Color:
    return [factor * channel for channel in color]


# -------------------------------------------------------------------------------- the still street


def _paint_sky(canvas: _Canvas, mood: _Mood) -> None:
    height = np.clip(-canvas.down / (HORIZON / FOCAL), 0, 1)  # 0 at the horizon, 1 at the top
    blend = height[..., None] ** 0.7
    sky = blend * _f32(mood.zenith) + (1 - blend) * _f32(mood.horizon)
    # Clouds lie on a plane high above: perspective flattens them towards the horizon.
    rows = slice(0, max(1, int(HORIZON * canvas.height)))
    lift = 1 / (0.08 - canvas.down[rows])
    u, v = canvas.right * lift * 1.5, lift * 2.0
    puff = sum(canvas.noise(u * 2**k, v * 2**k + 40 * k) / 2**k for k in range(4)) / 1.875
    cover = np.clip((puff - 0.47) * 5, 0, 1) * np.clip(height[rows] * 3, 0, 1) * mood.clouds
    canvas.rgb[:] = sky
    canvas.rgb[rows] += cover[..., None] * (_f32((250, 250, 252)) - canvas.rgb[rows])


def _paint_ground(
    canvas: _Canvas, mood: _Mood, crossing: float, sunny: int, lots: list[_Lot]
) -> None:
    first = min(int(HORIZON * canvas.height) + 1, canvas.height - 1)
    rows = (slice(first, None), slice(None))
    z = CAMERA_Y / np.maximum(canvas.down[first:], 1e-4)  # depth, one per row
    x = canvas.right * z + CAMERA_X
    fine = np.float32(FOCAL) * canvas.height / z  # pixels per metre across the road
    side = np.abs(x)

    def stripe(distance: Floats, half: float, sharp: Floats = fine) -> Floats:
        return np.clip(0.5 - (np.abs(distance) - half) * sharp, 0, 1)

    # Detail that is finer than a pixel fades to its mean instead of flickering.
    grain = (canvas.noise(x * 31, z * 31) - 0.5) * np.clip(fine / 90, 0, 1)
    patches = canvas.noise(x * 0.9, z * 0.25) - 0.5
    texture = (1 + 0.30 * grain + 0.13 * patches)[..., None]
    ones = np.ones_like(side)
    canvas.paint(rows, ones, _f32((96, 118, 62)) * texture, "terrain", z)
    slab = 1 - 0.16 * np.maximum(
        stripe(x % 0.8 - 0.4, 0.02), stripe(z % 0.8 - 0.4, 0.02, fine * CAMERA_Y / z)
    ) * np.clip(fine / 60, 0, 1)
    paving = _f32((158, 152, 146)) * texture * slab[..., None]
    canvas.paint(rows, stripe(side, FACADE), paving, "sidewalk", z)
    canvas.paint(rows, stripe(side, CURB + 0.18), _f32((182, 180, 176)), "sidewalk", z)
    worn = 0.06 * (stripe(side - 1.0, 0.3, ones * 2) + stripe(side - 2.5, 0.3, ones * 2))
    asphalt = _f32((92, 93, 97)) * (texture - worn[..., None])
    canvas.paint(rows, stripe(side, CURB), asphalt, "road", z)
    paint = _f32((226, 226, 220)) * texture
    dashes = stripe(z % 8 - 2, 1.5, fine * CAMERA_Y / z)
    clear = 1 - stripe(z - crossing, 3.0)
    canvas.paint(rows, stripe(x, 0.07) * dashes * clear, paint, "road", z)
    canvas.paint(rows, stripe(side - 3.4, 0.05) * clear * 0.8, paint, "road", z)
    zebra = stripe(x % 1.1 - 0.55, 0.28) * stripe(z - crossing, 1.6, fine * CAMERA_Y / z)
    canvas.paint(rows, zebra * stripe(side, CURB - 0.3), paint, "road", z)
    # Buildings on the side away from the sun throw their shadow over the pavement and the road.
    depth = z[:, 0]
    tall = np.zeros_like(depth)
    for lot in lots:
        tall[(depth >= lot.near) & (depth < lot.far)] = lot.height
    reach = FACADE - 0.55 * tall[:, None]
    lit = np.clip((-x * sunny - reach) * 1.5 + 0.5, 0, 1)
    canvas.rgb[rows] *= (1 - (1 - mood.shade) * lit)[..., None]


def _plan_side(rng: np.random.Generator) -> list[_Lot]:
    """The lots of one street side from near to far."""
    lots, near = [], 1.0
    while near < STREET_END:
        kind = rng.choice(["building", "wall", "fence", "garden"], p=[0.72, 0.07, 0.1, 0.11])
        length = rng.uniform(11, 24) if kind == "building" else rng.uniform(6, 12)
        height = {"building": rng.uniform(8, 19), "wall": 2.4, "fence": 1.6, "garden": 0.0}[kind]
        color = _shaded(WALL_COLORS[rng.integers(len(WALL_COLORS))], rng.uniform(0.85, 1.1))
        pitch, storey = rng.uniform(2.2, 3.4), rng.uniform(3.0, 3.6)
        lots.append(_Lot(str(kind), near, near + length, height, color, pitch, storey))
        near += length
    return lots


def _paint_lot(canvas: _Canvas, lot: _Lot, side: int, bright: float) -> None:
    """The facade along the street, and before it the gable that faces the camera."""
    if lot.kind == "garden":
        return
    offset = side * FACADE - CAMERA_X
    edges = sorted(
        offset / z * FOCAL * canvas.height + canvas.width / 2 for z in (lot.far, lot.near)
    )
    first = min(max(round(edges[0]), 0), canvas.width)
    columns = slice(first, min(max(round(edges[1]), first), canvas.width))
    if columns.stop > columns.start:
        z = offset / canvas.right[:, columns]
        top = (HORIZON - (lot.height - CAMERA_Y) / lot.near * FOCAL) * canvas.height
        bottom = (HORIZON + CAMERA_Y / lot.near * FOCAL) * canvas.height
        rows = slice(max(int(top), 0), min(int(bottom) + 2, canvas.height))
        y = CAMERA_Y - canvas.down[rows] * z
        fine = FOCAL * canvas.height / z
        inside = np.minimum(lot.height - y, y) * fine
        tint, holes = _facade(canvas, lot, z - lot.near, y, fine)
        coverage = np.clip(0.5 + inside, 0, 1) * holes
        canvas.paint((rows, columns), coverage, tint * bright, lot.kind, z)
    if lot.kind == "building":
        x = side * (FACADE + 5)
        canvas.box(x, 0, lot.near, (10, lot.height), _shaded(lot.color, 0.72), "building")


def _facade(
    canvas: _Canvas, lot: _Lot, s: Floats, y: Floats, fine: Floats
) -> tuple[Floats, Floats]:
    """Colour (..., 3) and coverage of a facade at `s` metres along it and `y` metres up."""
    grain = 1 + 0.12 * (canvas.noise(s * 1.5 + lot.near, y * 1.5) - 0.5)
    tint = _f32(lot.color) * (grain * (0.88 + 0.012 * y))[..., None]
    if lot.kind == "fence":
        bars = np.clip(0.5 - (np.abs(s % 0.28 - 0.14) - 0.05) * fine, 0, 1)
        rails = np.clip(0.5 - (np.abs(y - 0.8) % 0.7 - 0.06) * fine, 0, 1)
        # Bars closer than a pixel are seen as a solid mesh.
        mesh = np.maximum(np.maximum(bars, rails), 1.0 * (fine < 14))
        return np.broadcast_to(_f32((104, 92, 84)), tint.shape), mesh
    if lot.kind == "wall":
        joints = np.clip(0.5 - (np.abs(y % 0.4 - 0.2) - 0.02) * fine, 0, 1)
        return tint * (1 - 0.2 * joints)[..., None], np.ones_like(grain)
    column, storey = s / lot.pitch, y / lot.storey
    ground = storey < 1
    wide, low, high = np.where(ground, 0.40, 0.24), np.where(ground, 0.05, 0.28), 0.80
    off_side = (np.abs(column % 1 - 0.5) - wide) * lot.pitch
    off_level = np.maximum(low - storey % 1, storey % 1 - high) * lot.storey
    outside = np.maximum(off_side, off_level)
    outside = np.maximum(outside, y - lot.height + 0.9)  # none cut off by the roof
    pane = np.clip(0.5 - outside * fine, 0, 1)
    frame = np.clip(0.5 - (outside - 0.12) * fine, 0, 1)
    # Each window has its own reflection: some are lit, most mirror the sky.
    mirror = canvas.noise(np.floor(column) * 3.7 + lot.near, np.floor(storey) * 5.3)
    glass = _f32((60, 72, 88)) + mirror[..., None] ** 2 * _f32((110, 110, 96))
    glass = glass * (0.8 + 0.3 * (storey % 1))[..., None]
    tint = tint + frame[..., None] * (_f32((226, 222, 214)) * 0.9 - tint)
    tint = tint + pane[..., None] * (glass - tint)
    ledge = np.clip(0.5 - (np.abs(y - lot.height + 0.25) - 0.22) * fine, 0, 1)
    return tint * (1 - 0.22 * ledge)[..., None], np.ones_like(grain)


def _paint_far_end(canvas: _Canvas, rng: np.random.Generator) -> None:
    for z in (STREET_END + 80, STREET_END + 30):
        for x in range(-110, 111, 13):
            size = float(rng.uniform(9, 17)), float(rng.uniform(8, 26))
            canvas.box(x + rng.uniform(-3, 3), 0, z, size, (128, 124, 124), "building")
    for x in range(-44, 45, 5):
        size = float(rng.uniform(7, 10)), float(rng.uniform(6, 11))
        canvas.ellipse(x, 2.5, STREET_END + 4, size, (74, 100, 50), "vegetation", leafy=0.3)


# ---------------------------------------------------------------------------- what stands on it


def _tree(canvas: _Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    tall = rng.uniform(5.0, 7.5)
    green = (rng.uniform(62, 104), rng.uniform(104, 132), rng.uniform(36, 58))
    puffs = rng.uniform((-1.1, -0.9, 1.9), (1.1, 0.9, 3.0), (7, 3))
    canvas.shadow(x, z, (1.6, 1.6))
    canvas.box(x, 0, z, (0.32, tall * 0.7), (84, 64, 48), "vegetation", taper=0.4)
    for dx, dy, size in puffs:
        canvas.ellipse(
            x + dx, tall * 0.78 + dy, z, (size, size * 0.9), green, "vegetation", leafy=0.4
        )


def _street_lamp(canvas: _Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    inward = -np.sign(x)
    canvas.box(x, 0, z, (0.18, 7.0), (82, 86, 90), "pole", taper=0.4)
    canvas.box(x + inward * 0.8, 6.9, z, (1.7, 0.09), (82, 86, 90), "pole")
    canvas.box(x + inward * 1.6, 6.8, z, (0.7, 0.16), (210, 208, 196), "pole", radius=0.05)


def _traffic_light(canvas: _Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    lit = int(rng.integers(3))
    canvas.box(x, 0, z, (0.16, 3.4), (74, 78, 80), "pole")
    canvas.box(x, 2.7, z, (0.42, 1.1), (30, 32, 34), "traffic light", radius=0.06)
    for lamp, color in enumerate([(70, 210, 110), (246, 190, 50), (236, 50, 44)]):
        shown = _shaded(color, 1.0 if lamp == lit else 0.25)
        canvas.ellipse(x, 2.9 + 0.34 * lamp, z, (0.26, 0.26), shown, "traffic light")


def _sign(canvas: _Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    canvas.box(x, 0, z, (0.09, 2.7), (150, 152, 154), "pole")
    if rng.random() < 0.5:
        canvas.ellipse(x, 2.55, z, (0.72, 0.72), (198, 32, 38), "traffic sign")
        canvas.ellipse(x, 2.55, z, (0.52, 0.52), (240, 240, 236), "traffic sign")
    else:
        canvas.box(x, 2.2, z, (0.66, 0.66), (36, 84, 168), "traffic sign", radius=0.06)
        canvas.box(x, 2.34, z, (0.18, 0.38), (236, 238, 240), "traffic sign")


def _person(canvas: _Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    k = rng.uniform(0.92, 1.06)
    stride = rng.uniform(0.06, 0.16)
    picks = rng.integers(len(CLOTHES), size=2)
    top, trousers = CLOTHES[picks[0]], _shaded(CLOTHES[picks[1]], 0.6)
    skin = _shaded((1.0, 0.78, 0.62), rng.uniform(140, 224))
    canvas.shadow(x, z, (0.45, 0.35))
    for leg in (-1, 1):
        canvas.box(x + leg * stride, 0, z, (0.17, 0.9 * k), trousers, "person", radius=0.05)
        canvas.box(x + leg * 0.27, 0.78 * k, z, (0.12, 0.62 * k), top, "person", radius=0.05)
    canvas.box(x, 0.8 * k, z, (0.46, 0.66 * k), top, "person", radius=0.12)
    canvas.ellipse(x, 1.6 * k, z, (0.21, 0.27), skin, "person")
    canvas.ellipse(x, 1.68 * k, z, (0.22, 0.14), (52, 40, 34), "person")


def _cyclist(canvas: _Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    top = CLOTHES[rng.integers(len(CLOTHES))]
    canvas.shadow(x, z, (0.4, 0.8))
    canvas.ellipse(x, 0.36, z, (0.12, 0.72), (30, 30, 32), "bicycle")
    canvas.box(x, 0.3, z, (0.09, 0.62), (176, 52, 44), "bicycle")
    canvas.box(x, 0.98, z, (0.52, 0.05), (60, 60, 64), "bicycle")
    for leg in (-1, 1):
        canvas.box(x + leg * 0.12, 0.42, z, (0.14, 0.6), (44, 48, 60), "rider", radius=0.05)
    canvas.box(x, 0.92, z, (0.42, 0.6), top, "rider", radius=0.14)
    canvas.ellipse(x, 1.64, z, (0.22, 0.26), (212, 168, 136), "rider")
    canvas.ellipse(x, 1.71, z, (0.25, 0.17), (226, 226, 220), "rider")


def _car(canvas: _Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    color = CAR_COLORS[rng.integers(len(CAR_COLORS))]
    wide, tall = rng.uniform(1.7, 1.85), rng.uniform(1.4, 1.6)
    dark, glass = _shaded(color, 0.62), (46, 56, 66)
    lamps = (206, 34, 34) if x > 0 else (250, 246, 226)  # on the left, cars come towards us
    canvas.shadow(x, z + 2.0, (1.15, 2.6))
    # The body is swept back in slices, close enough together to look like one flank.
    sweep = abs(x - CAMERA_X) * (canvas.scale(z) - canvas.scale(z + 4.2))  # pixels
    slices = int(np.clip(sweep / 2, 6, 100))
    for back in np.linspace(4.2, 0, slices):
        deep = z + float(back)
        for wheel in (-1, 1) if min(abs(back - 0.8), abs(back - 3.3)) < 0.36 else ():
            canvas.box(x + wheel * (wide / 2 - 0.1), 0, deep, (0.22, 0.64), (24, 24, 26), "car")
        canvas.box(x, 0.24, deep, (wide, 0.66), dark, "car", radius=0.12)
        if 0.25 < back < 2.9:
            roof = tall - 0.86 - 0.1 * abs(back - 1.4)
            canvas.box(x, 0.86, deep, (wide - 0.1, roof), glass, "car", radius=0.1, taper=0.2)
            canvas.box(x, 0.8 + roof, deep, (wide * 0.78, 0.07), color, "car", radius=0.03)
    canvas.box(x, 0.28, z, (wide, 0.66), color, "car", radius=0.14)
    canvas.box(x, 0.92, z + 0.25, (wide - 0.1, tall - 0.92), color, "car", radius=0.12, taper=0.22)
    canvas.box(x, 0.97, z + 0.25, (wide - 0.34, tall - 1.1), glass, "car", radius=0.08, taper=0.18)
    for lamp in (-1, 1):
        at = x + lamp * (wide / 2 - 0.2)
        canvas.box(at, 0.66, z, (0.30, 0.17), lamps, "car", radius=0.05)
    canvas.box(x, 0.5, z, (0.5, 0.12), (232, 232, 224), "car")
    canvas.box(x, 0.26, z, (wide - 0.16, 0.16), (42, 42, 46), "car", radius=0.04)


Painter = Callable[[_Canvas, np.random.Generator, float, float], None]


def _things(rng: np.random.Generator, crossing: float) -> list[tuple[float, float, Painter]]:
    """Everything that stands on street and pavement, as (z, x, painter)."""
    things: list[tuple[float, float, Painter]] = []
    for side in (-1, 1):
        step = float(rng.uniform(9, 13))
        for index, z in enumerate(np.arange(rng.uniform(9, 15), 125, step)):
            place = float(z + rng.uniform(-1, 1)), side * float(CURB + rng.uniform(0.6, 0.9))
            things.append((*place, _street_lamp if index % 3 == 1 else _tree))
        z = float(rng.uniform(11, 17))
        while z < 110:
            if rng.random() < 0.62 and abs(z + 2 - crossing) > 5:
                things.append((z, side * float(rng.uniform(4.45, 4.6)), _car))
            z += float(rng.uniform(5.6, 7.5))
        for _ in range(int(rng.integers(5, 10))):
            z, x = float(rng.uniform(8, 60)), side * float(rng.uniform(CURB + 1.2, FACADE - 0.7))
            things.append((z, x, _person))
        things.append((crossing - 2.2, side * (CURB + 0.35), _traffic_light))
        things.append((float(rng.uniform(10, 40)), side * (CURB + 0.4), _sign))
    for _ in range(int(rng.integers(1, 4))):
        x = float(rng.uniform(-4.5, 4.5))
        things.append((crossing + float(rng.uniform(-1, 1)), x, _person))
    things.append((float(rng.uniform(14, 40)), 1.8, _car))
    things.append((float(rng.uniform(12, 50)), -1.8, _car))
    things.append((float(rng.uniform(9, 26)), float(rng.choice([-3.0, 3.0])), _cyclist))
    return sorted(things, key=lambda thing: -thing[0])


def render_street(
    height: int = 1024, width: int = 2048, seed: int = 0
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Draw a street scene and its exact label map.

    Args:
        height, width: size in pixels, each at least 16.
        seed: which scene; the same seed gives the same scene at every size.

    Returns:
        The picture, (height, width, 3) uint8 RGB, and its Cityscapes trainIds, (height, width)
        uint8.

    Raises:
        ValueError: a size below 16 or a negative seed.
    """
    if min(height, width) < 16:
        raise ValueError(f"height and width must be at least 16, got {height} and {width}")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    rng = np.random.default_rng([0x57EE7, seed])
    canvas = _Canvas(height, width, _Noise(rng))
    mood = MOODS[rng.integers(len(MOODS))]
    sunny = int(rng.choice([-1, 1]))  # the side whose facades stand in the sun
    crossing = float(rng.uniform(17, 30))
    sides = {side: _plan_side(rng) for side in (-1, 1)}

    _paint_sky(canvas, mood)
    _paint_ground(canvas, mood, crossing, sunny, sides[-sunny])
    _paint_far_end(canvas, rng)
    for side, lots in sides.items():
        for lot in reversed(lots):
            if lot.kind in ("garden", "fence"):
                for z in np.arange(lot.far - 1.5, lot.near, -4.0):
                    _tree(canvas, rng, side * (FACADE + float(rng.uniform(2, 5))), float(z))
            _paint_lot(canvas, lot, side, 1.0 if side == sunny else mood.shade + 0.15)
    for z, x, painter in _things(rng, crossing):
        painter(canvas, rng, x, z)

    clear = np.exp(canvas.depth * np.float32(-1 / mood.visibility))[..., None]
    clear[canvas.labels == LABEL["sky"]] = 1
    hazy = clear * canvas.rgb * _f32(mood.light) + (1 - clear) * _f32(mood.horizon)
    hazy += rng.standard_normal((height, width, 1), np.float32) * 2.5
    return np.clip(hazy, 0, 255).astype(np.uint8), canvas.labels
