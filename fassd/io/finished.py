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

OUTPUT_ENDINGS = {"labels": "_color.png", "overlay": "_overlay.png", "trainids": "_trainids.png"}
"""Endings of the files that `fassd predict` writes for a picture, by what they show; the record
names the first."""

FURTHER_ENDINGS = {
    "label-ids": "_labelids.png",
    "confidence": "_confidence.png",
    "npz": "_probabilities.npz",
    "tiff": "_probabilities.tif",
}
"""Endings of further files on request: ids of a card, certainties, probabilities."""

STRIP_ENDINGS = {"trainids": "_trainids.tif", "overlay": "_overlay.tif"}
STRIP_FURTHER_ENDINGS = {"label-ids": "_labelids.tif", "confidence": "_confidence.tif"}
"""The same for a picture that is segmented in strips."""

VIDEO_ENDINGS = {
    "overlay": "_overlay.mp4",
    "labels": "_labels.mp4",
    "side-by-side": "_side-by-side.mp4",
    "trainids": "_trainids.mkv",
}
"""The same for the videos that it writes into a folder, by their view."""

TOGETHER = (
    (*OUTPUT_ENDINGS.values(), *FURTHER_ENDINGS.values()),
    (*STRIP_ENDINGS.values(), *STRIP_FURTHER_ENDINGS.values()),
    *((ending,) for ending in VIDEO_ENDINGS.values()),
)
"""Endings of the files of one source, of which the record has the first."""

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
        for endings in TOGETHER:
            ending = next((each for each in endings if file.name.endswith(each)), None)
            if ending is not None:
                noted = Path(os.path.abspath(file).removesuffix(ending) + endings[0])
                return any(
                    noted.relative_to(folder).as_posix() in self._names(folder)
                    for folder in noted.parents
                )
        return False

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
