"""One picture made of many: scenes as rows, networks as columns, and a legend below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from fassd.io.palette import LabelClass

INK = (32, 32, 32)
PALE_INK = (96, 96, 96)
PAPER = (255, 255, 255)

Color = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Tile(NamedTuple):
    """A picture, (H, W, 3) uint8 RGB, and the line under it."""

    picture: npt.NDArray[np.uint8]
    caption: str = ""


def draw_panel(
    titles: Sequence[str],
    rows: Sequence[Sequence[Tile]],
    legend: Sequence[LabelClass],
    width: int = 640,
) -> npt.NDArray[np.uint8]:
    """Lay tiles out under their titles, with a legend at the bottom.

    Args:
        titles: titles of the columns.
        rows: one tile for each title; the first tile's shape gives the row its height.
        legend: names and colours.
        width: width of a tile, in pixels; everything else is scaled to it.

    Returns:
        (height, width, 3) uint8 RGB.

    Raises:
        ValueError: there is nothing to draw, a row is not as long as `titles`, or a width is below
            32.
    """
    if not titles or not rows or any(len(row) != len(titles) for row in rows):
        raise ValueError(
            f"a panel needs rows of {len(titles) or 'one or more'} tiles, "
            f"got {[len(row) for row in rows]}"
        )
    if width < 32:
        raise ValueError(f"width must be at least 32 pixels, got {width}")
    gap, margin = max(2, width // 64), width // 16
    total = 2 * margin + len(titles) * width + (len(titles) - 1) * gap
    title_font = ImageFont.load_default(width / 18)
    parts = [_texts(titles, width, gap, width // 12, 0, title_font, INK)]
    parts += [_row(row, width, gap) for row in rows]
    if legend:
        parts.append(_legend(legend, total - 2 * margin, width))
    height = 2 * margin + sum(part.height for part in parts) + gap * (len(parts) - 1)
    panel = Image.new("RGB", (total, height), PAPER)
    top = margin
    for part in parts:
        panel.paste(part, ((total - part.width) // 2, top))
        top += part.height + gap
    return np.array(panel)


def _row(tiles: Sequence[Tile], width: int, gap: int) -> Image.Image:
    rows, columns = tiles[0].picture.shape[:2]
    height = max(1, round(width * rows / columns))
    captions = [tile.caption for tile in tiles]
    caption_height = width // 16 if any(captions) else 0
    place = (height + caption_height, height + width / 100)
    band = _texts(captions, width, gap, *place, ImageFont.load_default(width / 26), PALE_INK)
    for column, tile in enumerate(tiles):
        band.paste(_resized(tile.picture, width, height), (column * (width + gap), 0))
    return band


def _texts(
    texts: Sequence[str], width: int, gap: int, height: int, top: float, font: Font, ink: Color
) -> Image.Image:
    """A strip with one text in the middle of each column, `top` pixels from its upper edge."""
    band = Image.new("RGB", (len(texts) * (width + gap) - gap, height), PAPER)
    draw = ImageDraw.Draw(band)
    for column, text in enumerate(texts):
        middle = column * (width + gap) + width / 2
        draw.text((middle, top), _fitting(text, font, width), ink, font, "ma")
    return band


def _resized(picture: npt.NDArray[np.uint8], width: int, height: int) -> Image.Image:
    """Smaller by averaging, which preserves thin poles; larger with sharp pixels."""
    image = Image.fromarray(picture)
    smaller = image.width > width
    return image.resize(
        (width, height), Image.Resampling.HAMMING if smaller else Image.Resampling.NEAREST
    )


def _legend(classes: Sequence[LabelClass], available: int, width: int) -> Image.Image:
    """Swatches with names, in as few and as equally long lines as fit."""
    font = ImageFont.load_default(width / 24)
    swatch, pad = width // 16, width // 64
    widest = max(font.getlength(info.name) for info in classes)
    cell = min(available, round(swatch + widest) + 4 * pad)
    lines = -(-len(classes) // max(1, available // cell))
    columns = -(-len(classes) // lines)
    line_height = swatch + pad
    band = Image.new("RGB", (columns * cell - 3 * pad, lines * line_height + 2 * pad), PAPER)
    draw = ImageDraw.Draw(band)
    for number, info in enumerate(classes):
        left, top = number % columns * cell, number // columns * line_height + 2 * pad
        corner = (left + swatch - 1, top + swatch - 1)
        # The border makes colours visible that are close to the paper's.
        draw.rectangle(((left, top), corner), info.color, PALE_INK)
        name = _fitting(info.name, font, cell - swatch - pad)
        draw.text((left + swatch + pad, top + swatch / 2), name, INK, font, "lm")
    return band


def _fitting(text: str, font: Font, width: float) -> str:
    """`text`, shortened in its middle where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    keep = len(text)
    while keep > 0:
        keep -= 1
        left = keep // 2
        short = f"{text[: keep - left]}...{text[len(text) - left :]}"
        if font.getlength(short) <= width:
            return short
    return ""
