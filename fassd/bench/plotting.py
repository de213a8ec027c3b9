"""What the plots of `fassd bench` and `fassd report` share: colours, ink and paper, and bars."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = ["BLACK", "COLOURS", "WHITE", "Bars", "grouped_bars", "layer_figure", "new_figure"]

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
}
"""Okabe and Ito's colours, which colour-blind readers tell apart, and two greys for plain PyTorch.
Where two series share one, hatching or the marker tells them apart."""

HATCH = "////"
BLACK, WHITE = "#000000", "#ffffff"


@contextmanager
def themed(ink: str, paper: str) -> Iterator[None]:
    """New figures in `ink` on `paper` while this lasts."""
    import matplotlib as mpl

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
        yield


def new_figure(size: tuple[float, float], ink: str = BLACK, paper: str = WHITE) -> Any:
    """An empty figure of so many inches, whose axes are to be made inside `themed`."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained", facecolor=paper, edgecolor=ink)


@dataclass(frozen=True)
class Bars:
    """One bar for each group.

    Attributes:
        label: in the legend.
        heights: of each group; None leaves it out.
        colour: a value of `COLOURS`.
        hatched: whether it is hatched.
    """

    label: str
    heights: Sequence[float | None]
    colour: str
    hatched: bool = False


def grouped_bars(
    axes: Any,
    groups: Sequence[str],
    series: Sequence[Bars],
    *,
    unit: str = "times as fast",
    form: str = "{:.2f}",
    line: float | None = 1,
    ink: str = BLACK,
    paper: str = WHITE,
) -> None:
    """Draw a group of bars for each name, each bar with its figure above it, upright.

    Args:
        unit: of the vertical axis.
        form: of the figures.
        line: a height at which a dashed line is drawn; None draws none.
    """
    step = 1 / (len(series) + 1.5)  # the unit is a group; a bar and a half stay free between two
    for index, bars in enumerate(series):
        offset = (index - (len(series) - 1) / 2) * step
        drawn = axes.bar(
            [group + offset for group in range(len(groups))],
            [height or 0 for height in bars.heights],
            width=step,
            color=bars.colour,
            edgecolor=paper,
            linewidth=0.5,
            hatch=HATCH if bars.hatched else None,
            label=bars.label,
        )
        figures = ["" if height is None else form.format(height) for height in bars.heights]
        axes.bar_label(drawn, figures, rotation=90, padding=3, fontsize=7, color=ink)
    if line is not None:
        axes.axhline(line, color=ink, linewidth=1, linestyle="--")
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel(unit)
    axes.margins(x=0.02, y=0.18)  # above: room for the tallest bar's figure


def layer_figure(content: Mapping[str, Any], ink: str = BLACK, paper: str = WHITE) -> Any:
    """The time of every fused call with its prediction and floor.

    Args:
        content: what `fassd.bench.layers.LayerReport.to_json` gives.
        ink, paper: colours.
    """
    layers, where, job = content["layers"], content["environment"], content["job"]
    with themed(ink, paper):
        figure = new_figure((9, 2 + 0.26 * len(layers)), ink, paper)
        axes = figure.add_subplot()
        rows = range(len(layers))
        spread = [1e3 * layer["spread_s"] for layer in layers]
        axes.barh(
            rows,
            [1e3 * layer["median_s"] for layer in layers],
            xerr=spread,
            ecolor=ink,
            color=COLOURS["sky"],
            label="measured, median and half the interquartile range",
        )
        predicted = [1e3 * layer["predicted_s"] for layer in layers]
        floors = [1e3 * layer["arithmetic_floor_s"] for layer in layers]
        axes.plot(predicted, rows, "D", color=COLOURS["vermilion"], markersize=5, label="predicted")
        axes.plot(floors, rows, "|", color=ink, markersize=11, label="floor: arithmetic alone")
        axes.set_yticks(rows, [f"{layer['name']}  ({layer['kind']})" for layer in layers])
        axes.invert_yaxis()
        axes.set_xlabel("ms")
        axes.set_title(
            f"{job['model']}, {job['batch']}x3x{job['size'][0]}x{job['size'][1]}, {job['dtype']}, "
            f"labels out\n{where['cpu']}, {where['threads']} threads, {where['date'][:10]}",
            fontsize=11,
        )
        figure.legend(loc="outside lower center", ncols=3)
    return figure
