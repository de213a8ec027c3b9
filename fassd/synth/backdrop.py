"""Sky and ground, the two planes that fill the picture before objects are painted."""

from __future__ import annotations

import itertools

import cv2
import numpy as np

from fassd.synth.arrays import Bytes, Floats
from fassd.synth.canvas import Canvas
from fassd.synth.ground import ACROSS, ALONG, SPAN, UNMARKED, Material
from fassd.synth.street import Street

HORIZON = 170.0  # metres: end of the ground, behind the last houses


def paint_sky(canvas: Canvas, clouds: Bytes) -> None:
    """A gradient with clouds on a plane high above, which perspective flattens."""
    light = canvas.light
    # A sky is smooth: a quarter of the resolution, smoothly enlarged, looks the same.
    v, u = (np.linspace(0, n - 1, max(2, n // 4)) for n in (canvas.height, canvas.width))
    a, b, c = canvas.matrix_inverse
    x, y, z = (
        (row[0] * u[None] + (row[1] * v[:, None] + row[2])).astype(np.float32) for row in (a, b, c)
    )
    flat = y / np.sqrt(x * x + z * z)
    rise = np.clip(flat * 1.6, 0, 1) ** np.float32(0.7)
    lift = 60 / np.maximum(flat, 0.06)
    puff = cv2.remap(clouds, x / z * lift, lift, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    cover = np.clip((puff.astype(np.float32) - 120) * (light.clouds / 60), 0, light.clouds)
    cover = (cover * np.clip(flat * 5, 0, 1))[..., None]
    top, low = np.asarray(light.zenith, np.float32), np.asarray(light.haze, np.float32)
    color = low + (top - low) * rise[..., None]
    color += cover * (np.clip(low * 1.12 + 10, 0, 255) - color)
    small = np.clip(color, 0, 255).astype(np.uint8)
    canvas.pixels[..., :3] = cv2.resize(small, (canvas.width, canvas.height))


def _detail(
    texture: list[Bytes], tile: float, across: Floats, along: Floats, footprint: Floats
) -> Bytes:
    """Texture of one material at ground positions (rows, columns), in metres.

    Each row uses the level of the pyramid whose texels are as large as its pixels (`footprint`,
    metres). Whole texels are looked up, in a tenth of the time of a smooth remap that wraps.
    """
    out = np.empty(across.shape, np.uint8)
    wanted = np.log2(footprint * texture[0].shape[0] / tile).round()
    levels = np.clip(wanted, 0, len(texture) - 1).astype(int)
    bounds = [0, *(np.flatnonzero(np.diff(levels)) + 1).tolist(), len(levels)]
    for start, stop in itertools.pairwise(bounds):
        if start == stop:
            continue
        picture = texture[levels[start]]
        side = picture.shape[0]
        scale = np.float32(side / tile)
        column = (across[start:stop] * scale).astype(np.int32) & (side - 1)
        row = (along[start:stop] * scale).astype(np.int32) & (side - 1)
        row *= side
        row += column
        out[start:stop] = np.take(picture.ravel(), row)
    return out


def paint_ground(canvas: Canvas, street: Street) -> None:
    """Paint every pixel below the horizon by looking it up in the street's plan."""
    plan = street.ground
    edge = np.array([0, canvas.width - 1])[:, None]
    down = canvas.matrix_inverse[1]
    slope = down[0] * edge + down[1] * np.arange(canvas.height) + down[2]
    below = np.flatnonzero((slope < 0).any(0))
    if not len(below):
        return
    rows = slice(int(below[0]), canvas.height)
    s, z, ground = _positions(canvas, street, rows)
    columns = (s + np.float32(SPAN)) * np.float32(1 / ACROSS) - np.float32(0.5)
    depth = z * np.float32(1 / ALONG) - np.float32(0.5)
    last = plan.kinds.shape
    np.clip(columns, 0, last[1] - 1, out=columns)
    np.clip(depth, 0, last[0] - 1, out=depth)
    kinds = cv2.remap(plan.kinds, columns, depth, cv2.INTER_NEAREST)
    soft = cv2.merge([plan.marks, cv2.blur(plan.shadow, (5, 3)), cv2.blur(plan.contact, (13, 7))])
    marks, shadow, contact = cv2.split(cv2.remap(soft, columns, depth, cv2.INTER_LINEAR))

    textures = _textured(canvas, street.materials, kinds, s, z)
    colors = _colored(canvas, street.materials, kinds, textures, marks, z, (shadow, contact))
    labels = np.zeros(256, np.uint8)
    labels[: len(street.materials)] = [material.label for material in street.materials]
    painted = cv2.merge([*colors, cv2.LUT(kinds, labels)])
    cv2.copyTo(painted, ground.view(np.uint8), canvas.pixels[rows])


def _positions(canvas: Canvas, street: Street, rows: slice) -> tuple[Floats, Floats, Bytes]:
    """Positions s and z where the rays of these rows meet the ground, and whether they do."""
    x, y, z = canvas.rays(rows)
    steps = np.float32(canvas.camera.height) / np.maximum(-y, np.float32(1e-5))
    z *= steps
    x *= steps
    ground = (y < 0) & (z < HORIZON)
    np.clip(z, 0, 300, out=z)
    s = np.clip(x, -600, 600, out=x)
    s += np.float32(street.here) - np.float32(street.bend) * z * z
    return s, z, ground


def _textured(
    canvas: Canvas, materials: list[Material], kinds: Bytes, s: Floats, z: Floats
) -> Bytes:
    """The grey texture at each pixel, from the pixel's material."""
    middle = z[:, z.shape[1] // 2]
    # The geometric mean of a pixel's sides on the ground: z / f across and z^2 / (f h) along.
    footprint = middle / canvas.focal * np.sqrt(np.maximum(middle / canvas.camera.height, 1))
    textures = np.zeros(kinds.shape, np.uint8)
    for index, material in enumerate(materials):
        here = cv2.inRange(kinds, index, index)
        left, top, wide, tall = cv2.boundingRect(here)
        if not wide:
            continue
        box = slice(top, top + tall), slice(left, left + wide)
        a, b = (z, s) if material.turned else (s, z)
        detail = _detail(material.texture, material.tile, a[box], b[box], footprint[box[0]])
        cv2.copyTo(detail, here[box], textures[box])
    return textures


def _colored(
    canvas: Canvas, materials: list[Material], kinds: Bytes, textures: Bytes, marks: Bytes,
    z: Floats, shades: tuple[Bytes, Bytes],
) -> list[Bytes]:  # fmt: skip
    """Red, green and blue of the ground: its material, the paint on it, light and haze.

    Shadows, and contact with things, darken it: the two `shades`.
    """
    light, (shadow, contact) = canvas.light, shades
    levels = np.arange(256, dtype=np.float32)
    dark = np.float32(1 - light.ambient / light.full)
    bright: Floats = cv2.LUT(shadow, 1 - levels / 255 * dark)
    bright *= cv2.LUT(contact, 1 - levels / 510)
    paint: Floats = cv2.LUT(marks, np.maximum(levels / UNMARKED - 1, 0))
    paint *= 0.55 + textures * np.float32(0.35 / 128)  # worn where the texture is dark
    keep: Floats = cv2.LUT(marks, np.minimum(levels / UNMARKED, 1))
    keep *= 1 - paint
    paint *= 235
    clear = cv2.exp(z * np.float32(-1 / light.visibility))
    bright = bright * clear
    air = 1 - clear
    entry = kinds.astype(np.int32)  # of a table with 256 greys for each material
    entry *= 256
    entry += textures
    channels = []
    for channel in range(3):
        tones = np.array([material.color[channel] / 128 for material in materials])
        table = np.outer(tones, np.arange(256)).astype(np.float32)
        color = np.take(table.ravel(), entry)
        color *= keep
        color += paint
        color *= bright
        color *= np.float32(light.tint[channel] * light.full)
        color += air * np.float32(light.haze[channel])
        channels.append(np.minimum(color, 255).astype(np.uint8))
    return channels
