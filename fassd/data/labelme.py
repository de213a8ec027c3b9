"""Shapes of LabelMe: one JSON file per picture.

Source: the file format of github.com/wkentaro/labelme, versions 3 to 5.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fassd.data.raster import Region
from fassd.data.shapes import MOST_SHAPES, Shape, ShapeError, ShapeList, polygon
from fassd.io.images import ImageError, open_image
from fassd.io.untrusted import problem, read_json_text, shortened, shown

MOST_BYTES = 1 << 27
"""Maximum bytes of a file, which may also contain the picture (imageData)."""

CIRCLE = 128
"""Number of corners of the polygon that replaces a circle."""

WITHOUT_AREA = ("line", "linestrip", "point", "points")

Text = Annotated[str, Field(max_length=1000)]
Size = Annotated[int, Field(ge=1, le=10**6)]


class _Shape(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    label: Text
    points: list[Annotated[list[float], Field(min_length=2, max_length=2)]]
    shape_type: Literal[
        "polygon", "rectangle", "circle", "mask", "line", "linestrip", "point", "points"
    ] = "polygon"
    mask: str | None = None


class _File(BaseModel):
    model_config = ConfigDict(strict=True)

    shapes: list[_Shape]
    imageHeight: Size | None = None  # noqa: N815
    imageWidth: Size | None = None  # noqa: N815


def read(path: Path) -> ShapeList:
    """Read the shapes of a file; polygons, rectangles, circles and masks have an area.

    Raises:
        ShapeError: the file is not of LabelMe, or a shape cannot be drawn.
        OSError: the file cannot be read.
    """
    try:
        text = read_json_text(path, MOST_BYTES)
        if text.count('"points"') > MOST_SHAPES:  # a million would take half a minute to parse
            raise ShapeError(f"has more than {MOST_SHAPES:,} shapes")
        file = _File.model_validate_json(text)
    except ValidationError as error:
        raise ShapeError(f"is not a file of LabelMe: {problem(error)}") from error
    except ShapeError:
        raise
    except ValueError as error:
        raise ShapeError(f"is not a file of LabelMe: {shortened(str(error))}") from error
    shapes, flat = [], []
    for number, shape in enumerate(file.shapes):
        place = f"shapes[{number}]"
        if shape.shape_type in WITHOUT_AREA:
            flat.append(f"{place} ({shown(shape.label)}) is a {shape.shape_type}")
        else:
            shapes.append(_drawn(shape, place))
    remarks = []
    if flat:
        more = f", and so are {len(flat) - 1:,} more" if len(flat) > 1 else ""
        remarks.append(f"{flat[0]}, which has no area{more}: passed over")
    known = file.imageHeight is not None and file.imageWidth is not None
    size = (file.imageHeight or 0, file.imageWidth or 0) if known else None
    return ShapeList(shapes, size, remarks)


def _drawn(shape: _Shape, place: str) -> Shape:
    key, points = shape.label.strip(), shape.points
    if shape.shape_type == "polygon":
        return Shape(place, key, [[polygon(points, place)]])
    if len(points) != 2:
        raise ShapeError(f"{place}: a {shape.shape_type} must have 2 points, has {len(points)}")
    (x, y), (other_x, other_y) = points
    if shape.shape_type == "rectangle":
        corners = [(x, y), (other_x, y), (other_x, other_y), (x, other_y)]
        return Shape(place, key, [[polygon(corners, place)]])
    if shape.shape_type == "circle":
        radius = math.hypot(other_x - x, other_y - y)
        turns = np.arange(CIRCLE) * (2 * math.pi / CIRCLE)
        around = np.array([x, y]) + radius * np.stack([np.cos(turns), np.sin(turns)], 1)
        return Shape(place, key, [[polygon(around, place)]])
    extent = polygon([(x, y), (x, y), (other_x + 1, other_y + 1)], place)
    top, left = round(y), round(x)
    size = round(other_y) - top + 1, round(other_x) - left + 1

    def bitmap() -> Region:
        return Region(top, left, _pixels(shape.mask, place, size))

    return Shape(place, key, bitmap=bitmap, corners=extent)


def _pixels(mask: str | None, place: str, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The one-channel picture in a shape's mask, as booleans; nonzero pixels are the shape's."""
    try:
        content = base64.b64decode(mask or "", validate=True)
        with open_image(io.BytesIO(content)) as image:
            if (image.height, image.width) != size:
                got = f"has {image.height}x{image.width} pixels, its points {size[0]}x{size[1]}"
                raise ImageError(got)
            return np.asarray(image.convert("L")) != 0
    except (binascii.Error, ImageError) as error:
        raise ShapeError(f"{place}: its mask {shortened(str(error))}") from error
    except Exception as error:  # decoders of damaged files raise almost anything
        raise ShapeError(f"{place}: its mask is not a picture") from error
