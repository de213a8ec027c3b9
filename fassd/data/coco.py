"""Shapes of COCO: one JSON file for many pictures, with polygons and run lengths.

Source: "Data format" at cocodataset.org.
"""

from __future__ import annotations

import functools
import os
import threading
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fassd.data.raster import Region, decode_runs, unpack_runs
from fassd.data.shapes import MOST_SHAPES, Shape, ShapeError, ShapeList, polygon
from fassd.io.untrusted import problem, read_json, read_json_text, shortened, shown

MOST_BYTES = 1 << 29
"""Maximum bytes of a file; COCO's own for 118,000 pictures has 470 million."""

FILES_KEPT = 8

Size = Annotated[int, Field(ge=1, le=10**6)]
Text = Annotated[str, Field(max_length=4096)]
Identity = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]


class _Image(BaseModel):
    model_config = ConfigDict(strict=True)

    id: Identity
    file_name: Text
    height: Size
    width: Size


class _Category(BaseModel):
    model_config = ConfigDict(strict=True)

    id: Identity
    name: Text


class _Runs(BaseModel):
    """Run lengths, plain or packed, of a mask of size (height, width)."""

    model_config = ConfigDict(strict=True)

    size: Annotated[list[Size], Field(min_length=2, max_length=2)]
    counts: list[Identity] | str


class _Annotation(BaseModel):
    """Shapes, which are checked when they are drawn: a file may have a million of them."""

    model_config = ConfigDict(strict=True)

    image_id: Identity
    category_id: Any = None
    segmentation: Any = None


class _Content(BaseModel):
    model_config = ConfigDict(strict=True)

    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Annotation]


class NotListedError(ShapeError):
    """A file does not list a picture."""


@dataclass(frozen=True)
class _File:
    """Contents of a file.

    Attributes:
        by_path: pictures by file_name; and by its last part, None if several pictures share that.
        names: names of the categories, by id.
        annotations: annotations by the picture's id, in the file's order, each with its number
            there.
    """

    by_path: dict[str, _Image]
    by_name: dict[str, _Image | None]
    names: dict[int, str]
    annotations: dict[int, list[tuple[int, _Annotation]]]


def read(path: Path, picture: Path, holes: bool = False) -> ShapeList:
    """Read the shapes of one picture.

    Args:
        path: path of the file.
        picture: path of the picture, found by the part of it that file_name has, or by its name.
        holes: True makes a polygon inside another one of the same annotation a hole; otherwise, as
            in COCO, all polygons belong to the shape.

    Raises:
        ShapeError: the file is not of COCO, does not list the picture, or has an annotation that
            cannot be drawn.
        OSError: the file cannot be read.
    """
    file = _opened(path)
    image = _find(file, picture)
    mine = file.annotations.get(image.id, [])
    if len(mine) > MOST_SHAPES:
        raise ShapeError(f"{shown(image.file_name)} has more than {MOST_SHAPES:,} annotations")
    size = image.height, image.width
    shapes = [_shape(file, number, values, size, holes) for number, values in mine]
    return ShapeList(shapes, size)


def lists(path: Path, picture: Path) -> bool:
    """True if a file lists a picture; errors as in `read`."""
    try:
        _find(_opened(path), picture)
    except NotListedError:
        return False
    return True


def names_in(path: Path) -> set[str]:
    """Names of a file's categories that annotations have; errors as in `read`."""
    file = _opened(path)
    used = [each.category_id for of in file.annotations.values() for _, each in of]
    return {file.names[number] for number in used if type(number) is int and number in file.names}


def _find(file: _File, picture: Path) -> _Image:
    parts = picture.parts
    for start in range(len(parts)):
        found = file.by_path.get("/".join(parts[start:]))
        if found is not None:
            return found
    name = picture.name
    if name in file.by_name:
        image = file.by_name[name]
        if image is None:
            raise ShapeError(f"lists several pictures {name!r}, in other folders than {picture}")
        if not _is_another(image.file_name, picture):
            return image
    such = next(iter(file.by_path), None)
    listed = f"{len(file.by_path):,} others, such as {shown(such)}" if such else "none"
    raise NotListedError(f"does not list the picture {picture} (file_name of images), but {listed}")


def _is_another(file_name: str, picture: Path) -> bool:
    """True if a listed path leads, from a folder above a picture, to a different file."""
    listed = file_name.replace("\\", "/")
    for folder in picture.absolute().parents:
        if os.path.isfile(folder / listed):
            return not os.path.samefile(folder / listed, picture)
    return False


_LOCK = threading.Lock()


def _opened(path: Path) -> _File:
    """A file, which is read once as long as it does not change."""
    state = path.stat()
    with _LOCK:  # other threads wait until the first has read it
        found = _parsed(path.absolute(), state.st_mtime_ns, state.st_size)
    if isinstance(found, str):
        raise ShapeError(found)
    return found


@functools.lru_cache(FILES_KEPT)
def _parsed(path: Path, changed: int, length: int) -> _File | str:
    """Contents of a file, or its error, which is needed again for every picture."""
    try:
        return _read_file(path)
    except ShapeError as error:
        return str(error)


def _read_file(path: Path) -> _File:
    try:
        content = _Content.model_validate(read_json(read_json_text(path, MOST_BYTES)))
    except ValidationError as error:
        raise ShapeError(f"is not a file of COCO: {problem(error)}") from error
    except ValueError as error:
        raise ShapeError(f"is not a file of COCO: {shortened(str(error))}") from error
    images, categories = content.images, content.categories
    identities = _unique("images", "id", (image.id for image in images))
    names = dict(
        zip(
            _unique("categories", "id", (category.id for category in categories)),
            (category.name.strip() for category in categories),
            strict=True,
        )
    )
    paths = [image.file_name.replace("\\", "/").removeprefix("./") for image in images]
    by_path = dict(zip(_unique("images", "file_name", paths), images, strict=True))
    by_name: dict[str, _Image | None] = {}
    for file_name, image in by_path.items():
        name = file_name.rpartition("/")[2]
        by_name[name] = None if name in by_name else image
    known = set(identities)
    found: defaultdict[int, list[tuple[int, _Annotation]]] = defaultdict(list)
    for number, each in enumerate(content.annotations):
        if each.image_id not in known:
            raise ShapeError(
                f"annotations[{number}]: image_id must be the id of a picture, got {each.image_id}"
            )
        found[each.image_id].append((number, each))
    return _File(by_path, by_name, names, dict(found))


def _unique(what: str, key: str, values: Iterable[Any]) -> list[Any]:
    places: dict[Any, int] = {}
    for number, value in enumerate(values):
        before = places.setdefault(value, number)
        if before != number:
            raise ShapeError(f"{what}[{number}] has the {key} {shown(value)} of {what}[{before}]")
    return list(places)


def _shape(
    file: _File, number: int, values: _Annotation, size: tuple[int, int], holes: bool
) -> Shape:
    place = f"annotations[{number}]"
    category, drawn = values.category_id, values.segmentation
    if type(category) is not int or category not in file.names:
        raise ShapeError(f"{place}: category_id {shown(category)} is not among the categories")
    name = file.names[category]
    if isinstance(drawn, dict):
        corners = np.array([[0, 0], size[::-1]], np.float64)
        return Shape(place, name, bitmap=lambda: _region(drawn, place, size), corners=corners)
    if not isinstance(drawn, list) or not drawn:
        raise ShapeError(
            f"{place}: segmentation must be a list of polygons or run lengths, got {shown(drawn)}"
        )
    rings = [polygon(ring, f"{place}.segmentation[{i}]") for i, ring in enumerate(drawn)]
    return Shape(place, name, [rings] if holes else [[ring] for ring in rings])


def _region(values: dict[str, Any], place: str, size: tuple[int, int]) -> Region:
    try:
        runs = _Runs.model_validate(values)
    except ValidationError as error:
        raise ShapeError(f"{place}.segmentation: {problem(error)}") from error
    if tuple(runs.size) != size:
        raise ShapeError(
            f"{place}.segmentation: has the size {runs.size}, but its picture {list(size)}"
        )
    try:
        counts = unpack_runs(runs.counts) if isinstance(runs.counts, str) else runs.counts
        return Region(0, 0, decode_runs(counts, size))
    except ValueError as error:
        raise ShapeError(f"{place}.segmentation: {error}") from error
