"""The picture of a report: how many times faster than eager everything is, at the first place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import (
    CHOSEN,
    COMPILE,
    CUDNN_RELU,
    DEPENDENT,
    FOLDED,
    MAX_AUTOTUNE,
    NATIVE,
    TITLES,
    TRITON,
    TRITON_GRAPH,
)
from benchmarks.rows import Row, rows_by_subject, speedup
from fassd.bench.report import charts
from fassd.bench.report.charts import BarRow, Bars, bar_rows, check_matplotlib, png
from fassd.io.images import replacing

COLOURS = {
    FOLDED: charts.COLOURS["grey"],
    CUDNN_RELU: charts.COLOURS["yellow"],
    COMPILE: charts.COLOURS["sky"],
    MAX_AUTOTUNE: charts.COLOURS["green"],
    TRITON: charts.COLOURS["orange"],
    TRITON_GRAPH: charts.COLOURS["purple"],
    NATIVE: charts.COLOURS["vermilion"],
    DEPENDENT: charts.COLOURS["blue"],
    CHOSEN: charts.BLACK,
}
PARTS = ("networks", "modules", "operators")


def draw(path: Path, report: Mapping[str, Any]) -> Path | None:
    """Draw, as PNG, the speed-ups at the place that the report measured first.

    Args:
        path: the file; it is replaced only when the new one is complete.
        report: what ``report.json`` holds.

    Returns:
        `path`, or None if there is nothing to draw.

    Raises:
        ImportError: matplotlib is not installed.
    """
    rows = [bar_row(part, subjects) for part in PARTS if (subjects := subjects_of(report, part))]
    if not rows:
        return None
    check_matplotlib()
    title = f"Speed-up over eager PyTorch\n{report['device']}, {report['date'][:10]}"
    with replacing(path) as file:
        file.write(png(bar_rows(rows, title=title)))
    return path


def subjects_of(report: Mapping[str, Any], part: str) -> dict[str, list[Row]]:
    """The rows of each subject of a part, at the first place where any was timed."""
    table = rows_by_subject(report, part)
    places = [place_of(row) for rows in table.values() for row in rows if figure_of(row)]
    if not places:
        return {}
    here = {
        name: [row for row in rows if place_of(row) == places[0]] for name, rows in table.items()
    }
    return {name: rows for name, rows in here.items() if any(map(figure_of, rows))}


def place_of(row: Row) -> tuple[str, str]:
    return row.picture, row.case["dtype"]


def figure_of(row: Row) -> float | None:
    """The speed-up; None where it is not known."""
    return speedup(row.form, row.eager) if "timing" in row.form else None


def bar_row(part: str, subjects: Mapping[str, Sequence[Row]]) -> BarRow:
    """A group of bars for each subject, a bar for each form that has a figure anywhere."""
    figures = {
        form: [
            next((figure_of(row) for row in rows if row.form["name"] == form), None)
            for rows in subjects.values()
        ]
        for form in COLOURS
    }
    series = [
        Bars(TITLES[form], heights, COLOURS[form])
        for form, heights in figures.items()
        if any(heights)
    ]
    first = next(iter(subjects.values()))[0]
    # "HarDBlock base.4" in two lines, "MDA(63, 2)" in one.
    names = [name.replace(" ", "" if "(" in name else "\n") for name in subjects]
    return f"{part}, {first.picture} {first.case['dtype']}", names, series
