"""Packages that single formats need."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["EXTRA", "need"]

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
