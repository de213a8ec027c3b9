"""Shapes of YOLO: one text file per picture, one polygon per line.

    0 0.25 0.5 0.75 0.5 0.5 0.875

is the number of the class, then x and y of each corner in widths and heights of the picture.

Source: the format of segmentation datasets at docs.ultralytics.com/datasets/segment.
"""

from __future__ import annotations

from pathlib import Path

from fassd.data.shapes import MOST_SHAPES, Shape, ShapeError, ShapeList, polygon
from fassd.io.untrusted import read_text, shortened, shown

MOST_BYTES = 1 << 26
MOST_DIGITS = 9
FARTHEST = 2.0
"""Distance in pictures by which a corner may lie outside; farther ones must be in pixels."""


def read(path: Path, size: tuple[int, int]) -> ShapeList:
    """Read the shapes of a file, over a picture of (height, width); a file may have none.

    Raises:
        ShapeError: the file is not of YOLO; the message names the line.
        OSError: the file cannot be read.
    """
    try:
        lines = read_text(path, MOST_BYTES).removeprefix("\ufeff").splitlines()
    except UnicodeDecodeError as error:
        raise ShapeError(f"is not UTF-8 text (byte {error.start})") from error
    except ValueError as error:
        raise ShapeError(str(error)) from error
    if len(lines) > MOST_SHAPES:
        raise ShapeError(f"must have at most {MOST_SHAPES:,} lines, has {len(lines):,}")
    shapes = [
        _shape(line.split(), f"line {number}", size)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    return ShapeList(shapes)


def _shape(words: list[str], place: str, size: tuple[int, int]) -> Shape:
    number, numbers = words[0], words[1:]
    if not (number.isascii() and number.isdigit() and len(number) <= MOST_DIGITS):
        raise ShapeError(f"{place}: must begin with a class's number, got {shown(number)}")
    if len(numbers) == 4:
        raise ShapeError(f"{place}: is a box (x, y, width, height); polygons are needed")
    try:
        values = [float(word) for word in numbers]
    except ValueError as error:
        raise ShapeError(f"{place}: {shortened(str(error), 100)}") from error
    if len(values) % 2:
        raise ShapeError(f"{place}: must have x and y of each corner, has {len(values)} numbers")
    far = next((value for value in values if not abs(value) <= FARTHEST), None)
    if far is not None:
        raise ShapeError(
            f"{place}: coordinates must be fractions of the picture, 0 to 1 or slightly beyond, "
            f"got {far:g}"
        )
    return Shape(place, int(number), [[polygon(values, place, (size[1], size[0]))]])
