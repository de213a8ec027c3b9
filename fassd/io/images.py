"""Reading pictures of any kind as 8-bit RGB, and writing them completely or not at all.

Every reader here returns uint8 RGB of shape (H, W, 3), upright:

* grey, palette, CMYK, YCbCr and the like are converted;
* transparency is composited over `BACKGROUND`, the colour that normalisation turns into zeros, so
  that colours hidden under a transparent pixel never reach the network;
* with more than 8 bits, the values of a range become 0 .. 255 (`fassd.io.levels`): by default
  everything that the file can hold, which for 16 bits keeps the high byte (0xFFFF -> 255);
* EXIF orientation is applied; only the first picture of an animation or many-page file is read;
* colour profiles are not applied.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from fassd.io.files import SUFFIXES, replacing
from fassd.io.levels import Range, as_range, empty_bits, has_high_bytes, stored, to_levels
from fassd.models.preprocess import MEAN_COLOR

BACKGROUND = MEAN_COLOR
"""RGB colour behind transparent pixels: the mean of ImageNet, (124, 116, 104)."""

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""Formats of `SUFFIXES`, by Pillow's names. No other is tried, whatever a file is called: some run
programs (EPS)."""

MAX_PIXELS = 100_000_000
"""Height times width up to which `fassd predict` and `Segmenter` read a picture."""

NEW_SUBFILE_TYPE = 254  # TIFF's tag
PASSED_OVER = "only the first of several pages or frames is read"


class ImageError(ValueError):
    """A picture cannot be read; the message names it and says why."""


class TooManyPixelsError(ImageError):
    """A picture is larger than the limit, according to its header."""


class ImageWarning(UserWarning):
    """A picture was read, but perhaps not as intended."""


class Reading(NamedTuple):
    """A picture as it was read.

    pixels: uint8 RGB, (H, W, 3), upright.
    range: values that became 0 and 255; None for a picture of at most 8 bits.
    remarks: messages for the user: values that fill little of the range, pages skipped.
    """

    pixels: npt.NDArray[np.uint8]
    range: tuple[float, float] | None = None
    remarks: tuple[str, ...] = ()


# ---------------------------------------------------------------------------------------- reading


Content = bytes | bytearray | memoryview
"""A picture file's content."""


def read_image(
    path: str | os.PathLike[str] | Content, range: Range = None, max_pixels: int | None = None
) -> npt.NDArray[np.uint8]:
    """Read a picture file as uint8 RGB, (H, W, 3), upright.

    Warns (`ImageWarning`) if pages or frames after the first are left out, or if values of more
    than 8 bits fill so little of the range that the picture is nearly black.

    Args:
        path: path of the file, or its content, in one of `FORMATS`.
        range: values that become 0 and 255 in pictures of more than 8 bits: (low, high), as the
            file stores them; "auto" for the picture's own lowest and highest; None for all that the
            file can hold (0 to 65535 for 16 bits, 0 to 1 for floats).
        max_pixels: maximum of height times width; None for Pillow's limit (`open_image`).

    Raises:
        ImageError: the file is missing, not regular, empty, not a picture, truncated, damaged, or
            has too many pixels; or it has 32 bits and values outside 0 to 65535 (integers) or 0 to
            1 (floats), and no range is given.
        ValueError: `range` is invalid.
    """
    reading = examine_image(path, range, max_pixels)
    return warned(reading, prefix_of(path))


def prefix_of(path: str | os.PathLike[str] | Content) -> str:
    """Prefix of errors about a picture: its file, if it has one."""
    return "" if isinstance(path, Content) else f"{os.fspath(path)}: "


def examine_image(
    path: str | os.PathLike[str] | Content, range: Range = None, max_pixels: int | None = None
) -> Reading:
    """Like `read_image`, but returns its warnings, too."""
    range = as_range(range)
    try:
        source = io.BytesIO(path) if isinstance(path, Content) else path
        with open_image(source, max_pixels) as image:
            passed_over = pages_passed_over(image)
            reading = _read(image, range)
    except Exception as error:  # decoders raise almost anything for damaged files
        raise ImageError(f"{prefix_of(path)}{unreadable_because(path, error)}") from error
    return reading._replace(remarks=(*reading.remarks, *passed_over))


@contextlib.contextmanager
def open_image(
    source: str | os.PathLike[str] | IO[bytes], max_pixels: int | None = None
) -> Iterator[Image.Image]:
    """A picture of `FORMATS`, opened with Pillow and not decoded yet.

    Args:
        source: path of a file, or its content.
        max_pixels: maximum of height times width, read from the header. Pillow's own limit holds,
            too: `2 * PIL.Image.MAX_IMAGE_PIXELS`, which is 179 million unless a program changes it.

    Raises:
        ImageError: it is a pipe, socket or device, or has too many pixels (`TooManyPixelsError`).
        OSError: it cannot be read, or (`PIL.UnidentifiedImageError`) is not such a picture.
    """
    if isinstance(source, (str, os.PathLike)):
        kind = os.stat(source).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):  # reading a pipe may block for ever
            raise ImageError("is neither a file nor a folder, but a pipe, socket or device")
    most = 2 * Image.MAX_IMAGE_PIXELS if Image.MAX_IMAGE_PIXELS else None
    most = min(filter(None, (most, max_pixels)), default=None)
    # Pillow warns from half its limit on; up to the limit the picture is read without a warning.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(source, formats=formats()) as image:
                if most is not None and image.width * image.height > most:
                    raise _too_many(f"{image.height}x{image.width}", most)
                yield image
        except Image.DecompressionBombError as error:
            pixels = re.search(r"\d+", str(error))
            raise _too_many(f"{int(pixels[0]):,}" if pixels else "too many", most) from error


def _too_many(pixels: str, most: int | None) -> TooManyPixelsError:
    return TooManyPixelsError(
        f"has {pixels} pixels; more than {(most or 0) / 1e6:.4g} million pixels are refused as a "
        "possible decompression bomb (--max-pixels of fassd predict, max_pixels in Python)"
    )


def formats() -> tuple[str, ...]:
    """The `FORMATS` that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def unreadable_because(path: str | os.PathLike[str] | Content, error: Exception) -> str:
    """Message for an error that occurred while a picture was read."""
    if isinstance(error, ImageError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError) or (
        not isinstance(path, Content) and os.path.isdir(path)
    ):
        return "is a folder, not a picture"
    if isinstance(error, PermissionError):
        return "may not be read (permission denied)"
    if isinstance(error, Image.UnidentifiedImageError):
        if not (len(path) if isinstance(path, Content) else os.path.getsize(path)):
            return "is empty"
        return f"is not a picture in a format that is read here ({', '.join(formats())})"
    if isinstance(error, MemoryError):
        return "does not fit in memory"
    return f"is damaged or truncated ({str(error) or type(error).__name__})"


def pages_passed_over(image: Any) -> list[str]:
    """A remark on pages or frames after the first, if there are any."""
    several = False
    # Damage after the first does not matter.
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if image.format == "TIFF":
            image.seek(1)
            several = not image.tag_v2.get(NEW_SUBFILE_TYPE, 0) & 1  # no smaller copy of the first
        elif image.format != "MPO":  # the others in a camera's JPEG are previews of the first
            several = getattr(image, "is_animated", False)
    image.seek(0)
    return [PASSED_OVER] if several else []


# ------------------------------------------------------------------------------------- converting


def pil_to_rgb(image: Image.Image, range: Range = None) -> npt.NDArray[np.uint8]:
    """Convert a Pillow image of any mode to uint8 RGB, (H, W, 3), with its EXIF rotation applied.

    Warns (`ImageWarning`) like `read_image`, but not about further frames.

    Args:
        image: Pillow image of any mode; in 16-bit colour `range` needs a file not decoded yet.
        range: values that become 0 and 255, as in `read_image`.

    Raises:
        ImageError: a 32-bit picture without a range has values outside 16 bits (mode I) or 0 .. 1
            (mode F); or Pillow would run a program to decode the file.
        OSError: the file behind the image is truncated or damaged.
        ValueError: `range` is invalid.
    """
    return warned(_read(image, as_range(range)))


def array_to_rgb(
    array: npt.NDArray[Any], range: Range = None, highest: int = 65535
) -> npt.NDArray[np.uint8]:
    """Convert an array to uint8 RGB, (H, W, 3).

    Warns (`ImageWarning`) like `read_image`.

    Args:
        array: (H, W) or (H, W, 1) grey, (H, W, 3) RGB or (H, W, 4) RGBA; bool, uint8, uint16,
            floating point, or with a range any other integer.
        range: values that become 0 and 255, as in `read_image`; alpha always has the full range.
        highest: the largest value that integers of more than 8 bits may have.

    Raises:
        ImageError: the shape or dtype is another, there are no pixels, or floats are NaN or,
            without a range, not in 0..1.
        ValueError: `range` is invalid.
    """
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or array.size == 0:
        raise ImageError(
            f"an array must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {array.shape}"
        )
    range = as_range(range)
    return warned(_levelled(checked_values(array, range), highest, range))


def checked_values(array: npt.NDArray[Any], range: Range) -> npt.NDArray[Any]:
    """Check that an array's dtype can be converted to levels; booleans become 0 and 255.

    Raises:
        ImageError: the dtype is another.
    """
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    floats = np.issubdtype(array.dtype, np.floating)
    whole = np.issubdtype(array.dtype, np.integer) and range is not None
    if not (floats or whole or array.dtype in (np.uint8, np.uint16)):
        raise ImageError(
            "an array must be bool, uint8, uint16 or floating, or with a range of any integers, "
            f"got {array.dtype}"
        )
    return array


def warned(reading: Reading, name: str = "") -> npt.NDArray[np.uint8]:
    """The pixels, after a warning for each remark."""
    for remark in reading.remarks:
        warnings.warn(f"{name}{remark}", ImageWarning, stacklevel=3)
    return reading.pixels


def _read(image: Image.Image, range: Range) -> Reading:
    """Decode a Pillow image."""
    if image.format == "EPS" and getattr(image, "tile", None):
        raise ImageError("is PostScript, for which Pillow would run a program: convert it first")
    deep = has_high_bytes(image)
    if (
        image.mode in ("I", "F")
        or image.mode.startswith("I;16")
        or (deep and (range is not None or image.format == "PPM"))
    ):
        try:
            return _levelled(*stored(image), range)
        except NotImplementedError as error:
            raise ImageError(str(error)) from error
    image.load()
    image = ImageOps.exif_transpose(image)
    remarks = []
    if deep and image.mode != "CMYK":
        brightest = int(np.asarray(image.convert("RGB")).max())
        remarks = empty_bits(brightest << 8 | 255, 65535)
    return Reading(_opaque(image), (0, 65535) if deep else None, tuple(remarks))


def levels_of(
    values: npt.NDArray[Any], highest: int, range: Range
) -> tuple[npt.NDArray[np.uint8], tuple[float, float] | None, tuple[str, ...]]:
    """Levels of values, the range that became 0 and 255, and remarks; 8 bits are not changed.

    Args:
        values: integers or floats of any shape.
        highest: largest possible integer.
        range: values that become 0 and 255.

    Raises:
        ImageError: a value is NaN, or there is no range and a value lies outside the default one.
    """
    if values.dtype == np.uint8:
        return values, None, ()
    floats = np.issubdtype(values.dtype, np.floating)
    full = (0, 1 if floats else highest)
    remarks = []
    if floats and np.isnan(values.min()):
        y, x = np.argwhere(np.isnan(values))[0][:2]
        raise ImageError(f"floating-point pixels must be numbers, got NaN at row {y}, column {x}")
    if range is None:
        low, high = values.min(), values.max()
        if values.dtype != np.uint16 and not (low >= 0 and high <= full[1]):
            must = f"32-bit values must be 0 to {highest}"
            must = "floating-point pixels must lie in 0 .. 1" if floats else must
            raise ImageError(f"{must}, got {low} .. {high}; others need a range (--range)")
        remarks = [] if floats else empty_bits(int(high), highest)
    try:
        levels, used = to_levels(values, range, full)
    except ValueError as error:
        raise ImageError(str(error)) from error
    return levels, used, tuple(remarks)


def _levelled(values: npt.NDArray[Any], highest: int, range: Range) -> Reading:
    """The levels of an array, (H, W, 1, 3 or 4), as RGB."""
    colors, used, remarks = levels_of(values[..., :3], highest, range)
    alpha = values[..., 3:]
    if alpha.size and alpha.dtype != np.uint8:
        full = (0, 1 if np.issubdtype(alpha.dtype, np.floating) else highest)
        given = range is not None  # range of the colours; alpha has its own
        alpha = to_levels(alpha, None, full)[0] if given else levels_of(alpha, highest, None)[0]
    if alpha.size:
        colors = _opaque(Image.fromarray(np.concatenate([colors, alpha], axis=2)))
    elif colors.shape[2] == 1:
        colors = np.repeat(colors, 3, axis=2)
    return Reading(np.ascontiguousarray(colors, np.uint8), used, remarks)


def _opaque(image: Image.Image) -> npt.NDArray[np.uint8]:
    """An 8-bit Pillow image as RGB, composited over `BACKGROUND` where it is transparent."""
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (*BACKGROUND, 255)), layer)
    return np.array(image.convert("RGB"))


def resized(picture: npt.NDArray[np.uint8], size: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """A picture, (H, W, channels) uint8, at another size (H, W), bilinear and antialiased."""
    if size == picture.shape[:2]:
        return picture
    if picture.shape[2] != 3:  # Pillow's modes have up to four channels, and treat them as colours
        planes = np.moveaxis(np.ascontiguousarray(picture), 2, 0)
        return np.stack([_stretched(Image.fromarray(plane), size) for plane in planes], 2)
    return _stretched(Image.fromarray(picture), size)


def _stretched(image: Image.Image, size: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    height, width = size
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


# ---------------------------------------------------------------------------------------- writing


def write_image(path: str | os.PathLike[str], array: npt.NDArray[Any]) -> None:
    """Write a picture under its final name only when it is complete.

    The format follows the ending (PNG, JPEG, ...). Missing folders are created. If writing is
    interrupted or fails, an earlier file of that name is kept.

    Args:
        path: path of the file to write.
        array: (H, W) uint8 or uint16, or (H, W, 3) uint8 RGB.

    Raises:
        OSError: the folder is not writable.
        ValueError: the ending is not that of a picture format.
    """
    path = Path(path)
    image = Image.fromarray(array)
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None:
        raise ValueError(
            f"{path}: pictures are written as {', '.join(written_suffixes())}, got {path.suffix!r}"
        )
    # Level 1 writes a 1024x2048 overlay in about a third of the default level's time, for files
    # a tenth larger.
    options: dict[str, Any] = {"PNG": {"compress_level": 1}, "JPEG": {"quality": 92}}.get(kind, {})
    with replacing(path) as file:
        image.save(file, format=kind, **options)


def written_suffixes() -> list[str]:
    """Endings of the colour picture formats that can be written here, sorted."""
    kinds = Image.registered_extensions()
    written = {suffix for suffix in SUFFIXES if kinds.get(suffix) in Image.SAVE}
    return sorted(written - {".pbm", ".pgm"})  # formats without colours
