"""Optional packages, and the silencing of their messages."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def need(name: str, sentence: str = "this format needs", extra: str = "export") -> Any:
    """Import an optional package.

    Args:
        name: name of the module.
        sentence: beginning of the error.
        extra: extra of this project that installs the package.

    Raises:
        ImportError: the package is missing; the message says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = (error.name or name).partition(".")[0]
        if not isinstance(error, ModuleNotFoundError):  # the package exists, but is broken
            package = f"{package} ({error})"
        remedy = f"pip install 'fassd-net[{extra}]'"
        raise ImportError(f"{sentence} {package}: {remedy}") from error


@contextmanager
def quiet(level: int, *names: str) -> Iterator[None]:
    """Suppress warnings, and records below a level from some loggers, within the block."""
    before = {log: log.level for log in map(logging.getLogger, names)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for log in before:
                log.setLevel(level)
            yield
    finally:
        for log, own in before.items():
            log.setLevel(own)
