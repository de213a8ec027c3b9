"""Values of more than 8 bits: as files store them, and as the 256 levels of a network's input.

A *range* says which values become black and white: `(low, high)`, on the command line LOW:HIGH;
"auto", the lowest and highest value of each picture; or None, everything that the file can hold.
"""

from __future__ import annotations

import io
import math
import sys
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

Range: TypeAlias = tuple[float, float] | Literal["auto"] | None

# ------------------------------------------------------------------------------------------ ranges


def as_range(value: Any) -> Range:
    """Check a range: None, "auto", a text LOW:HIGH, or two numbers.

    Raises:
        ValueError: the value is none of these, or LOW is not below HIGH.
    """
    if value is None:
        return None
    if isinstance(value, str) and value == "auto":
        return "auto"
    try:
        low, high = map(float, value.split(":") if isinstance(value, str) else value)
    except (TypeError, ValueError):
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise ValueError(
            f"range must be auto or LOW:HIGH, two numbers with the lower one first, got {value!r}"
        )
    return low, high


def told(range: Range, used: tuple[float, float]) -> str:
    """Message that says which values of a picture became black and white."""
    low, high = ("each one's lowest", "highest") if range == "auto" else map("{:.15g}".format, used)
    return f"more than 8 bits per channel: values from {low} to {high} became 0 to 255"


def to_levels(
    values: npt.NDArray[Any], range: Range, full: tuple[float, float]
) -> tuple[npt.NDArray[np.uint8], tuple[float, float]]:
    """Spread the values of a range evenly over 0 .. 255; values beyond become 0 or 255.

    Args:
        values: integers or floats of any shape.
        range: values that become 0 and 255.
        full: range that None stands for.

    Returns:
        The levels, in the shape of `values`, and the range used.

    Raises:
        ValueError: a value is NaN, or the range is "auto" and one is infinite.
    """
    low, high = (float(values.min()), float(values.max())) if range == "auto" else range or full
    if not math.isfinite(high - low) or np.isnan(values.min()):
        raise ValueError("floating-point pixels must be numbers, got NaN or infinity")
    if values.dtype == np.uint16:  # a table costs less than floats for a whole picture
        return _spread(np.arange(1 << 16), low, high)[values], (low, high)
    return _spread(values, low, high), (low, high)


def _spread(values: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.uint8]:
    width = high - low
    scaled = np.clip(values.astype(np.float64), low, high)
    scaled -= low
    if np.issubdtype(values.dtype, np.floating):
        scaled *= 255 / (width or 1)
        return np.rint(scaled, out=scaled).astype(np.uint8)
    # 256 equal steps, like the high bytes of 16 bits, if there are that many values.
    levels, values_ = (256, width + 1) if width >= 255 else (255, width or 1)
    scaled *= levels
    scaled /= values_
    return scaled.astype(np.uint8)


def empty_bits(peak: int, highest: int) -> list[str]:
    """A remark on a picture that is nearly black for its range: the two top bits or more are empty.

    Args:
        peak: largest value in the picture.
        highest: largest value that the file can hold.
    """
    bits, used = highest.bit_length(), peak.bit_length()
    if bits - used < 2 or peak == 0:
        return []
    return [
        f"read as 0 to {highest}, but the upper {bits - used} of {bits} bits are empty, so that it "
        f"is nearly black; give the range of its values, such as 0:{(1 << used) - 1} (--range, or "
        "`range` in a card and in Python)"
    ]


# ------------------------------------------------------------------------------------------- files


def stretch(image: Any) -> float:
    """Factor by which Pillow multiplies a file's grey values to fill 8 or 16 bits, with rounding.

    Args:
        image: a Pillow image whose file is not decoded yet.
    """
    codec, raw, maxval = _layout(image)
    if maxval:
        return (65535 if image.mode == "I" else 255) / maxval
    if codec == "jpeg2k" and image.mode == "I;16":
        data = _content(image)
        precision = data[data.index(b"\xff\x4f\xff\x51") + 42]  # in the SIZ marker
        return 1 << max(0, 15 - (precision & 0x7F))
    return {"L;2": 85, "L;4": 17}.get(raw, 1)


def has_high_bytes(image: Any) -> bool:
    """True if Pillow would only keep the high bytes of 16-bit colours in a file not decoded yet."""
    _, raw, maxval = _layout(image)
    return (";16" in raw or maxval > 255) and image.mode in ("RGB", "RGBA", "CMYK")


def stored(image: Any) -> tuple[npt.NDArray[Any], int]:
    """The values that a file stores, for a Pillow image that is not decoded yet.

    Args:
        image: image of mode I, F or I;16, or with colours in 16 bits.

    Returns:
        The values, (H, W, C), upright, uint16, int32 or float32; and the highest value that the
        file can hold.

    Raises:
        NotImplementedError: only the high bytes of this kind of 16-bit colours can be read.
        ValueError: the file is truncated.
    """
    codec, raw, maxval = _layout(image)
    factor = stretch(image)
    if maxval and image.mode == "RGB":
        shape, begin = (image.height, image.width, 3), image.tile[0][2]
        if codec == "ppm_plain":
            pixels = np.array(_content(image)[begin:].split(), np.uint16)[: math.prod(shape)]
        else:
            pixels = np.frombuffer(_content(image), ">u2", math.prod(shape), begin)
        return pixels.reshape(shape).astype(np.uint16), maxval
    low = _low_bytes(image, raw) if has_high_bytes(image) else None
    image.load()
    values = np.asarray(ImageOps.exif_transpose(image))
    if low is not None:
        return values.astype(np.uint16) << 8 | low, 65535
    if factor != 1:
        values = np.rint(values / factor).astype(np.uint16)
    elif image.mode.startswith("I;16"):
        values = values.astype(np.uint16)
    return values[..., None], 4095 if raw == "I;12" else maxval or round(65536 / factor) - 1


def _low_bytes(image: Any, raw: str) -> npt.NDArray[np.uint8]:
    """Low bytes of 16-bit colours: Pillow takes them for the high ones in the other byte order."""
    other = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
    if raw.startswith("LA"):
        raw = "RGBA"  # all bytes of a pixel, in the file's order
    elif raw.startswith(("RGB;", "RGBA;", "RGBX;")):
        raw = raw[:-1] + other[raw[-1]]
    else:
        raise NotImplementedError(
            f"of 16-bit {raw.partition(';')[0]} only the high bytes are read: no range can be given"
        )
    with Image.open(io.BytesIO(_content(image)), formats=[image.format]) as again:
        tiles: Any = again.tile
        for place, tile in enumerate(tiles):
            new = raw if isinstance(tile[3], str) else (raw, *tile[3][1:])
            # Plain tuples before Pillow 11.
            tiles[place] = (
                tile._replace(args=new) if hasattr(tile, "_replace") else (*tile[:3], new)
            )
        low = np.asarray(ImageOps.exif_transpose(again))
    return low[..., [1, 1, 1, 3]] if _layout(image)[1].startswith("LA") else low


def _layout(image: Any) -> tuple[str, str, int]:
    """Codec, Pillow's name for the layout of pixels, and a PNM's largest value, if stated."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return "", "", 0
    codec, _, _, arguments = tiles[0]
    if isinstance(arguments, str):
        return codec, arguments, 0
    raw = arguments[0] if arguments and isinstance(arguments[0], str) else ""
    return codec, raw, arguments[1] if codec.startswith("ppm") and len(arguments) > 1 else 0


def _content(image: Any) -> bytes:
    """The whole file of a Pillow image, which can still be decoded afterwards."""
    place = image.fp.tell()
    image.fp.seek(0)
    content = image.fp.read()
    image.fp.seek(place)
    return content
