"""Which files of an output folder are finished, so that a run that was killed can go on."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from fassd.io.files import regular

RECORD = ".fassd-predict.jsonl"
"""Name of the record in an output folder: one JSON object a line, the last of a name counts."""

OUTPUT_ENDINGS = ("_color.png", "_overlay.png", "_trainids.png")
"""Endings of the files that `fassd predict` makes of a picture; the record names the first."""

LABEL_IDS_ENDING = "_labelids.png"
CONFIDENCE_ENDING = "_confidence.png"
PROBABILITIES_ENDINGS = {"npz": "_probabilities.npz", "tiff": "_probabilities.tif"}
"""Endings of further ones: ids of a card, certainties, probabilities by the kind of file."""

STRIP_ENDINGS = ("_trainids.tif", "_overlay.tif")
"""Likewise of a picture that it does in strips."""

STRIP_IDS_ENDING = "_labelids.tif"
STRIP_CONFIDENCE_ENDING = "_confidence.tif"

VIDEO_ENDINGS = {
    "overlay": "_overlay.mp4",
    "labels": "_labels.mp4",
    "side-by-side": "_side-by-side.mp4",
    "trainids": "_trainids.mkv",
}
"""Likewise of the videos that it writes into a folder, by what they show."""

UNSAFE = re.compile(r"[^\w\s{}\":,./\\-]")
Stamp = list[list[Any]]


def stamp(paths: Sequence[str | os.PathLike[str]]) -> Stamp:
    """What tells files from what they were before: path, size in bytes, time of change in ns.

    Raises:
        OSError: one of them is not there.
    """
    stats = [(os.path.abspath(path), os.stat(path)) for path in paths]
    return [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats]


class Record:
    """The finished files of one output folder.

    A file is finished if its source, what decides its results (`settings`), and the results
    themselves are as they were when they were written. Several processes may add at the same
    time; a line that was cut off when one was killed counts for nothing.

    Args:
        folder: the output folder, which need not exist.

    Raises:
        OSError: what has the record's name is a link, or no regular file.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / RECORD
        self._finished = _read(self.path)

    def holds(
        self, name: str, source: Stamp, settings: Mapping[str, Any], results: Sequence[Path]
    ) -> bool:
        """Whether the results of this source are there, made with these settings."""
        return self._finished.get(name) == _key(source, settings) and all(
            path.is_file() and path.stat().st_size for path in results
        )

    def add(self, name: str, source: Stamp, settings: Mapping[str, Any]) -> None:
        """Note that the results of a source are written; `source` as it was before it was read."""
        self._append(name, _key(source, settings))

    def begin(self, name: str) -> None:
        """Note that the results of a source are about to be written, or replaced."""
        if self._finished.get(name) != "":
            self._append(name, "")

    def _append(self, name: str, key: str) -> None:
        self._finished[name] = key
        # Written with escapes, a name means nothing to a shell that is made to read the record.
        line = UNSAFE.sub(
            lambda found: f"\\u{ord(found[0]):04x}", json.dumps({"name": name, "key": key})
        )
        # A line feed in front ends what a killed process may have left. What is appended in one
        # call stays whole beside what others append.
        with open(self.path, "ab", buffering=0, opener=regular) as file:
            file.write(f"\n{line}\n".encode())


class WrittenFiles:
    """The files that `fassd predict` wrote, as the records in the folders around them tell.

    `file in results` asks; each record is read once.
    """

    def __init__(self) -> None:
        self._listed: dict[Path, Set[str]] = {}

    def __contains__(self, file: Path) -> bool:
        further = (LABEL_IDS_ENDING, CONFIDENCE_ENDING, *PROBABILITIES_ENDINGS.values())
        of_pictures = (*OUTPUT_ENDINGS, *further)
        of_strips = (*STRIP_ENDINGS, STRIP_IDS_ENDING, STRIP_CONFIDENCE_ENDING)
        endings = (*of_pictures, *of_strips, *VIDEO_ENDINGS.values())
        ending = next((ending for ending in endings if file.name.endswith(ending)), None)
        if ending is None:
            return False
        noted = os.path.abspath(file)
        for together in (of_pictures, of_strips):
            if ending in together:
                noted = noted.removesuffix(ending) + together[0]
        return any(
            Path(noted).relative_to(folder).as_posix() in self._names(folder)
            for folder in Path(noted).parents
        )

    def _names(self, folder: Path) -> Set[str]:
        if folder not in self._listed:
            try:
                self._listed[folder] = _read(folder / RECORD).keys()
            except OSError:
                self._listed[folder] = frozenset()
        return self._listed[folder]


def _read(path: Path) -> dict[str, str]:
    """The keys of a record's names; lines that are none count for nothing."""
    found: dict[str, str] = {}
    try:
        with open(path, "rb", opener=regular) as file:
            for line in file:
                try:
                    entry = json.loads(line)
                    found[str(entry["name"])] = entry["key"]
                except (ValueError, KeyError, TypeError, RecursionError):
                    continue
    except FileNotFoundError:
        pass
    return found


def _key(source: Stamp, settings: Mapping[str, Any]) -> str:
    text = json.dumps([source, settings], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
