"""Shapes as pixels: polygons by the centres of pixels, and COCO's run lengths.

A polygon contains the pixels whose centres it contains. Pillow's and OpenCV's drawing is not used:
both also paint the pixels on the outline, and Pillow truncates coordinates to whole numbers, so
that a square with sides of 10 pixels is drawn with 11.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ring = npt.NDArray[np.float64]
"""Corners of a polygon, (N, 2): x to the right and y down, in pixels; (0, 0) is the picture's
corner, so the first pixel's centre is (0.5, 0.5)."""

MOST_CROSSINGS = 1 << 24
"""Maximum crossings of a polygon's edges with rows of pixels; as many take four seconds."""

AT_ONCE = 1 << 20


class Region(NamedTuple):
    """Pixels of a picture: the first row and column of a rectangle, and a mask of its pixels."""

    top: int
    left: int
    inside: npt.NDArray[np.bool_]


def fill(rings: Sequence[Ring], size: tuple[int, int]) -> Region:
    """The pixels of a picture (height, width) that lie in an odd number of rings.

    Raises:
        ValueError: the edges cross more than `MOST_CROSSINGS` rows.
    """
    begin = np.concatenate(rings)
    end = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    upward = begin[:, 1] > end[:, 1]
    begin[upward], end[upward] = end[upward], begin[upward]
    # Rows whose centres lie in [y of begin, y of end), and columns in the same way.
    first = _first_centre(begin[:, 1], size[0])
    counts = _first_centre(end[:, 1], size[0]) - first
    crossing = counts > 0
    begin, end = begin[crossing], end[crossing]
    first, counts = first[crossing], counts[crossing]
    total = int(counts.sum())
    if total == 0:
        return Region(0, 0, np.zeros((0, 0), np.bool_))
    if total > MOST_CROSSINGS:
        raise ValueError(f"crosses {total:,} rows of pixels, at most {MOST_CROSSINGS:,} are drawn")
    top, height = int(first.min()), int((first + counts).max() - first.min())
    xs = np.concatenate([begin[:, 0], end[:, 0]])
    left, right = (int(_first_centre(x, size[1])) for x in (xs.min(), xs.max()))
    width = right - left + 1  # the last column is for crossings right of all centres
    toggles = np.zeros(height * width, np.bool_)
    bounds = np.searchsorted(counts.cumsum(), np.arange(0, total, AT_ONCE), side="right")
    for low, high in zip(bounds, [*bounds[1:], len(counts)], strict=True):
        part = slice(low, high)
        edge = np.repeat(np.arange(low, high), counts[part])
        ends = counts[part].cumsum()
        row = np.arange(len(edge)) - np.repeat(ends - counts[part], counts[part]) + first[edge]
        run, rise = (end[edge] - begin[edge]).T
        x = begin[edge, 0] + (row + 0.5 - begin[edge, 1]) * (run / rise)
        column = np.clip(_first_centre(x, size[1]), left, right)
        index = (row - top) * width + column - left
        np.logical_xor.at(toggles, index, True)
    return Region(
        top, left, np.logical_xor.accumulate(toggles.reshape(height, width), axis=1)[:, :-1]
    )


def _first_centre(at: npt.NDArray[np.float64], length: int) -> npt.NDArray[np.int64]:
    """The first pixel of a row or column of `length` whose centre is not before a coordinate."""
    return np.clip(np.ceil(at - 0.5), 0, length).astype(np.int64)


def decode_runs(counts: Sequence[int], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Decode COCO's run lengths to a mask (height, width): counts of zeros, ones, zeros, ..., down
    the columns.

    Raises:
        ValueError: a length is negative, or their sum is not the number of pixels.
    """
    pixels = size[0] * size[1]
    negative = next((number for number, run in enumerate(counts) if run < 0), None)
    if negative is not None:
        raise ValueError(f"run length {negative} must be at least 0, got {counts[negative]}")
    total = sum(counts)
    if total != pixels:
        raise ValueError(
            f"the run lengths add up to {total:,} pixels, not to the {pixels:,} of "
            f"{size[0]}x{size[1]} (height x width)"
        )
    values = (np.arange(len(counts)) & 1).astype(np.bool_)
    return np.repeat(values, np.array(counts, np.int64)).reshape(size[1], size[0]).T


def unpack_runs(text: str) -> list[int]:
    """The run lengths of COCO's compressed text.

    Each number is written with 5 bits per character, the low ones first, as characters from "0" on;
    the sixth bit means that another character follows, and the highest bit of the last one is the
    sign. From the fourth number on it is the difference from the number two before.

    Source: rleToString and rleFrString of maskApi.c in cocodataset/cocoapi.

    Raises:
        ValueError: a character is not allowed, a number has no end, or it has more than 64 bits.
    """
    runs: list[int] = []
    value = shift = 0
    for place, character in enumerate(text):
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"the run lengths hold {character!r} at character {place}")
        value |= (bits & 31) << shift
        shift += 5
        if shift > 65:
            raise ValueError(f"a run length at character {place} has more than 64 bits")
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("the run lengths end within a number")
    return runs
