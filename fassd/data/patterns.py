"""Path patterns with named holes: "{split}/{city}/{name}.png"."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from fassd.io.files import SUFFIXES, folders_below

HOLE = re.compile(r"\{([A-Za-z_]\w*)(:path)?\}")
"""A hole of a pattern: its name, and whether it may hold folders."""

MOST_WAYS = 10**6
"""Maximum number of ways to divide a name among a pattern's holes; all may have to be tried."""


def fill(template: str, holes: Mapping[str, str]) -> str:
    """Fill the holes that have a value; the others stay."""
    return HOLE.sub(lambda hole: holes.get(hole[1], hole[0]), template)


def match_files(
    root: Path, template: str, known: dict[str, str]
) -> Iterator[tuple[str, dict[str, str]]]:
    """Find every picture below `root` whose path matches a template, in no order.

    Args:
        root: folder where the template starts.
        template: pattern of folders and file, separated by /. A hole stands for one or more
            characters except /, the same ones wherever its name is repeated; `{hole:path}`, only in
            the last part, also for /. Hidden names do not match holes. Links are followed, but
            below a folder each folder counts once, however many links lead to it.
        known: values of holes that are already filled.

    Yields:
        The path below `root`, and the value of each hole.
    """
    *folders, last = template.split("/")
    level = [("", known)]
    for part in folders:
        level = [
            (f"{folder}{name}/", {**holes, **more})
            for folder, holes in level
            for name, more in _fitting(_entries(root / folder, part, holes), part, holes)
            if (root / folder / name).is_dir()
        ]
    deep = any(hole[2] for hole in HOLE.finditer(last))
    for folder, holes in level:
        names = _below(root / folder) if deep else _entries(root / folder, last, holes)
        for name, more in _fitting(names, last, holes):
            if os.path.splitext(name)[1].lower() in SUFFIXES and (root / folder / name).is_file():
                yield folder + name, {**holes, **more}


def _entries(folder: Path, part: str, holes: Mapping[str, str]) -> list[str]:
    """Names in a folder that may match; one name, if the part has no unfilled hole."""
    filled = fill(part, holes)
    if not HOLE.search(filled):
        return [filled] if os.path.lexists(folder / filled) else []
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _below(folder: Path) -> Iterator[str]:
    """Files in a folder and its subfolders except hidden ones, relative to it."""
    for place, names in folders_below(folder):
        for name in names:
            yield (place / name).relative_to(folder).as_posix()


def _fitting(
    names: Iterable[str], part: str, holes: Mapping[str, str]
) -> Iterator[tuple[str, dict[str, str]]]:
    """The names that match one part of a template, with the values of its holes."""
    pattern, seen, end = "", set(holes), 0
    for hole in HOLE.finditer(part):
        pattern += re.escape(part[end : hole.start()])
        end = hole.end()
        if hole[1] in holes:
            pattern += re.escape(holes[hole[1]])
        elif hole[1] in seen:
            pattern += f"(?P={hole[1]})"
        else:
            pattern += f"(?P<{hole[1]}>{'.+' if hole[2] else '[^/]+'})"
        seen.add(hole[1])
    fits = re.compile(pattern + re.escape(part[end:]))
    between = HOLE.split(part)[3:-1:3]
    for name in names:
        if math.prod(max(1, name.count(text)) for text in between) > MOST_WAYS:
            raise ValueError(
                f"{name[:60]!r} may fit {part[:60]!r} in too many ways; put other text "
                "between its holes"
            )
        match = fits.fullmatch(name)
        if match is not None:
            yield name, match.groupdict()
