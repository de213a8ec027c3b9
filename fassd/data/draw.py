"""Drawing labels: the shapes of LabelMe, COCO and YOLO as pixels of a card's classes.

They are drawn in the order of their file, later ones on top of earlier ones, over a background.
"""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fassd.data import coco, labelme, yolo
from fassd.data.raster import Region, fill
from fassd.data.shapes import Key, Shape, ShapeCode, ShapeError, ShapeList
from fassd.io.images import ImageError
from fassd.io.palette import IGNORE
from fassd.io.untrusted import shortened, shown

MOST_PAINTED = 2000
"""Maximum ratio of the total area of a picture's bounding boxes of shapes to its own area."""

SLACK = 1.0
"""Pixels by which corners may lie outside the picture without a remark, as tools round."""

NAMED = 3


def examine_shapes(
    path: str | os.PathLike[str], code: ShapeCode, picture: Path, size: tuple[int, int]
) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Draw the shapes of a file as labels, (H, W) uint8: class indices and `IGNORE`.

    Remarks report shapes that extend beyond the picture, or have no area.

    Args:
        path: path of the file with the shapes.
        code: meaning of the shapes.
        picture: path of the picture that they are drawn over.
        size: height and width of the picture, upright.

    Raises:
        ImageError: the file cannot be read, is for a picture of another size, or has shapes that
            cannot be drawn or whose class is not in the card; the message names file and shape.
    """
    try:
        found = _read(Path(path), code, picture, size)
        if found.size not in (None, size):
            raise ShapeError(
                "its shapes are of a picture of {}x{} (height x width), but {} is {}x{}".format(
                    *found.size, picture, *size
                )
            )
        labels = np.full(size, code.background, np.uint8)
        _check_classes(found.shapes, code)
        remarks = found.remarks + _beyond(found.shapes, size)
        room = MOST_PAINTED * labels.size
        for shape in found.shapes:
            label = code.labels.get(shape.key, IGNORE)
            for top, left, inside in _regions(shape, size):
                height, width = inside.shape
                room -= inside.size
                if room < 0:
                    raise ShapeError(f"its shapes cover the picture more than {MOST_PAINTED} times")
                labels[top : top + height, left : left + width][inside] = label
    except ShapeError as error:
        raise ImageError(f"{os.fspath(path)}: {shortened(str(error), 600)}") from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ImageError(f"{os.fspath(path)}: cannot be read ({reason})") from error
    except MemoryError as error:
        raise ImageError(f"{os.fspath(path)}: does not fit in memory") from error
    return labels, remarks


def _read(path: Path, code: ShapeCode, picture: Path, size: tuple[int, int]) -> ShapeList:
    if code.kind == "coco":
        return coco.read(path, picture, code.holes)
    return labelme.read(path) if code.kind == "labelme" else yolo.read(path, size)


def _regions(shape: Shape, size: tuple[int, int]) -> Iterator[Region]:
    for part in shape.parts:
        try:
            yield fill(part, size)
        except ValueError as error:
            raise ShapeError(f"{shape.place}: {error}") from error
    if shape.bitmap is not None:
        top, left, inside = shape.bitmap()
        above, before = max(0, -top), max(0, -left)
        inside = inside[above : max(0, size[0] - top), before : max(0, size[1] - left)]
        yield Region(top + above, left + before, inside)


def _check_classes(shapes: Sequence[Shape], code: ShapeCode) -> None:
    """Check that the card knows all classes.

    Raises:
        ShapeError: it does not; the message names each unknown class and its first shape.
    """
    if code.ignore_unlisted:
        return
    unknown = Counter(shape.key for shape in shapes if shape.key not in code.labels)
    if not unknown:
        return
    first = {shape.key: shape.place for shape in reversed(shapes)}
    told = [
        f"{shown(key)} of {first[key]}"
        + (f" and {count - 1:,} more" if count > 1 else "")
        + _meant(key, code.labels)
        for key, count in list(unknown.items())[:NAMED]
    ]
    if len(unknown) > NAMED:
        told.append(f"... ({len(unknown)} in all)")
    what = "the class is" if len(unknown) == 1 else "the classes are"
    known = shortened(", ".join(map(str, code.labels)), 200)
    raise ShapeError(f"{what} not in the card: {'; '.join(told)}; known are {known}")


def _meant(key: Key, known: Iterable[Key]) -> str:
    names = [name for name in known if isinstance(name, str)]
    near = difflib.get_close_matches(str(key)[:100], names, n=1, cutoff=0.8)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _beyond(shapes: Sequence[Shape], size: tuple[int, int]) -> list[str]:
    """A remark on shapes that extend beyond the picture."""
    told: list[str] = []
    count = 0
    for shape in shapes:
        low, high = shape.extent
        if (low < -SLACK).any() or (high > np.array(size[::-1]) + SLACK).any():
            count += 1
            if len(told) < NAMED:
                spans = "x {0:.6g} to {2:.6g}, y {1:.6g} to {3:.6g}".format(*low, *high)
                told.append(f"{shape.place} ({shown(shape.key)}, {spans})")
    if not count:
        return []
    more = f" and {count - len(told):,} more" if count > len(told) else ""
    leave = "leaves" if count == 1 else "leave"
    return [f"{', '.join(told)}{more} {leave} the picture of {size[0]}x{size[1]} (height x width)"]
