"""All kinds of charts, from plain numbers, drawn by matplotlib in any ink on any paper."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import ceil, cos, pi, sin
from typing import Any, NamedTuple

from fassd.bench.candidates import EXTRA, OURS, REFERENCE

COLOURS = {
    "grey": "#8c8c8c",
    "silver": "#c4c4c4",
    "sky": "#56B4E9",
    "green": "#009E73",
    "orange": "#E69F00",
    "vermilion": "#D55E00",
    "purple": "#CC79A7",
    "blue": "#0072B2",
    "yellow": "#F0E442",
    "brown": "#8C564B",
}
"""Okabe and Ito's colours, which colour-blind readers can distinguish, with two greys for plain
PyTorch and a brown. If two series share a colour, hatching or the marker distinguishes them."""

CANDIDATE_COLOURS: dict[str | tuple[str, str], str] = {
    REFERENCE: "grey",
    "channels_last": "silver",
    "amp": "yellow",
    "compile": "sky",
    "max_autotune": "green",
    "tensorrt": "orange",
    "inductor": "sky",
    "onnxruntime": "green",
    "openvino": "orange",
    "openvino_bf16": "orange",
    (OURS, "float32"): "vermilion",
    (OURS, "float16"): "purple",
    (OURS, "bfloat16"): "blue",
}
"""Keys of `COLOURS`, by the key of a `fassd.bench.candidates.Candidate`; ours with the dtype."""

HATCH = "////"
BLACK, WHITE = "#000000", "#ffffff"


def candidate_colour(key: str, dtype: str) -> str:
    """A candidate's key of `COLOURS`."""
    return CANDIDATE_COLOURS.get(key) or CANDIDATE_COLOURS[key, dtype]


def check_matplotlib() -> None:
    """Check that charts can be drawn.

    Raises:
        ImportError: matplotlib or adjustText is not installed; the message says how to install it.
    """
    try:
        import matplotlib.figure  # noqa: F401
        from adjustText import adjust_text  # noqa: F401
    except ImportError as error:
        package = (error.name or "matplotlib").partition(".")[0]
        raise ImportError(f"plots need {package}: {EXTRA}") from error


@contextmanager
def new_figure(size: tuple[float, float], ink: str = BLACK, paper: str = WHITE) -> Iterator[Any]:
    """An empty figure, its size in inches; axes made within the block are in `ink` on `paper`."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    settings: dict[Any, Any] = {
        **dict.fromkeys(inked, ink),
        "axes.facecolor": "none",
        "figure.facecolor": paper,
        "savefig.facecolor": paper,
        "legend.frameon": False,
        "hatch.color": paper,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 10.0,
    }
    with mpl.rc_context(settings):
        yield Figure(figsize=size, layout="constrained", facecolor=paper, edgecolor=ink)


def legend_below(figure: Any, columns: int, fontsize: float = 10) -> None:
    """One legend for all axes, under them."""
    handles = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles, loc="outside lower center", ncols=columns, fontsize=fontsize
    )


def png(figure: Any, dpi: int = 110, metadata: dict[str, str] | None = None) -> bytes:
    """A figure's PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata=metadata)
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------- bars


class Bars(NamedTuple):
    """One bar for each group, in a colour of `COLOURS`; None as its height leaves a bar out."""

    label: str
    heights: Sequence[float | None]
    colour: str
    hatched: bool = False


BAR_WIDTH = 8.0
"""Width in inches for the groups of a row."""


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
    """Groups of bars under one legend, in as many rows as the width requires.

    Args:
        groups: names of the groups.
        series: bars, each with its figure above it, upright.
        unit: label of the vertical axes.
        ink, paper: colours of text and background.
        form: format of the figures.
        line: height of a dashed line; None draws none.
    """
    least = 0.9 if len(series) < 5 else 0.17 * (len(series) + 1.5)  # inches of a group
    count = ceil(len(groups) / max(1, int(BAR_WIDTH / least)))
    in_row = ceil(len(groups) / count)
    step = 1 / (len(series) + 1.5)  # a group is 1 wide, and a bar and a half are free
    with new_figure((BAR_WIDTH + 1.2, 1 + 2.7 * count), ink, paper) as figure:
        every_axes = figure.subplots(count, sharey=True, squeeze=False)[:, 0]
        for row, axes in enumerate(every_axes):
            shown = slice(row * in_row, (row + 1) * in_row)
            names = groups[shown]
            for index, bars in enumerate(series):
                offset = (index - (len(series) - 1) / 2) * step
                heights = bars.heights[shown]
                drawn = axes.bar(
                    [group + offset for group in range(len(names))],
                    [height or 0 for height in heights],
                    width=step,
                    color=bars.colour,
                    edgecolor=paper,
                    linewidth=0.5,
                    hatch=HATCH if bars.hatched else None,
                    label=bars.label,
                )
                figures = ["" if height is None else form.format(height) for height in heights]
                axes.bar_label(drawn, figures, rotation=90, padding=3, fontsize=7, color=ink)
            if line is not None:
                axes.axhline(line, color=ink, linewidth=1, linestyle="--")
            axes.set_xticks(range(len(names)), names)
            axes.tick_params("x", labelsize=9)
            axes.set_ylabel(unit)
            axes.margins(x=0.02, y=0.18)  # room above for the tallest bar's figure
        legend_below(figure, 4, 9)
    return figure


# -------------------------------------------------------------------------------- points and lines


class Point(NamedTuple):
    """A network in the plot of speed and accuracy.

    Attributes:
        x, y: frames per second, and mIoU in per cent.
        colour: key of `COLOURS`.
        hollow: True for a hollow point, as for quoted figures; measured ones are filled.
        before: x of the same network in plain PyTorch, the start of an arrow to this point.
    """

    name: str
    x: float
    y: float
    colour: str
    hollow: bool = False
    before: float | None = None


class Series(NamedTuple):
    """A line in a colour of `COLOURS`; `spread` is half the interquartile range of each y."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    marker: str = "o"
    dashed: bool = False
    spread: Sequence[float] | None = None


class Chart(NamedTuple):
    """One pair of axes.

    Attributes:
        x, y: labels of the axes with their units.
        series, points: lines, or named points.
        log: True for a logarithmic horizontal axis, to base 2 for lines.
        ticks: positions and labels on the horizontal axis; without any, matplotlib chooses.
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


def scatter_figure(charts: Sequence[Chart], ink: str, paper: str) -> Any:
    """Panels of points side by side, every point named."""
    with new_figure((5.4 * len(charts), 4.6), ink, paper) as figure:
        every_axes = figure.subplots(1, len(charts), squeeze=False)[0]
        for chart, axes in zip(charts, every_axes, strict=True):
            draw_points(axes, chart)
        figure.draw_without_rendering()  # lays out the axes, in which names are placed
        for chart, axes in zip(charts, every_axes, strict=True):
            name_points(axes, chart.points, ink)
    return figure


def draw_points(axes: Any, chart: Chart) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    if chart.log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    for point in chart.points:
        colour = COLOURS[point.colour]
        if point.before is not None:
            arrow = {"arrowstyle": "-|>", "color": colour, "lw": 1.2, "shrinkB": 4}
            axes.annotate("", (point.x, point.y), (point.before, point.y), arrowprops=arrow)
            axes.plot(point.before, point.y, "|", color=colour, markersize=9)
        face = "none" if point.hollow else colour
        axes.plot(point.x, point.y, "o", ms=8, mfc=face, mec=colour, mew=1.8)
    ys = [point.y for point in chart.points]
    margin = 0.12 * (max(ys) - min(ys)) + 0.4
    axes.set_ylim(min(ys) - margin, max(ys) + margin)
    axes.margins(x=0.22)
    if not chart.log:
        axes.set_xlim(left=0)
    finish(axes, chart)


TURNS = [eighth * pi / 4 for eighth in range(8)]


def name_points(axes: Any, points: Sequence[Point], ink: str) -> None:
    """Write each name where it does not overlap a point, an arrow, or another name."""
    from adjustText import adjust_text

    pixels = axes.transData
    radius = 6 * axes.figure.dpi / 72
    taken: list[tuple[float, float]] = []  # positions, in pixels, covered by markers and arrows
    for point in points:
        x, y = pixels.transform((point.x, point.y))
        taken += [(x + radius * cos(turn), y + radius * sin(turn)) for turn in TURNS]
        if point.before is not None:
            tail, _ = pixels.transform((point.before, point.y))
            taken += [(tail + share / 30 * (x - tail), y) for share in range(31)]
    xs, ys = pixels.inverted().transform(taken).T
    names = [axes.text(p.x, p.y, p.name, fontsize=8, color=ink, va="center") for p in points]
    adjust_text(
        names,
        xs,
        ys,
        ax=axes,
        expand=(1.1, 1.3),
        force_static=(0.3, 0.6),
        force_text=(0.3, 0.4),
        iter_lim=500,  # not a time limit, which would make the picture vary
        arrowprops={"arrowstyle": "-", "color": ink, "lw": 0.5, "alpha": 0.5},
    )


def line_figure(charts: Sequence[Chart], ink: str, paper: str) -> Any:
    """Panels of lines side by side, under one legend."""
    with new_figure((4.2 * len(charts) + 0.6, 4.2), ink, paper) as figure:
        every_axes = figure.subplots(1, len(charts), squeeze=False)[0]
        for chart, axes in zip(charts, every_axes, strict=True):
            draw_lines(axes, chart)
        legend_below(figure, 4)
    return figure


WIDE_TICK = 4  # characters of a label on the axis


def draw_lines(axes: Any, chart: Chart) -> None:
    for line in chart.series:
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
    for label, height, colour in chart.lines:
        axes.axhline(height, color=COLOURS[colour], linestyle=":", linewidth=2, label=label)
    if chart.log:
        axes.set_xscale("log", base=2)
        axes.minorticks_off()
    if chart.ticks:
        axes.set_xticks([place for place, _ in chart.ticks], [text for _, text in chart.ticks])
        axes.tick_params("x", labelsize=8)
        if max(len(text) for _, text in chart.ticks) > WIDE_TICK:  # they would overlap
            axes.tick_params("x", rotation=30)
    axes.set_ylim(bottom=0)
    finish(axes, chart)


def finish(axes: Any, chart: Chart) -> None:
    axes.set_xlabel(chart.x)
    axes.set_ylabel(chart.y)
    axes.set_title(chart.title, fontsize=11)
    axes.grid(alpha=0.25)


# -------------------------------------------------------------------------------- horizontal bars


def layer_figure(content: Mapping[str, Any], ink: str = BLACK, paper: str = WHITE) -> Any:
    """The time of every fused call with its prediction and floor, from the top.

    Args:
        content: result of `fassd.bench.layers.LayerReport.to_json`.
        ink, paper: colours of text and background.
    """
    layers, where, job = content["layers"], content["environment"], content["job"]

    def milliseconds(key: str) -> list[float]:
        return [1e3 * layer[key] for layer in layers]

    rows = range(len(layers))
    with new_figure((9, 2 + 0.26 * len(layers)), ink, paper) as figure:
        axes = figure.add_subplot()
        axes.barh(
            rows,
            milliseconds("median_s"),
            xerr=milliseconds("spread_s"),
            ecolor=ink,
            color=COLOURS["sky"],
            label="measured, median and half the interquartile range",
        )
        marks = {"marker": "D", "linestyle": "", "color": COLOURS["vermilion"], "markersize": 5}
        axes.plot(milliseconds("predicted_s"), rows, label="predicted", **marks)
        marks |= {"marker": "|", "color": ink, "markersize": 11}
        axes.plot(
            milliseconds("arithmetic_floor_s"), rows, label="floor: arithmetic alone", **marks
        )
        axes.set_yticks(rows, [f"{layer['name']}  ({layer['kind']})" for layer in layers])
        axes.invert_yaxis()
        axes.set_xlabel("ms")
        size = "x".join(map(str, (job["batch"], 3, *job["size"])))
        axes.set_title(
            f"{job['model']}, {size}, {job['dtype']}, labels out\n"
            f"{where['cpu']}, {where['threads']} threads, {where['date'][:10]}",
            fontsize=11,
        )
        legend_below(figure, 3)
    return figure
