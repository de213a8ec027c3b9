"""Results on disk: one file per item, written as it ends, and the report that they merge into."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.environment import digest
from benchmarks.plan import Item
from benchmarks.report import render

SCHEMA = 2


class Store:
    """The folder of one card's results.

    Args:
        folder: gets ``report.json``, ``report.md``, ``configs/``, ``parts/`` and ``logs/``.
        identity: of the measuring machine, such as card, driver and torch; a saved result of
            another one is not taken up again.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str]) -> None:
        self.folder = folder
        self.identity = dict(identity)
        self.logs = folder / "logs"
        self.configs = folder / "configs"
        self._parts = folder / "parts"
        self._digests: dict[tuple[str, ...], str] = {}
        for path in (self.logs, self.configs, self._parts):
            path.mkdir(parents=True, exist_ok=True)

    def path(self, item: Item) -> Path:
        return self._parts / f"{item.name.replace('/', '.').replace(' ', '')}.json"

    def load(self, item: Item) -> dict[str, Any] | None:
        """The saved record, whatever its status, if it is of this machine and these sources."""
        try:
            record = json.loads(self.path(item).read_text())
        except (OSError, json.JSONDecodeError):
            return None
        return record if record["fingerprint"] == self.fingerprint(item) else None

    def save(self, item: Item, record: Mapping[str, Any]) -> None:
        saved = {**record, "fingerprint": self.fingerprint(item)}
        write_atomically(self.path(item), to_json(saved))

    def drop(self, items: Iterable[Item]) -> None:
        for item in items:
            self.path(item).unlink(missing_ok=True)

    def fingerprint(self, item: Item) -> dict[str, str]:
        """Of the sources as they were when this run first looked at them."""
        if item.sources not in self._digests:
            self._digests[item.sources] = digest(item.sources)
        return {**self.identity, "sources": self._digests[item.sources]}

    def publish(self, header: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> Path:
        """Write ``report.json`` and ``report.md``; return the latter's path."""
        report = {"schema": SCHEMA, **header, "items": list(records)}
        write_atomically(self.folder / "report.json", to_json(report))
        page = self.folder / "report.md"
        write_atomically(page, render(report))
        return page


def to_json(value: Any) -> str:
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def write_atomically(path: Path, text: str) -> None:
    """A reader, or a run after a crash, sees the old file or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)
