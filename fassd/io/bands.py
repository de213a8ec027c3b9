"""Pictures with any number of bands, for networks that do not take three colours.

Nothing is converted but values to levels (`fassd.io.levels`): bands keep their order, and there is
no transparency. TIFFs of more than one band are read by tifffile, arrays of NumPy (.npy) by it, all
others by Pillow.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from fassd.io.images import (
    MAX_PIXELS,
    PASSED_OVER,
    Content,
    ImageError,
    Reading,
    TooManyPixelsError,
    checked_values,
    examine_image,
    levels_of,
    open_image,
    pages_passed_over,
    prefix_of,
    unreadable_because,
    warned,
)
from fassd.io.levels import Range, as_range, has_high_bytes, stored
from fassd.io.packages import need

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
NPY = (b"\x93NUM",)
PLAIN = ("L", "LA", "RGB", "RGBA", "CMYK")
"""Pillow's modes whose channels are bands without conversion."""

AXES = {"YX": (), "YXS": (), "SYX": (0, -1)}
"""Orders of a page's axes, and the axis to move to get (H, W, bands)."""


def read_picture(
    path: str | os.PathLike[str] | Content,
    bands: int | None = None,
    range: Range = None,
    max_pixels: int | None = None,
) -> npt.NDArray[np.uint8]:
    """Read a picture with `bands` bands, (H, W, bands) uint8, or by `read_image` in three colours.

    The bands are the channels of a picture, the pages of a TIFF of one band each, or the last axis
    of an array (H, W, bands) in a .npy file. Warns (`ImageWarning`) as `fassd.io.images.read_image`
    does.

    Args:
        path: path of the file, or its content.
        bands: required number of bands; None for three colours.
        range: values that become 0 and 255, the same for all bands, as in `read_image`.
        max_pixels: maximum of height times width.

    Raises:
        ImageError: as in `read_image`; or the number of bands differs, or their sizes do.
        ImportError: a TIFF of several bands needs tifffile, which is missing.
    """
    return warned(examine_picture(path, bands, range, max_pixels), prefix_of(path))


def examine_picture(
    path: str | os.PathLike[str] | Content,
    bands: int | None = None,
    range: Range = None,
    max_pixels: int | None = None,
) -> Reading:
    """Like `read_picture`, but returns its warnings, too."""
    if bands is None:
        return examine_image(path, range, max_pixels)
    range = as_range(range)
    try:
        source = io.BytesIO(path) if isinstance(path, Content) else Path(path)
        if bands > 1 and _begins_with(source, TIFF):
            values, highest, remarks = _tiff(source, bands, max_pixels or MAX_PIXELS)
        elif _begins_with(source, NPY):
            values, highest, remarks = _npy(source, range, max_pixels or MAX_PIXELS), 65535, []
        else:
            values, highest, remarks = _by_pillow(source, max_pixels)
        if values.shape[2] != bands:
            raise ImageError(_other(values.shape[2], bands))
        levels, used, more = levels_of(values, highest, range)
    except ImportError:
        raise
    except Exception as error:  # decoders raise almost anything for damaged files
        raise ImageError(f"{prefix_of(path)}{unreadable_because(path, error)}") from error
    return Reading(np.ascontiguousarray(levels), used, (*more, *remarks))


def array_to_bands(
    array: npt.NDArray[Any], count: int, range: Range = None
) -> npt.NDArray[np.uint8]:
    """Convert an array with `count` bands to uint8, (H, W, count).

    Args:
        array: (H, W, count), or (H, W) for one band; dtypes as in `fassd.io.images.array_to_rgb`.
        count: required number of bands.
        range: values that become 0 and 255, as in `read_picture`.

    Raises:
        ImageError: the shape or dtype is another, there are no pixels, or values are out of range.
        ValueError: `range` is invalid.
    """
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] != count or array.size == 0:
        raise ImageError(f"an array must be (H, W, {count}), got {array.shape}")
    range = as_range(range)
    levels, used, remarks = levels_of(checked_values(array, range), 65535, range)
    return warned(Reading(np.ascontiguousarray(levels), used, remarks))


def shown(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Bands made visible, (H, W, 3): the first three as colours, or the first as grey."""
    count = picture.shape[2]
    return picture[..., :3] if count >= 3 else np.repeat(picture[..., :1], 3, axis=2)


def _begins_with(source: Path | io.BytesIO, marks: tuple[bytes, ...]) -> bool:
    if isinstance(source, io.BytesIO):
        return source.getvalue()[:4] in marks
    if not source.is_file():
        return False
    with source.open("rb") as file:
        return file.read(4) in marks


def _by_pillow(
    source: Path | io.BytesIO, max_pixels: int | None
) -> tuple[npt.NDArray[Any], int, list[str]]:
    """Values, (H, W, bands), the largest value that the file can hold, and remarks."""
    with open_image(source, max_pixels) as image:
        remarks = pages_passed_over(image)
        if has_high_bytes(image) or image.mode in ("I", "F") or image.mode.startswith("I;16"):
            try:
                return *stored(image), remarks
            except NotImplementedError as error:
                raise ImageError(str(error)) from error
        image.load()
        upright: Image.Image = ImageOps.exif_transpose(image)
        if upright.mode not in PLAIN:
            upright = upright.convert("L" if upright.mode == "1" else "RGB")
        values = np.asarray(upright)
        return values.reshape(*values.shape[:2], -1), 255, remarks


def _tiff(
    source: Path | io.BytesIO, count: int, max_pixels: int
) -> tuple[npt.NDArray[Any], int, list[str]]:
    """The same for a TIFF: its first page, or as many pages as there must be bands.

    No further pages are searched for, and nothing is decoded before its size is known.
    """
    tifffile = need("tifffile", "pictures of several bands in a TIFF need", "tiff")
    with tifffile.TiffFile(source) as tiff:
        first = _page(tiff, 0, max_pixels)
        if first is None:
            raise ImageError("is a TIFF without a page, or damaged")
        if first.samplesperpixel != 1:
            if first.samplesperpixel != count:
                raise ImageError(_other(first.samplesperpixel, count))
            alone = True
            with contextlib.suppress(Exception):  # damage after the first page does not matter
                alone = bool(tiff.pages[1].is_reduced)  # a smaller copy of the first
            remarks = [] if alone else [PASSED_OVER]
            return *_values([first]), remarks
        pages, index = [first], 1
        while len(pages) <= count and (page := _page(tiff, index, max_pixels)) is not None:
            index += 1
            if not page.is_reduced:  # a smaller copy of another page
                pages.append(page)
        if len(pages) != count:
            more = " or more" if len(pages) > count else ""
            raise ImageError(_other(f"{len(pages)}{more}", count))
        for index, page in enumerate(pages):
            for what in ("shape", "dtype"):
                own, others = getattr(first, what), getattr(page, what)
                if own != others:
                    raise ImageError(f"its band {index} has {what} {others}, band 0 {own}")
        return *_values(pages), []


def _npy(source: Path | io.BytesIO, range: Range, max_pixels: int) -> npt.NDArray[Any]:
    """Values, (H, W, bands), of a file of NumPy's; none of its objects are made."""
    with source.open("rb") if isinstance(source, Path) else source as file:
        version = np.lib.format.read_magic(file)
        if version > (2, 0):
            raise ImageError(f"is of version {version[0]} of NumPy's format; 1 and 2 are read")
        header = "read_array_header_1_0" if version == (1, 0) else "read_array_header_2_0"
        shape, by_columns, kind = getattr(np.lib.format, header)(file)
        if len(shape) not in (2, 3) or min(shape) < 1:
            raise ImageError(f"holds an array of shape {shape}; (H, W, bands) is read")
        if kind.kind not in "buif":
            raise ImageError(f"holds values of {kind!s:.80}, not numbers")
        _check_pixels(shape[0], shape[1], max_pixels)
        count = math.prod(shape)
        content = file.read(count * kind.itemsize)
    if len(content) < count * kind.itemsize:
        raise ImageError(f"is truncated: {len(content):,} of {count * kind.itemsize:,} bytes")
    values = np.frombuffer(content, kind).reshape(shape, order="F" if by_columns else "C")
    values = values[..., None] if values.ndim == 2 else values
    return checked_values(values.astype(kind.newbyteorder("="), copy=False), range)


def _check_pixels(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise TooManyPixelsError(
            f"has {height}x{width} pixels; more than {max_pixels / 1e6:.4g} million are refused "
            "(--max-pixels of fassd predict, max_pixels in Python)"
        )


def _page(tiff: Any, index: int, max_pixels: int) -> Any:
    """A page that can be decoded within limits; None after the last one."""
    try:
        page = tiff.pages[index]
    except IndexError:
        return None
    _check_pixels(page.imagelength, page.imagewidth, max_pixels)
    if page.axes not in AXES or page.dtype is None:
        raise ImageError(f"has a page of axes {page.axes} and type {page.dtype}, not one picture")
    if page.is_tiled and page.tilelength * page.tilewidth > max(max_pixels, 1 << 20):
        raise ImageError(f"has tiles of {page.tilelength}x{page.tilewidth} pixels")
    return page


def _values(pages: list[Any]) -> tuple[npt.NDArray[Any], int]:
    """Values of a page with several bands, or of pages with one, and the largest possible value."""
    move = AXES[pages[0].axes]
    arrays = [page.asarray() for page in pages]
    values = np.moveaxis(arrays[0], *move) if move else arrays[0]
    if len(pages) > 1:
        values = np.stack(arrays, 2)
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind not in "uif":
        raise ImageError(f"has values of {values.dtype}, not of numbers")
    return values, (1 << pages[0].bitspersample) - 1 if values.dtype == np.uint16 else 65535


def _other(found: object, count: int) -> str:
    return f"has {found} bands; the network takes {count}"
