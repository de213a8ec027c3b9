"""Packages that single formats need, and their chatter."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

EXTRA = "pip install 'fassd-net[export]'"


def need(name: str) -> Any:
    """Import a package.

    Raises:
        ImportError: it is missing; the message says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"this format needs {name} ({error}): {EXTRA}") from error


@contextmanager
def quiet(level: int, *names: str) -> Iterator[None]:
    """No warnings, and of some loggers no records below a level."""
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
