"""Which files of an output folder are finished, so that a run that was killed can go on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["RECORD", "Record", "stamp"]

RECORD = ".fassd-predict.jsonl"
"""Name of the record in an output folder: one JSON object a line, the last of a name counts."""

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
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / RECORD
        self._finished: dict[str, str] = {}
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                self._finished[entry["name"]] = entry["key"]
            except (ValueError, KeyError, TypeError):
                continue

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

    def forget(self, name: str) -> None:
        """Note that the results of a source are about to be replaced."""
        if self._finished.get(name):
            self._append(name, "")

    def _append(self, name: str, key: str) -> None:
        self._finished[name] = key
        line = json.dumps({"name": name, "key": key})
        # A line feed in front ends what a killed process may have left. What is appended in one
        # call stays whole beside what others append.
        with self.path.open("ab", buffering=0) as file:
            file.write(f"\n{line}\n".encode())


def _key(source: Stamp, settings: Mapping[str, Any]) -> str:
    text = json.dumps([source, settings], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
