"""Tables in documents, between two marks."""

from __future__ import annotations

import re

__all__ = ["replaced"]


def replaced(text: str, begin: str, end: str, rows: str) -> str:
    """The document with `rows` between its marks.

    Raises:
        ValueError: the marks are not there once.
    """
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    changed, count = re.subn(pattern, lambda _: begin + rows + end, text, flags=re.S)
    if count != 1:
        raise ValueError(f"the document must have {begin!r} and {end!r} once, found {count}")
    return changed
