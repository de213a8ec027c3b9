"""The plots of the report, from plain numbers; each is drawn in any ink and on any paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from fassd.bench.plotting import COLOURS, Bars, grouped_bars, new_figure, themed

__all__ = ["Panel", "Point", "Series", "bar_figure", "line_figure", "scatter_figure"]


@dataclass(frozen=True)
class Point:
    """A network in the plot of speed and accuracy.

    Attributes:
        name: beside it.
        x, y: frames per second, mIoU in per cent.
        colour: a key of `COLOURS`.
        hollow: a quoted figure is hollow, a measured one is filled.
        before: x of the same network in plain PyTorch, from which an arrow leads here.
    """

    name: str
    x: float
    y: float
    colour: str
    hollow: bool = False
    before: float | None = None


@dataclass(frozen=True)
class Series:
    """A line.

    Attributes:
        label: in the legend.
        x, y: its points.
        colour: a key of `COLOURS`.
        marker: of matplotlib.
        dashed: whether the line is.
        spread: half the interquartile range of each y.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    marker: str = "o"
    dashed: bool = False
    spread: Sequence[float] | None = None


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title, x, y: headings; axes with their units.
        series: lines, or `points`.
        log: whether the horizontal axis is logarithmic, to base 2 with its ticks at the points.
        lines: horizontal lines: label, height, colour.
    """

    title: str
    x: str
    y: str
    series: Sequence[Series] = ()
    points: Sequence[Point] = ()
    log: bool = False
    ticks: Sequence[tuple[float, str]] = ()
    lines: Sequence[tuple[str, float, str]] = ()


def scatter_figure(panels: Sequence[Panel], ink: str, paper: str) -> Any:
    """Panels of points side by side, every point named."""
    with themed(ink, paper):
        figure = new_figure((5.4 * len(panels), 4.6), ink, paper)
        every_axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for panel, axes in zip(panels, every_axes, strict=True):
            draw_points(axes, panel, ink)
    return figure


def draw_points(axes: Any, panel: Panel, ink: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    if panel.log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    ys = [point.y for point in panel.points]
    axes.set_ylim(
        min(ys) - 0.12 * (max(ys) - min(ys)) - 0.4, max(ys) + 0.12 * (max(ys) - min(ys)) + 0.4
    )
    for point in panel.points:
        colour = COLOURS[point.colour]
        if point.before is not None:
            axes.annotate(
                "",
                (point.x, point.y),
                (point.before, point.y),
                arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.2, "shrinkB": 4},
            )
            axes.plot(point.before, point.y, "|", color=colour, markersize=9)
        axes.plot(
            point.x,
            point.y,
            "o",
            markersize=8,
            markerfacecolor="none" if point.hollow else colour,
            markeredgecolor=colour,
            markeredgewidth=1.8,
        )
    axes.margins(x=0.22)
    if not panel.log:
        axes.set_xlim(left=0)
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y)
    axes.set_title(panel.title, fontsize=11)
    axes.grid(alpha=0.25)
    name_points(axes, panel.points, ink)


SIDES = (
    ((9, 0), "left", "center"),
    ((-9, 0), "right", "center"),
    ((0, 9), "center", "bottom"),
    ((0, -9), "center", "top"),
    ((7, 7), "left", "bottom"),
    ((-7, -7), "right", "top"),
    ((7, -7), "left", "top"),
    ((-7, 7), "right", "bottom"),
)
"""Where a name may stand: offset in points from its own, and alignment."""


def name_points(axes: Any, points: Sequence[Point], ink: str) -> None:
    """Write each name where it meets neither a point nor another name, as far as there is room."""
    figure = axes.figure
    figure.draw_without_rendering()
    places = axes.transData.transform([(point.x, point.y) for point in points])
    radius = 6 * figure.dpi / 72
    taken = [(x - radius, y - radius, x + radius, y + radius) for x, y in places]
    for point in points:
        if point.before is not None:
            tail, head = axes.transData.transform([(point.before, point.y), (point.x, point.y)])
            taken.append((tail[0], tail[1] - radius / 3, head[0], head[1] + radius / 3))
    frame = axes.get_window_extent()
    for point in points:
        best: tuple[float, Any] | None = None
        for offset, horizontal, vertical in SIDES:
            name = axes.annotate(
                point.name,
                (point.x, point.y),
                xytext=offset,
                textcoords="offset points",
                ha=horizontal,
                va=vertical,
                fontsize=8,
                color=ink,
            )
            box = name.get_window_extent().extents
            met = sum(overlap(box, other) for other in taken) + outside(box, frame.extents)
            if best is None or met < best[0]:
                if best is not None:
                    best[1].remove()
                best = (met, name)
            else:
                name.remove()
        if best is not None:
            taken.append(tuple(best[1].get_window_extent().extents))


def overlap(box: Sequence[float], other: Sequence[float]) -> float:
    """Area that two boxes (left, bottom, right, top) share."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    return max(width, 0.0) * max(height, 0.0)


def outside(box: Sequence[float], frame: Sequence[float]) -> float:
    """Area of a box that lies outside a frame."""
    return (box[2] - box[0]) * (box[3] - box[1]) - overlap(box, frame)


def line_figure(panels: Sequence[Panel], ink: str, paper: str) -> Any:
    """Panels of lines side by side, under one legend."""
    with themed(ink, paper):
        figure = new_figure((4.2 * len(panels) + 0.6, 4.2), ink, paper)
        every_axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for panel, axes in zip(panels, every_axes, strict=True):
            draw_lines(axes, panel, ink)
        handles = {
            label: handle
            for axes in every_axes
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(
            handles.values(), handles, loc="outside lower center", ncols=min(4, len(handles))
        )
    return figure


WIDE_TICK = 4  # characters of a label on the axis


def draw_lines(axes: Any, panel: Panel, ink: str) -> None:
    for line in panel.series:
        axes.errorbar(
            line.x,
            line.y,
            yerr=line.spread,
            color=COLOURS[line.colour],
            marker=line.marker,
            markersize=5,
            linestyle="--" if line.dashed else "-",
            capsize=2,
            label=line.label,
        )
    for label, height, colour in panel.lines:
        axes.axhline(height, color=COLOURS[colour], linestyle=":", linewidth=2, label=label)
    if panel.log:
        axes.set_xscale("log", base=2)
        axes.minorticks_off()
    if panel.ticks:
        axes.set_xticks([place for place, _ in panel.ticks], [text for _, text in panel.ticks])
        axes.tick_params("x", labelsize=8)
        if max(len(text) for _, text in panel.ticks) > WIDE_TICK:  # they would run into each other
            axes.tick_params("x", rotation=30)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y)
    axes.set_title(panel.title, fontsize=11)
    axes.grid(alpha=0.25)


def bar_figure(
    groups: Sequence[str],
    series: Sequence[Bars],
    unit: str,
    ink: str,
    paper: str,
    *,
    form: str = "{:.2f}",
    line: float | None = 1,
) -> Any:
    """Groups of bars under one legend, in as many rows as a page's width asks for."""
    least = 0.9 if len(series) < 5 else 0.17 * (len(series) + 1.5)  # inches of a group
    rows = ceil(len(groups) / max(1, int(BAR_WIDTH / least)))
    in_row = ceil(len(groups) / rows)
    with themed(ink, paper):
        figure = new_figure((BAR_WIDTH + 1.2, 1 + 2.7 * rows), ink, paper)
        every_axes = figure.subplots(rows, sharey=True, squeeze=False)[:, 0]
        for row, axes in enumerate(every_axes):
            shown = slice(row * in_row, (row + 1) * in_row)
            grouped_bars(
                axes,
                groups[shown],
                [replace(bars, heights=bars.heights[shown]) for bars in series],
                unit=unit,
                form=form,
                line=line,
                ink=ink,
                paper=paper,
            )
            axes.tick_params("x", labelsize=9)
        handles, labels = every_axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9)
    return figure


BAR_WIDTH = 8.0
"""Inches for the groups of a row."""
