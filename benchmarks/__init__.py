"""Measurements: what the peers cost, what the kernels cost, and how near the floor that is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fassd.io.files import replacing

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def slug(name: str) -> str:
    """A folder's name: ``NVIDIA H200`` becomes ``nvidia-h200``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def write_text(path: Path, text: str) -> None:
    """A reader, or a run after a crash, sees the old file or the new one, never half of it."""
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def refreshed(document: Path, begin: str, end: str, rows: str, check: bool) -> bool:
    """Put `rows` between the marks of a document, unless `check`; tell whether others were there.

    Raises:
        ValueError: the marks are not there once.
    """
    text = document.read_text()
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    changed, count = re.subn(pattern, lambda _: begin + rows + end, text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{document.name} must have {begin!r} and {end!r} once, found {count}")
    if not check:
        write_text(document, changed)
    return changed != text


def output_of(command: Sequence[str]) -> str:
    """Standard output of a short command; empty where it fails or is not there."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=20, cwd=ROOT, check=True
        )
    except (subprocess.SubprocessError, OSError):
        return ""
    return done.stdout.strip()
