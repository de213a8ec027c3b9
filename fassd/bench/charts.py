"""The plots of `fassd bench`: speed-ups of every candidate, a network's time by layer or launch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fassd.bench.candidates import EXTRA, OURS, REFERENCE
from fassd.bench.launches import LaunchReport
from fassd.bench.layers import LayerReport
from fassd.bench.peers import PeerReport
from fassd.bench.plotting import COLOURS, Bars, grouped_bars, layer_figure
from fassd.bench.results import OTHER, JobResults, Result
from fassd.io.files import replacing

__all__ = ["check_matplotlib", "draw", "draw_launches", "draw_layers", "draw_speedups"]

# Bars of one colour that differ in their output or precision are told apart by hatching.
SERIES_COLOURS = {
    "channels_last": COLOURS["grey"],
    "amp": COLOURS["yellow"],
    "compile": COLOURS["sky"],
    "max_autotune": COLOURS["green"],
    "tensorrt": COLOURS["orange"],
    "inductor": COLOURS["sky"],
    "onnxruntime": COLOURS["green"],
    "openvino": COLOURS["orange"],
    "openvino_bf16": COLOURS["orange"],
    (OURS, "float32"): COLOURS["vermilion"],
    (OURS, "float16"): COLOURS["purple"],
    (OURS, "bfloat16"): COLOURS["blue"],
}


def check_matplotlib() -> None:
    """See whether plots can be drawn.

    Raises:
        ImportError: matplotlib is not installed; the message says how to install it.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError(f"plots need matplotlib: {EXTRA}") from error


def draw(path: Path, report: PeerReport | LayerReport | LaunchReport) -> None:
    """Draw what suits the report, as PNG: `draw_speedups`, `draw_layers` or `draw_launches`."""
    if isinstance(report, LayerReport):
        draw_layers(path, report)
    elif isinstance(report, LaunchReport):
        draw_launches(path, report)
    else:
        draw_speedups(path, report)


def draw_speedups(path: Path, report: PeerReport) -> None:
    """Draw, as PNG, how many times faster than plain PyTorch in NCHW each candidate is.

    One row of groups of bars for each size and batch, a group for each network. Candidates that
    disagree, or were not timed beside plain PyTorch, have no bar.

    Args:
        path: the file; it is replaced only when the new one is complete.

    Raises:
        ImportError: matplotlib is not installed.
    """
    check_matplotlib()
    from matplotlib.figure import Figure

    rows: dict[tuple[Any, ...], list[JobResults]] = {}
    for comparison in report.results.comparisons:
        rows.setdefault((comparison.job.size, comparison.job.batch), []).append(comparison)
    shown = {
        result.name: result
        for comparison in report.results.comparisons
        for result in comparison.results
        if result.key != REFERENCE and result.kind != OTHER
    }
    groups = max(map(len, rows.values()))
    # Inches: a bar holds its figure, upright at 7 points; a group is as wide as its name at least.
    width = max(7.5, 1.5 + groups * max(1.4, 0.17 * (len(shown) + 1.5)))
    figure = Figure(figsize=(width, 1.3 + 3.4 * len(rows)), layout="constrained")
    where = report.results.environment
    figure.suptitle(
        f"Speed-up over plain PyTorch (NCHW, float32)\n{where['cpu']}, {where['threads']} threads, "
        f"torch {where['torch']}, {where['date'][:10]}",
        fontsize=11,
    )
    panels = figure.subplots(len(rows), squeeze=False)[:, 0]
    for axes, ((size, batch), comparisons) in zip(panels, rows.items(), strict=True):
        _draw_groups(axes, comparisons, list(shown.values()))
        axes.set_title(f"{batch}x3x{size[0]}x{size[1]}", fontsize=10)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=int(width / 2), fontsize=9)
    _save(path, figure)


def _draw_groups(axes: Any, comparisons: Sequence[JobResults], shown: Sequence[Result]) -> None:
    series = [
        Bars(
            candidate.name,
            [_speedup(comparison, candidate.name) for comparison in comparisons],
            SERIES_COLOURS.get(candidate.key) or SERIES_COLOURS[candidate.key, candidate.dtype],
            candidate.output == "labels"
            or (candidate.key != OURS and candidate.dtype != "float32"),
        )
        for candidate in shown
    ]
    grouped_bars(axes, [comparison.job.model for comparison in comparisons], series)
    axes.spines[["top", "right"]].set_visible(False)


def _speedup(comparison: JobResults, name: str) -> float | None:
    result = comparison.own.get(name)
    return None if result is None else comparison.speedup(result, comparison.reference)


def draw_layers(path: Path, report: LayerReport) -> None:
    """Draw, as PNG, the time of every fused call, with its prediction and arithmetic floor marked.

    Args:
        path: the file; it is replaced only when the new one is complete.

    Raises:
        ImportError: matplotlib is not installed.
    """
    check_matplotlib()
    _save(path, layer_figure(report.to_json()))


def draw_launches(path: Path, report: LaunchReport) -> None:
    """Draw, as PNG, the predicted time of a GPU's launches, their floor, and the time measured.

    Args:
        path: the file; it is replaced only when the new one is complete.

    Raises:
        ImportError: matplotlib is not installed.
    """
    check_matplotlib()
    from matplotlib.figure import Figure

    prediction = report.prediction
    groups = prediction.groups()
    figure = Figure(figsize=(9, 2 + 0.2 * len(groups)), layout="constrained")
    axes = figure.add_subplot()
    rows = range(len(groups))
    predicted = [1e6 * group.total("predicted") for group in groups]
    floors = [1e6 * group.total("floor") for group in groups]
    axes.barh(rows, predicted, color="#56B4E9", label="predicted")
    axes.plot(floors, rows, "|", color="black", markersize=9, label="floor")
    if prediction.replay is not None:
        measured = [1e6 * group.total("measured") for group in groups]
        axes.plot(measured, rows, "D", color="#D55E00", markersize=4, label="measured, median")
    names = [
        f"{group.label}  {group.first.channels}" + (f"  x{group.count}" if group.count > 1 else "")
        for group in groups
    ]
    axes.set_yticks(rows, names, fontsize=7)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlabel("us")
    figure.legend(loc="outside lower center", ncols=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(prediction.title, fontsize=11)
    _save(path, figure)


def _save(path: Path, figure: Any) -> None:
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=110)
