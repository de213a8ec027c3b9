"""A table of Markdown, and how figures are written in its cells."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from benchmarks.rows import Record
from fassd.bench.markdown import markdown_table

NONE = "-"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "".join(f"{line}\n" for line in markdown_table(header, rows))


def escape(text: str) -> str:
    """`text` for a table's cell: one line, no bars."""
    return " ".join(text.split()).replace("|", "\\|")


def number(value: float | None) -> str:
    """Four significant digits, without an exponent."""
    if value is None:
        return NONE
    digits = max(0, 3 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:.{digits}f}"


def spread(timing: Record) -> str:
    return f"{(timing['q3_ms'] - timing['q1_ms']) / timing['ms']:.1%}"


def times(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}x"


def share(part: float | None, whole: float) -> str:
    return NONE if part is None else f"{part / whole:.0%}"


def error(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"
