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
from fassd.bench import plotting
from fassd.bench.plotting import Bars, grouped_bars

COLOURS = {
    FOLDED: plotting.COLOURS["grey"],
    CUDNN_RELU: plotting.COLOURS["yellow"],
    COMPILE: plotting.COLOURS["sky"],
    MAX_AUTOTUNE: plotting.COLOURS["green"],
    TRITON: plotting.COLOURS["orange"],
    TRITON_GRAPH: plotting.COLOURS["purple"],
    NATIVE: plotting.COLOURS["vermilion"],
    DEPENDENT: plotting.COLOURS["blue"],
    CHOSEN: plotting.BLACK,
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
    from fassd.bench.charts import check_matplotlib
    from fassd.io.images import replacing

    panels = {part: subjects_of(report, part) for part in PARTS}
    panels = {part: subjects for part, subjects in panels.items() if subjects}
    if not panels:
        return None
    check_matplotlib()
    from matplotlib.figure import Figure

    groups = max(map(len, panels.values()))
    # Inches: a bar holds its figure, upright at 7 points; a group is as wide as its name at least.
    size = (max(8.0, 1.5 + 1.4 * groups), 1.5 + 3.4 * len(panels))
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(f"Speed-up over eager PyTorch\n{report['device']}, {report['date'][:10]}")
    every_axes = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axes, (part, subjects) in zip(every_axes, panels.items(), strict=True):
        draw_groups(axes, subjects)
        first = next(iter(subjects.values()))[0]
        axes.set_title(f"{part}, {first.picture} {first.case['dtype']}", fontsize=10)
    handles = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, fontsize=9)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=110)
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


def draw_groups(axes: Any, subjects: Mapping[str, Sequence[Row]]) -> None:
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
    # "HarDBlock base.4" in two lines, "MDA(63, 2)" in one.
    names = [name.replace(" ", "" if "(" in name else "\n") for name in subjects]
    grouped_bars(axes, names, series)
    axes.tick_params("x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
