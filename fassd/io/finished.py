"""Record of the finished files of an output folder, so that an interrupted run can continue."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

RECORD = ".fassd-predict.jsonl"
"""Name of the record in an output folder: one JSON object per line, of which the last counts."""

OUTPUT_ENDINGS = ("_color.png", "_overlay.png", "_trainids.png")
"""Endings of the files that `fassd predict` writes for a picture; the record names the first."""

LABEL_IDS_ENDING = "_labelids.png"
CONFIDENCE_ENDING = "_confidence.png"
PROBABILITIES_ENDINGS = {"npz": "_probabilities.npz", "tiff": "_probabilities.tif"}
"""Further endings: ids of a card, certainties, probabilities by the kind of file."""

STRIP_ENDINGS = ("_trainids.tif", "_overlay.tif")
"""The same for a picture that is segmented in strips."""

STRIP_IDS_ENDING = "_labelids.tif"
STRIP_CONFIDENCE_ENDING = "_confidence.tif"

VIDEO_ENDINGS = {
    "overlay": "_overlay.mp4",
    "labels": "_labels.mp4",
    "side-by-side": "_side-by-side.mp4",
    "trainids": "_trainids.mkv",
}
"""The same for the videos that it writes into a folder, by their view."""

Stamp = list[list[Any]]


def stamp(paths: Sequence[str | os.PathLike[str]]) -> Stamp:
    """Path, size in bytes and time of change in ns of files, which show whether they changed.

    Raises:
        OSError: a file does not exist.
    """
    stats = [(os.path.abspath(path), os.stat(path)) for path in paths]
    return [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats]


class Record:
    """The finished files of one output folder.

    A file is finished if its source, the `settings` that determine its results, and the results
    themselves are unchanged since they were written. Several processes may add at the same time; a
    line that was cut off when a process was killed is ignored.

    Args:
        folder: output folder, which need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / RECORD
        self._finished = _read(self.path)

    def holds(
        self, name: str, source: Stamp, settings: Mapping[str, Any], results: Sequence[Path]
    ) -> bool:
        """True if the results of this source exist, made with these settings."""
        return self._finished.get(name) == _key(source, settings) and all(
            path.is_file() and path.stat().st_size for path in results
        )

    def add(self, name: str, source: Stamp, settings: Mapping[str, Any]) -> None:
        """Record that a source's results are written; `source` is its stamp from before reading."""
        self._append(name, _key(source, settings))

    def begin(self, name: str) -> None:
        """Record that the results of a source are about to be written, or replaced."""
        if self._finished.get(name) != "":
            self._append(name, "")

    def _append(self, name: str, key: str) -> None:
        self._finished[name] = key
        line = json.dumps({"name": name, "key": key})
        # A line feed in front ends a line that a killed process may have left. Text that is
        # appended in one call is not mixed with what other processes append.
        with open(self.path, "ab", buffering=0) as file:
            file.write(f"\n{line}\n".encode())


class WrittenFiles:
    """The files that `fassd predict` wrote, according to the records in the folders around them.

    Use `file in results`; each record is read once.
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
            self._listed[folder] = _read(folder / RECORD).keys()
        return self._listed[folder]


def _read(path: Path) -> dict[str, str]:
    """The keys of a record's names; invalid lines are ignored."""
    found: dict[str, str] = {}
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            entry = json.loads(line)
            found[str(entry["name"])] = entry["key"]
    return found


def _key(source: Stamp, settings: Mapping[str, Any]) -> str:
    text = json.dumps([source, settings], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
