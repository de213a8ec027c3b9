"""Search for the pictures and videos given to a command: files, folders, patterns, streams."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from fassd.io.files import SUFFIXES, VIDEO_SUFFIXES, folders_below
from fassd.io.finished import WrittenFiles
from fassd.io.images import ImageError

CAMERA = re.compile(r"camera:(\d+)")
URL = re.compile(r"(rtsps?|rtmps?|https?|udp|tcp|srt|rtp)://.+", re.IGNORECASE)
SEQUENCE = re.compile(r"%0?(\d*)d")
"""The number in the name of an image sequence, as in frame%04d.png."""


class PictureFile(NamedTuple):
    """A picture to segment: its path, and its name (may contain folders) in the output folder."""

    path: Path
    name: str


class Video(NamedTuple):
    """A video to segment: its source, and its name (may contain folders) in the output folder.

    `source` is a path, `camera:N`, an address (`rtsp://...`) or a numbered sequence
    (`frame%04d.png`).
    """

    source: str
    name: str


def find_sources(
    sources: Iterable[str],
    onerror: Callable[[ImageError], object] | None = None,
    onresult: Callable[[Path], object] | None = None,
) -> list[PictureFile | Video]:
    """Expand files, folders and patterns to pictures and videos, each once.

    Cameras, addresses and numbered sequences are not expanded and come first; the rest is searched
    for as in `find_pictures`.

    Args:
        sources: texts to expand.
        onerror: function called with the error of a source that cannot be searched; without it the
            first error is raised.
        onresult: function called with each file that is skipped because `fassd predict` wrote it.

    Raises:
        ImageError: a source is empty or matches nothing, or a folder cannot be searched.
    """
    sources = list(dict.fromkeys(sources))
    named = [source for source in sources if _stands_for_itself(source)]
    rest = [source for source in sources if source not in named]
    found: list[PictureFile | Video] = []
    for picture in find_pictures(rest, onerror, SUFFIXES | VIDEO_SUFFIXES, onresult):
        moving = picture.path.suffix.lower() in VIDEO_SUFFIXES
        found.append(Video(str(picture.path), picture.name) if moving else picture)
    taken = {each.name.casefold() for each in found}
    return [*(Video(source, _free_name(_name(source), taken)) for source in named), *found]


def sequence_files(pattern: str) -> list[tuple[int, Path]]:
    """The files of a sequence such as frame%04d.png with their numbers, in order.

    As in `printf`, %04d is at least four digits padded with zeros, %d a number without padding.
    """
    path = Path(pattern)
    match = SEQUENCE.search(path.name)
    if match is None or not path.parent.is_dir():
        return []
    digits = rf"\d{{{match[1]},}}" if match[1] else r"0|[1-9]\d*"
    before, after = path.name[: match.start()], path.name[match.end() :]
    name = re.compile(f"{re.escape(before)}({digits}){re.escape(after)}")
    found = ((name.fullmatch(each.name), each) for each in path.parent.iterdir())
    return sorted((int(number[1]), each) for number, each in found if number)


def _stands_for_itself(source: str) -> bool:
    if CAMERA.fullmatch(source) or URL.fullmatch(source):
        return True
    return bool(SEQUENCE.search(Path(source).name)) and not os.path.exists(source)


def _name(source: str) -> str:
    """Name of the results of a camera, an address or a sequence."""
    camera = CAMERA.fullmatch(source)
    if camera:
        return f"camera-{camera[1]}"
    if URL.fullmatch(source):
        address = urlsplit(source)
        return Path(address.path).stem or address.hostname or "stream"
    return SEQUENCE.sub("", Path(source).stem).strip("-_. ") or "sequence"


def find_pictures(
    sources: Iterable[str | os.PathLike[str]],
    onerror: Callable[[ImageError], object] | None = None,
    suffixes: Set[str] = SUFFIXES,
    onresult: Callable[[Path], object] | None = None,
) -> list[PictureFile]:
    """Expand files, folders and glob patterns to pictures, each once, in natural order.

    * A file is accepted whatever its ending.
    * A folder is searched with its subfolders, whose structure is kept in the output names. Hidden
      files, files without a picture's ending (`suffixes`) and files that `fassd predict` wrote
      itself, according to the record beside them (`fassd.io.finished.WrittenFiles`), are skipped.
    * A pattern (`*`, `?`, `[...]`, `**` for any depth) is matched in the same way; its pictures
      only keep their own name. A part of it that exists literally is taken literally, and `**`
      searches a folder once, however many links lead to it.

    Sources keep their order, and inside each `x2` comes before `x10`. Where two pictures would get
    the same output name, the later ones become `name-2`, `name-3`, ...

    Args:
        sources: files, folders and patterns.
        onerror: function called with the error of a source, or of a folder inside one, that cannot
            be searched; the search then continues. Without it the first error is raised.
        suffixes: endings, in lower case, that folders and patterns are searched for.
        onresult: function called with each file that is skipped because `fassd predict` wrote it.

    Raises:
        ImageError: a source is empty or matches nothing, or a folder cannot be searched.
    """
    report = onerror or _raise
    pictures: list[PictureFile] = []
    seen: set[Path] = set()
    taken: set[str] = set()
    passed: set[Path] = set()
    results = WrittenFiles()
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
            pictures.append(PictureFile(path, _free_name(name, taken)))
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
    results: WrittenFiles,
    passed: set[Path],
) -> list[tuple[Path, str]]:
    """The pictures of one source, each with the output name that it prefers.

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
    """Paths below a folder that match the parts of a pattern."""
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
    """The files with one of `suffixes` in a folder and its subfolders, except hidden ones."""

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


def _free_name(name: str, taken: set[str]) -> str:
    """`name`, or the first of `name-2`, `name-3`, ... that no other picture has (in any case)."""
    number, free = 1, name
    while free.casefold() in taken:
        number += 1
        free = f"{name}-{number}"
    taken.add(free.casefold())
    return free
