"""NVIDIA's tools that watch another program: where they are, and how they say that they cannot."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.peers import UnavailableError

FOLDER = Path("/usr/local/cuda/bin")


def find_tool(name: str) -> str:
    """The path of a tool of the CUDA toolkit.

    Raises:
        UnavailableError: it is not installed.
    """
    found = shutil.which(name) or shutil.which(FOLDER / name)
    if found is None:
        raise UnavailableError(f"{name} is not installed: neither on PATH nor in {FOLDER}")
    return found


def read_log(path: Path) -> str:
    """What a tool wrote; nothing where it wrote no file."""
    return path.read_text(errors="replace") if path.exists() else ""
