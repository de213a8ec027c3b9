"""Measurements of the peers and of the kernels, and what their programs share: files and cells."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fassd.bench.markdown import markdown_table
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


def output_of(command: Sequence[str]) -> str:
    """Standard output of a short command; empty if it fails or does not exist."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=20, cwd=ROOT, check=True
        )
    except (subprocess.SubprocessError, OSError):
        return ""
    return done.stdout.strip()


# --- tables ---------------------------------------------------------------------------------------

Record = Mapping[str, Any]
Columns = Mapping[str, Callable[[Any], str]]
"""Functions that make a row's cell, by the title of the column."""

NONE = "-"


def table(columns: Columns, rows: Iterable[Any]) -> str:
    cells = [[cell(row) for cell in columns.values()] for row in rows]
    return "".join(f"{line}\n" for line in markdown_table(list(columns), cells))


def escape(text: str) -> str:
    """`text` for a table's cell: one line, no bars."""
    return " ".join(text.split()).replace("|", "\\|")


def scaled(name: str, unit: float = 1, digits: int = 0) -> Callable[[Record], str]:
    """The cell of a figure of the row, times a unit."""

    def cell(row: Record) -> str:
        value = row.get(name)
        return NONE if value is None else f"{unit * value:.{digits}f}"

    return cell


def number(value: float | None) -> str:
    """Four significant digits, without an exponent."""
    if value is None:
        return NONE
    digits = max(0, 3 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:.{digits}f}"


def matches(match: Any) -> str:
    return "yes" if match else "**NO**"
