"""What `fassd predict` is given: pictures and videos, told apart by how they are written."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from fassd.io.files import SUFFIXES, VIDEO_SUFFIXES
from fassd.io.images import ImageError, Picture, find_pictures, free_name

__all__ = [
    "CAMERA",
    "SEQUENCE",
    "URL",
    "VIDEO_SUFFIXES",
    "Video",
    "find_sources",
    "sequence_files",
]

CAMERA = re.compile(r"camera:(\d+)")
URL = re.compile(r"(rtsps?|rtmps?|https?|udp|tcp|srt|rtp)://.+", re.IGNORECASE)
SEQUENCE = re.compile(r"%0?(\d*)d")
"""The number in the name of an image sequence, as in frame%04d.png."""


class Video(NamedTuple):
    """A video to segment: where it is, and its name (may hold folders) in the output folder.

    `source` is a path, `camera:N`, an address (`rtsp://...`) or a numbered sequence
    (`frame%04d.png`).
    """

    source: str
    name: str


def find_sources(
    sources: Iterable[str],
    onerror: Callable[[ImageError], object] | None = None,
    onresult: Callable[[Path], object] | None = None,
) -> list[Picture | Video]:
    """Expand files, folders and patterns to pictures and videos, each once.

    Cameras, addresses and numbered sequences stand for themselves and come first; the rest is
    searched for as `fassd.io.images.find_pictures` does.

    Args:
        sources: what to expand.
        onerror: called with the error of a source that cannot be searched; without it the first
            error is raised.
        onresult: called with each file that is passed over because `fassd predict` wrote it.

    Raises:
        ImageError: a source is empty or matches nothing, or a folder cannot be searched.
    """
    sources = list(dict.fromkeys(sources))
    named = [source for source in sources if _stands_for_itself(source)]
    rest = [source for source in sources if source not in named]
    found: list[Picture | Video] = []
    for picture in find_pictures(rest, onerror, SUFFIXES | VIDEO_SUFFIXES, onresult):
        moving = picture.path.suffix.lower() in VIDEO_SUFFIXES
        found.append(Video(str(picture.path), picture.name) if moving else picture)
    taken = {each.name.casefold() for each in found}
    return [*(Video(source, free_name(_name(source), taken)) for source in named), *found]


def sequence_files(pattern: str) -> list[tuple[int, Path]]:
    """The files of a sequence such as frame%04d.png with their numbers, in order.

    As in `printf`, %04d is at least four digits with zeros in front, %d a number without.
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
    """What results are called that are made from a camera, an address or a sequence."""
    camera = CAMERA.fullmatch(source)
    if camera:
        return f"camera-{camera[1]}"
    if URL.fullmatch(source):
        address = urlsplit(source)
        return Path(address.path).stem or address.hostname or "stream"
    return SEQUENCE.sub("", Path(source).stem).strip("-_. ") or "sequence"
