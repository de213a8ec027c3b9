"""TIFF files of any size, read by rows and written by tiles: never a whole picture in memory."""

from __future__ import annotations

import contextlib
import os
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fassd.io.files import replacing
from fassd.io.finished import stamp
from fassd.io.images import PASSED_OVER, ImageError, ImageWarning, array_to_rgb, examine_image
from fassd.io.levels import Range, as_range
from fassd.io.packages import need

TIFF_SUFFIXES = (".tif", ".tiff")

MOST_BYTES = 1 << 28
"""Maximum bytes of one tile or strip of a file, decoded; larger ones need too much memory."""

TILE = 256
"""Side of the tiles that are written."""

MOST_SIDE = 1 << 24
"""Longest permitted side of a picture, in pixels."""

DEFLATE = (8, 32946)  # codes of the compression, Adobe's and the older one
PLAIN, SEPARATE, UPRIGHT, JPEG = 1, 2, 1, 7
WHITE_IS_ZERO, BLACK_IS_ZERO, COLORS, PALETTE, YCBCR = 0, 1, 2, 3, 6
BANDS = {WHITE_IS_ZERO: (1,), BLACK_IS_ZERO: (1,), COLORS: (3, 4), PALETTE: (1,), YCBCR: (3,)}
"""Permitted numbers of bands of each kind of pixels that can be read."""
UNSPECIFIED, UNASSOCIATED = 0, 2  # kinds of a fourth band: not stated, or alpha


class ArrayRows(contextlib.nullcontext["ArrayRows"]):
    """The rows of a picture in memory, (H, W, 3) uint8 RGB; nothing has to be closed."""

    def __init__(
        self, pixels: npt.NDArray[np.uint8], identity: Any = None, remarks: Sequence[str] = ()
    ) -> None:
        super().__init__(self)
        self.pixels, self.identity, self.remarks = pixels, identity, tuple(remarks)
        self.height, self.width = pixels.shape[:2]

    def read(self, first: int, last: int) -> npt.NDArray[np.uint8]:
        return self.pixels[first:last]


class TiffRows(contextlib.AbstractContextManager["TiffRows"]):
    """The rows of the first picture of a TIFF file, as uint8 RGB.

    Grey, RGB, RGBA (composited over grey) and palettes; 8 or 16 bits or floats; in tiles or strips,
    with bands together or apart; the values equal those of `fassd.io.images.read_image`. Other
    colours, such as CMYK, are refused. Compressions other than Deflate need the package
    imagecodecs. The tiles and strips of the rows read last are kept.

    Args:
        path: path of the file.
        range: values that become 0 and 255, as in `fassd.io.images.read_image`, but not "auto".

    Attributes:
        height, width: size of the picture in pixels.
        identity: stamp of the file, which shows whether it changed.
        remarks: messages for the user, such as pages skipped.

    Raises:
        ImageError: the file is not a TIFF, damaged, or of another kind; the message names it and
            says why.
        ImportError: tifffile is missing.
    """

    def __init__(self, path: str | os.PathLike[str], range: Range = None) -> None:
        self.path, self.range = Path(path), as_range(range)
        if self.range == "auto":
            raise ImageError(
                f"{self.path}: a range of auto needs the whole picture in memory: give LOW:HIGH"
            )
        tifffile = import_tifffile()
        with self._naming("is not a TIFF, or damaged"):
            self.identity = [stamp([path]), self.range]
            self._file = tifffile.TiffFile(self.path)
            self._page: Any = self._file.pages[0]
        try:
            with self._naming("is damaged"):
                self._inspect()
        except BaseException:
            self.close()
            raise
        self.remarks: tuple[str, ...] = ()
        with contextlib.suppress(Exception):  # damage after the first page does not matter
            if not self._file.pages[1].is_reduced:  # no smaller copy of the first
                self.remarks = (PASSED_OVER,)
        self._bands: dict[int, npt.NDArray[Any]] = {}

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def read(self, first: int, last: int) -> npt.NDArray[np.uint8]:
        """Rows [first, last), (rows, width, 3).

        Raises:
            ImageError: the file is truncated or damaged there, or a value is not a number; the
                message names file and place.
        """
        if self._direct:
            values = self._read_directly(first, last)
        else:
            bands = range(first // self._rows, -(-last // self._rows))
            self._bands = {b: self._bands[b] if b in self._bands else self._band(b) for b in bands}
            values = np.empty((last - first, self.width, self._samples), self._kind)
            for band, known in self._bands.items():
                top = band * self._rows
                begin, end = max(first, top), min(last, top + len(known))
                values[begin - first : end - first] = known[begin - top : end - top]
        if self._alpha_is_none:
            values = values[..., :3]
        self._check_numbers(values, first)
        return self._levels(values, first)

    # --- what there is ---------------------------------------------------------------------------

    def _inspect(self) -> None:
        page = self._page
        self.height, self.width = int(page.imagelength), int(page.imagewidth)
        self._samples = int(page.samplesperpixel)
        self._apart = page.planarconfig == SEPARATE and self._samples > 1
        if not (0 < self.height <= MOST_SIDE and 0 < self.width <= MOST_SIDE):
            raise ImageError(f"has {self.height}x{self.width} pixels; at most {MOST_SIDE} a side")
        bits = page.tags.get("BitsPerSample")
        bits = (page.bitspersample,) if bits is None else np.atleast_1d(bits.value).tolist()
        if len(set(bits)) > 1:
            raise ImageError(f"has bands that differ: of {', '.join(map(str, bits))} bits")
        kind = None if page.dtype is None else np.dtype(page.dtype)
        if kind not in (np.uint8, np.uint16, np.float16, np.float32, np.float64):
            raise ImageError(f"has values of {kind or bits}; uint8, uint16 and floats are read")
        self._kind = np.dtype(kind)
        self._inspect_colors()
        orientation = page.tags.get("Orientation")
        if orientation is not None and orientation.value != UPRIGHT:
            raise ImageError(f"is stored turned (orientation {orientation.value}): turn it first")
        if int(page.imagedepth) != 1:
            raise ImageError(f"has a depth of {page.imagedepth}; pictures of depth 1 are read")
        self._inspect_segments()

    def _inspect_colors(self) -> None:
        page = self._page
        kind = int(page.photometric)
        if self._samples not in (1, 3, 4):
            raise ImageError(f"has {self._samples} bands; 1, 3 or 4 are read")
        if self._samples not in BANDS.get(kind, ()) or (kind == YCBCR and page.compression != JPEG):
            name = getattr(page.photometric, "name", kind)
            raise ImageError(
                f"has {self._samples} bands of the kind {name}; grey, RGB and palettes are read, "
                "and YCbCr as JPEG has it: convert it to RGB first"
            )
        extra = [int(each) for each in page.extrasamples]
        self._alpha_is_none = self._samples == 4 and extra == [UNSPECIFIED]
        # If its kind is not stated, the fourth band is alpha, as in Pillow.
        if self._samples == 4 and extra not in ([], [UNSPECIFIED], [UNASSOCIATED]):
            raise ImageError(
                "has colours that are multiplied by their alpha (ExtraSamples "
                f"{', '.join(map(str, extra))}); unassociated alpha (2) is read"
            )

    def _inspect_segments(self) -> None:
        page = self._page
        wide, high = (page.tilewidth, page.tilelength) if page.is_tiled else (self.width, 0)
        high = high or min(int(page.rowsperstrip), self.height)
        self._rows, self._columns = int(high), int(wide)
        if self._rows < 1 or self._columns < 1:
            raise ImageError(f"has tiles of {high}x{wide} pixels")
        self._across = -(-self.width // self._columns)
        planes = self._samples if self._apart else 1
        needed = self._across * -(-self.height // self._rows) * planes
        found = min(len(page.dataoffsets), len(page.databytecounts))
        what = "tiles" if page.is_tiled else "strips"
        if found < needed:
            raise ImageError(f"has {found} {what} where its size needs {needed}")
        together = self._samples // planes
        self._segment_bytes = self._rows * self._columns * together * self._kind.itemsize
        self._direct = page.compression == PLAIN and not page.is_tiled and not self._apart
        self._direct = self._direct and page.fillorder == 1 and page.bitspersample % 8 == 0
        if not self._direct and self._segment_bytes > MOST_BYTES:
            raise ImageError(
                f"has {what} of {self._rows}x{self._columns} pixels, {self._segment_bytes:,} bytes "
                f"each; at most {MOST_BYTES:,} are decoded at once: write it in smaller {what}"
            )

    # --- values ----------------------------------------------------------------------------------

    def _read_directly(self, first: int, last: int) -> npt.NDArray[Any]:
        """Rows of uncompressed strips, (rows, width, samples)."""
        kind = self._kind.newbyteorder(self._file.byteorder)
        row = self.width * self._samples * kind.itemsize
        values = np.empty((last - first, self.width, self._samples), kind)
        memory = values.reshape(-1).view(np.uint8)
        y = first
        while y < last:
            index, within = divmod(y, self._rows)
            count = min(last - y, self._rows - within)
            place = f"rows {y} to {y + count - 1}"
            have = int(self._page.databytecounts[index]) - within * row
            data = self._bytes(index, within * row, min(count * row, have), place)
            if len(data) < count * row:
                raise self._error(f"is truncated: {place} are not there")
            memory[(y - first) * row : (y - first + count) * row] = np.frombuffer(data, np.uint8)
            y += count
        return values.astype(self._kind, copy=False)

    def _bytes(self, index: int, offset: int, count: int, place: str) -> bytes:
        handle = self._file.filehandle
        with self._naming(f"is damaged at {place}"):
            handle.seek(int(self._page.dataoffsets[index]) + offset)
            data: bytes = handle.read(max(0, min(count, handle.size)))
        return data

    def _band(self, band: int) -> npt.NDArray[Any]:
        """The values of a row of tiles, or of a strip, (rows, width, samples)."""
        top = band * self._rows
        rows = min(self._rows, self.height - top)
        values = np.empty((rows, self.width, self._samples), self._kind)
        per_plane = self._across * -(-self.height // self._rows)
        for plane in range(self._samples if self._apart else 1):
            for x in range(self._across):
                index = plane * per_plane + band * self._across + x
                part = self._segment(index, top, rows, x * self._columns)
                left = x * self._columns
                right = min(left + self._columns, self.width)
                planes = slice(plane, plane + 1) if self._apart else slice(None)
                values[:, left:right, planes] = part[:rows, : right - left]
        return values

    def _segment(self, index: int, top: int, rows: int, left: int) -> npt.NDArray[Any]:
        what = "tile" if self._page.is_tiled else "strip"
        place = f"{what} {index}, rows {top} to {top + rows - 1}, from column {left} on"
        count = int(self._page.databytecounts[index])
        if count == 0:  # omitted in a sparse file: zeros
            shape = (self._rows, self._columns, 1 if self._apart else self._samples)
            return np.zeros(shape, self._kind)
        data = self._bytes(index, 0, min(count, 2 * MOST_BYTES), place)
        if len(data) < count:
            raise self._error(f"is truncated: {place}")
        if self._page.compression in DEFLATE:
            self._check_inflated(data, place)
        with self._naming(f"cannot be decoded at {place}"):
            decoded = self._page.decode(data, index)[0]
            if decoded is None or decoded.ndim != 4 or decoded.shape[1] < rows:
                raise ValueError("it is shorter than it should be")
            return np.asarray(decoded[0])

    def _check_inflated(self, data: bytes, place: str) -> None:
        """Check that a Deflate stream is not longer than the tile, before decoding all of it."""
        inflate, found = zlib.decompressobj(), 0
        with self._naming(f"cannot be decoded at {place}"):
            while data and not inflate.eof:
                made = len(inflate.decompress(data, 1 << 20))
                data, found = inflate.unconsumed_tail, found + made
                if found > 2 * self._segment_bytes + 4096:
                    raise ImageError("it holds more than its size says")

    def _check_numbers(self, values: npt.NDArray[Any], first: int) -> None:
        if np.issubdtype(self._kind, np.floating) and np.isnan(values).any():
            y, x, _ = np.argwhere(np.isnan(values))[0]
            raise self._error(
                f"floating-point pixels must be numbers, got NaN at row {first + y}, column {x}"
            )

    def _levels(self, values: npt.NDArray[Any], first: int) -> npt.NDArray[np.uint8]:
        page = self._page
        if page.photometric == PALETTE:
            with self._naming("has a damaged palette"):
                colors = (np.asarray(page.colormap) >> 8).astype(np.uint8).T
                return np.ascontiguousarray(colors[values[..., 0]])
        if page.bitspersample < 8:
            values = values * np.uint8(255 // ((1 << page.bitspersample) - 1))
        with warnings.catch_warnings(), self._naming(f"rows from {first} on"):
            warnings.simplefilter("ignore", ImageWarning)  # a dark strip proves nothing
            highest = (1 << page.bitspersample) - 1
            levels = array_to_rgb(values, None if values.dtype == np.uint8 else self.range, highest)
        # Pillow, and so `read_image`, does not invert more than 8 bits.
        inverted = page.photometric == WHITE_IS_ZERO and values.dtype == np.uint8
        return 255 - levels if inverted else levels

    # --- errors ----------------------------------------------------------------------------------

    def _error(self, why: str) -> ImageError:
        return ImageError(f"{self.path}: {why}")

    @contextlib.contextmanager
    def _naming(self, what: str) -> Iterator[None]:
        """Turn whatever a decoder raises into an `ImageError` that names the file."""
        try:
            yield
        except FileNotFoundError as error:
            raise self._error("no such file") from error
        except Exception as error:
            reason = str(error) or type(error).__name__
            if isinstance(error, MemoryError):
                reason = "does not fit in memory"
            own = isinstance(error, ImageError) and what == "is damaged"
            raise self._error(reason if own else f"{what} ({reason})") from error


def open_rows(
    path: str | os.PathLike[str], range: Range = None, max_pixels: int | None = None
) -> TiffRows | ArrayRows:
    """The rows of a picture file: from the file for a TIFF, from memory for all others.

    Args:
        path, range: file and range, as in `fassd.io.images.read_image`.
        max_pixels: maximum of height times width for a picture that is read whole.

    Raises:
        ImageError: the file cannot be read.
    """
    if Path(path).suffix.lower() in TIFF_SUFFIXES:
        return TiffRows(path, range)
    reading = examine_image(path, range, max_pixels)
    return ArrayRows(reading.pixels, [stamp([path]), as_range(range)], reading.remarks)


def write_tiff(
    path: Path,
    size: tuple[int, int],
    read: Callable[[int, int], npt.NDArray[np.integer]],
    dtype: Any = np.uint8,
    colors: npt.NDArray[np.uint8] | None = None,
) -> None:
    """Write a TIFF in Deflate-compressed tiles, completely or not at all.

    Args:
        path: path of the file.
        size: (height, width).
        read: function from (first, last) to rows [first, last), (rows, width) or (rows, width, 3)
            `dtype`.
        dtype: uint8 or uint16.
        colors: (classes, 3) uint8 RGB: a palette with which viewers display the values. The values
            themselves do not change.
    """
    tifffile = import_tifffile()
    height, width = size
    deep = read(0, 1).shape[2:]
    options: dict[str, Any] = {"photometric": "rgb" if deep else "minisblack"}
    if colors is not None:
        colormap = np.zeros((3, 256), np.uint16)
        colormap[:, : len(colors)] = colors.T[:, :256].astype(np.uint16) * 257
        options = {"photometric": "palette", "colormap": colormap}

    def tiles() -> Iterator[npt.NDArray[Any]]:
        for top in range(0, height, TILE):
            rows = read(top, min(top + TILE, height))
            for left in range(0, width, TILE):
                tile = np.zeros((TILE, TILE, *deep), dtype)
                part = rows[:, left : left + TILE]
                tile[: part.shape[0], : part.shape[1]] = part
                yield tile

    # The uncompressed size must be addressable with 32 bits.
    large = height * width * np.dtype(dtype).itemsize * (3 if deep else 1) > 3 << 30
    # What it is made of is removed afterwards.
    with replacing(path, durable=True) as file, tifffile.TiffWriter(file, bigtiff=large) as writer:
        writer.write(
            tiles(),
            shape=(height, width, *deep),
            dtype=dtype,
            tile=(TILE, TILE),
            compression="zlib",
            metadata=None,
            **options,
        )


def import_tifffile() -> Any:
    """Import the package tifffile.

    Raises:
        ImportError: tifffile is missing; the message says how to install it.
    """
    return need("tifffile", "TIFF files in strips need", "tiff")
