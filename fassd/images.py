"""Reading pictures of any kind as 8-bit RGB, writing them whole or not at all, and finding them.

Every reader here returns uint8 RGB of shape (H, W, 3), upright:

* grey, palette, CMYK, YCbCr and the like are converted;
* transparency is composited over `BACKGROUND`, the colour that normalisation turns into zeros, so
  that hidden colours under a transparent pixel never reach the network;
* 16 bits become 8 by keeping the high byte (0xFFFF -> 255), as Pillow does for 16-bit colour;
* EXIF orientation is applied; of an animation or a many-page file the first picture is taken;
* colour profiles are not applied.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from fassd.data.transforms import MEAN_COLOR
from fassd.files import SUFFIXES, check_file, check_folder, folders_below, replacing
from fassd.record import OUTPUT_ENDINGS, VIDEO_ENDINGS, Results

__all__ = [
    "BACKGROUND",
    "OUTPUT_ENDINGS",
    "SUFFIXES",
    "VIDEO_ENDINGS",
    "ImageError",
    "Picture",
    "array_to_rgb",
    "check_file",
    "check_folder",
    "find_pictures",
    "free_name",
    "pil_to_rgb",
    "read_image",
    "replacing",
    "unreadable_because",
    "write_image",
    "written_suffixes",
]

BACKGROUND = MEAN_COLOR
"""RGB colour behind transparent pixels: the mean of ImageNet, (124, 116, 104)."""


class ImageError(ValueError):
    """A picture cannot be read; the message names it and says why."""


class Picture(NamedTuple):
    """A picture to segment: where it is, and its name (may hold folders) in the output folder."""

    path: Path
    name: str


# ---------------------------------------------------------------------------------------- reading


def read_image(path: str | os.PathLike[str]) -> npt.NDArray[np.uint8]:
    """Read a picture file as uint8 RGB, (H, W, 3), upright.

    Raises:
        ImageError: the file is missing, no regular file, empty, no picture, truncated, damaged, or
            has more pixels than `2 * PIL.Image.MAX_IMAGE_PIXELS` (179 million; a decompression
            bomb).
    """
    try:
        kind = os.stat(path).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):  # reading a pipe may wait for ever
            raise ImageError("is neither a file nor a folder, but a pipe, socket or device")
        # Pillow warns from half its limit on; up to the limit the picture is simply read.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return pil_to_rgb(image)
    except Exception as error:  # decoders of damaged files raise almost anything
        raise ImageError(f"{os.fspath(path)}: {unreadable_because(path, error)}") from error


def unreadable_because(path: str | os.PathLike[str], error: Exception) -> str:
    """What to tell of an error that came while a picture was read."""
    if isinstance(error, ImageError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError) or Path(path).is_dir():
        return "is a folder, not a picture"
    if isinstance(error, PermissionError):
        return "may not be read (permission denied)"
    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        return f"has more than {limit:.0f} million pixels; refused as a possible decompression bomb"
    if isinstance(error, Image.UnidentifiedImageError):
        empty = Path(path).stat().st_size == 0
        return "is empty" if empty else "is not a picture in a format that Pillow reads"
    if isinstance(error, MemoryError):
        return "does not fit in memory"
    return f"is damaged or truncated ({str(error) or type(error).__name__})"


def pil_to_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Convert a Pillow image of any mode to uint8 RGB, (H, W, 3), with its EXIF rotation applied.

    Raises:
        ImageError: a 32-bit picture whose values fit neither 16 bits (mode I) nor 0 .. 1 (mode F).
        OSError: the file behind the image is truncated or damaged.
    """
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return array_to_rgb(np.asarray(image).astype(np.uint16))
    if image.mode == "I":  # 16-bit grey in Pillow before 11.3, and 32-bit TIFF
        wide = np.asarray(image)
        if wide.min() < 0 or wide.max() > 65535:
            raise ImageError(f"32-bit values must be 0 to 65535, got {wide.min()} to {wide.max()}")
        return array_to_rgb(wide.astype(np.uint16))
    if image.mode == "F":
        return array_to_rgb(np.asarray(image))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (*BACKGROUND, 255)), layer)
    return np.array(image.convert("RGB"))


def array_to_rgb(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Convert an array to uint8 RGB, (H, W, 3).

    Args:
        array: (H, W) or (H, W, 1) grey, (H, W, 3) RGB or (H, W, 4) RGBA; bool, uint8, uint16 (the
            full range 0 .. 65535), or floating point in 0 .. 1.

    Raises:
        ImageError: another shape or dtype, no pixels, or floats that are not finite or not in 0..1.
    """
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or array.size == 0:
        raise ImageError(
            f"an array must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {array.shape}"
        )
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif np.issubdtype(array.dtype, np.floating):
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= 1):  # also catches NaN
            raise ImageError(f"floating-point pixels must lie in 0 .. 1, got {low} .. {high}")
        array = np.rint(array * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ImageError(f"an array must be bool, uint8, uint16 or floating, got {array.dtype}")
    if array.shape[2] == 1:
        return np.repeat(array, 3, axis=2)
    if array.shape[2] == 4:
        return pil_to_rgb(Image.fromarray(array))
    return np.ascontiguousarray(array)


# ---------------------------------------------------------------------------------------- writing


def write_image(path: str | os.PathLike[str], array: npt.NDArray[Any]) -> None:
    """Write a picture under its final name only when it is complete.

    The format follows the ending (PNG, JPEG, ...). Missing folders are made. Interrupted or failed,
    it leaves whatever was under that name before.

    Args:
        path: where to.
        array: (H, W) uint8 or uint16, or (H, W, 3) uint8 RGB.

    Raises:
        OSError: the folder cannot be written to.
        ValueError: the ending names no picture format.
    """
    path = Path(path)
    image = Image.fromarray(array)
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path}: the ending {path.suffix!r} names no picture format")
    # Level 1 writes a 1024x2048 overlay in about a third of the default level's time, for files
    # a tenth larger.
    options: dict[str, Any] = {"PNG": {"compress_level": 1}, "JPEG": {"quality": 92}}.get(kind, {})
    with replacing(path) as file:
        image.save(file, format=kind, **options)


def written_suffixes() -> list[str]:
    """Endings of the colour pictures that can be written here, sorted."""
    kinds = Image.registered_extensions()
    written = {suffix for suffix in SUFFIXES if kinds.get(suffix) in Image.SAVE}
    return sorted(written - {".pbm", ".pgm"})  # without colours


# ---------------------------------------------------------------------------------------- finding


def find_pictures(
    sources: Iterable[str | os.PathLike[str]],
    onerror: Callable[[ImageError], object] | None = None,
    suffixes: Set[str] = SUFFIXES,
    onresult: Callable[[Path], object] | None = None,
) -> list[Picture]:
    """Expand files, folders and glob patterns to pictures, each once, in natural order.

    * A file is taken whatever its ending.
    * A folder is searched with its subfolders, and its tree is kept in the output names. Hidden
      files, files without a picture's ending (`suffixes`) and files that `fassd predict` wrote
      itself, as the record beside them tells (`fassd.record.Results`), are passed over.
    * A pattern (`*`, `?`, `[...]`, `**` for any depth) is matched likewise; its pictures keep their
      own name alone. A part of it that exists as it is written stands for itself, and `**`
      searches a folder once, however many links lead to it.

    Sources keep their order, and inside each `x2` comes before `x10`. Where two pictures would get
    the same output name, the later ones become `name-2`, `name-3`, ...

    Args:
        sources: the files, folders and patterns.
        onerror: called with the error of a source, or of a folder inside one, that cannot be
            searched; the search then goes on. Without it the first error is raised.
        suffixes: the endings, in lower case, that folders and patterns are searched for.
        onresult: called with each file that is passed over because `fassd predict` wrote it.

    Raises:
        ImageError: a source is empty or matches nothing, or a folder cannot be searched.
    """
    report = onerror or _raise
    pictures: list[Picture] = []
    seen: set[Path] = set()
    taken: set[str] = set()
    passed: set[Path] = set()
    results = Results()
    for source in sources:
        try:
            found = _expand(os.fspath(source), report, suffixes, results, passed)
        except ImageError as error:
            report(error)
            continue
        for path, name in found:
            identity = path.resolve()
            if identity in seen:
                continue
            seen.add(identity)
            pictures.append(Picture(path, free_name(name, taken)))
    if onresult is not None:
        for path in sorted(passed):
            onresult(path)
    return pictures


def _raise(error: ImageError) -> None:
    raise error


def _expand(
    source: str,
    report: Callable[[ImageError], object],
    suffixes: Set[str],
    results: Results,
    passed: set[Path],
) -> list[tuple[Path, str]]:
    """The pictures of one source, each with the output name it would like to have.

    Results of earlier runs are put into `passed` instead.
    """
    if not source:
        raise ImageError("a source must be a file, folder or pattern, got ''")
    root = Path(source)
    what = "pictures" if suffixes <= SUFFIXES else "pictures or videos"
    if os.path.isdir(root):
        files = _files_below(root, report, suffixes)
        found = [(file, str(file.relative_to(root).with_suffix(""))) for file in files]
        nothing = f"this folder holds no {what}"
    elif glob.has_magic(source) and not os.path.exists(root):
        matches = _matching(Path(root.anchor), root.parts[bool(root.anchor) :])
        found = [(file, file.stem) for file in matches if _is_wanted(file, file.parent, suffixes)]
        nothing = f"this pattern matches no {what}"
    elif os.path.exists(root):
        return [(root, root.stem)]
    else:
        raise ImageError(f"{source}: no such file or folder")
    own = {file for file, _ in found if file in results}
    passed |= own
    if own:
        nothing += f" but {len(own)} that fassd predict wrote"
        found = [item for item in found if item[0] not in own]
    if not found:
        raise ImageError(f"{source}: {nothing} ({' '.join(sorted(suffixes))})")
    return sorted(found, key=lambda item: _natural_key(str(item[0])))


def _matching(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """What fits the parts of a pattern below a folder."""
    if not parts:
        yield folder
        return
    part, rest = parts[0], parts[1:]
    if part == "**":
        for below, _ in folders_below(folder):
            yield from _matching(below, rest or ["*"])
    elif not glob.has_magic(part) or os.path.lexists(folder / part):
        yield from _matching(folder / part, rest)
    elif folder.is_dir() and os.access(folder, os.R_OK):
        for name in fnmatch.filter(os.listdir(folder), part):
            if part.startswith(".") or not name.startswith("."):
                yield from _matching(folder / name, rest)


def _files_below(
    root: Path, report: Callable[[ImageError], object], suffixes: Set[str]
) -> list[Path]:
    """The files with one of `suffixes` in a folder and its subfolders, but for hidden ones."""

    def unreadable(error: OSError) -> None:
        failure = ImageError(f"{error.filename}: cannot be searched ({error.strerror})")
        if Path(error.filename) == root:
            raise failure
        report(failure)

    files: list[Path] = []
    for folder, subfolders, names in os.walk(root, onerror=unreadable):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        files += (Path(folder, name) for name in names)
    return [file for file in files if _is_wanted(file, root, suffixes)]


def _is_wanted(path: Path, root: Path, suffixes: Set[str]) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return path.suffix.lower() in suffixes and not hidden and os.path.isfile(path)


def _natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sort key that reads runs of digits as numbers, and ignores case unless all else is equal."""
    pieces = re.split(r"(\d+)", text.casefold())
    key = [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in pieces]
    return [*key, (1, 0, text)]


def free_name(name: str, taken: set[str]) -> str:
    """`name`, or the first of `name-2`, `name-3`, ... that no other picture has (in any case)."""
    number, free = 1, name
    while free.casefold() in taken:
        number += 1
        free = f"{name}-{number}"
    taken.add(free.casefold())
    return free
