"""The plots of `fassd bench`: speed-ups of every candidate, a network's time by layer or launch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fassd.images import replacing
from fassd.launch_report import LaunchReport
from fassd.layer_report import LayerReport
from fassd.peer_report import Comparison, PeerReport
from fassd.peers import EXTRA, OURS, REFERENCE, Candidate

__all__ = ["check_matplotlib", "draw", "draw_launches", "draw_layers", "draw_speedups"]

# Okabe and Ito's colours, which colour-blind readers tell apart; greys for plain PyTorch. Bars of
# one colour that differ in their output or precision are told apart by hatching.
COLOURS = {
    "channels_last": "#999999",
    "inductor": "#56B4E9",
    "onnxruntime": "#009E73",
    "openvino": "#E69F00",
    "openvino_bf16": "#E69F00",
    (OURS, "float32"): "#D55E00",
    (OURS, "float16"): "#CC79A7",
    (OURS, "bfloat16"): "#0072B2",
}
HATCH = "////"


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

    rows: dict[tuple[Any, ...], list[Comparison]] = {}
    for comparison in report.comparisons:
        rows.setdefault((comparison.job.size, comparison.job.batch), []).append(comparison)
    shown = {
        result.candidate.title: result.candidate
        for comparison in report.comparisons
        for result in comparison.results
        if result.candidate.key != REFERENCE
    }
    groups = max(map(len, rows.values()))
    # Inches: a bar holds its figure, upright at 7 points; a group is as wide as its name at least.
    width = max(7.5, 1.5 + groups * max(1.4, 0.17 * (len(shown) + 1.5)))
    figure = Figure(figsize=(width, 1.3 + 3.4 * len(rows)), layout="constrained")
    where = report.environment
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


def _draw_groups(axes: Any, comparisons: Sequence[Comparison], shown: Sequence[Candidate]) -> None:
    step = 1 / (len(shown) + 1.5)  # the unit is a group; a bar and a half stay free between two
    for index, candidate in enumerate(shown):
        offset = (index - (len(shown) - 1) / 2) * step
        heights = [_speedup(comparison, candidate) for comparison in comparisons]
        colour = COLOURS.get(candidate.key) or COLOURS[candidate.key, candidate.dtype]
        hatched = candidate.output == "labels" or candidate.key == "openvino_bf16"
        bars = axes.bar(
            [group + offset for group in range(len(comparisons))],
            [height or 0 for height in heights],
            width=step,
            color=colour,
            edgecolor="white",
            linewidth=0.5,
            hatch=HATCH if hatched else None,
            label=candidate.title,
        )
        figures = ["" if height is None else f"{height:.2f}" for height in heights]
        axes.bar_label(bars, figures, rotation=90, padding=3, fontsize=7)
    axes.axhline(1, color="black", linewidth=1, linestyle="--")
    axes.set_xticks(range(len(comparisons)), [c.job.model for c in comparisons])
    axes.set_ylabel("times as fast")
    axes.margins(x=0.02, y=0.18)  # above: room for the tallest bar's figure
    axes.spines[["top", "right"]].set_visible(False)


def _speedup(comparison: Comparison, candidate: Candidate) -> float | None:
    found = (r for r in comparison.results if r.candidate.title == candidate.title)
    result = next(found, None)
    return None if result is None else comparison.speedup(result, comparison.eager)


def draw_layers(path: Path, report: LayerReport) -> None:
    """Draw, as PNG, the time of every fused call, with its prediction and arithmetic floor marked.

    Args:
        path: the file; it is replaced only when the new one is complete.

    Raises:
        ImportError: matplotlib is not installed.
    """
    check_matplotlib()
    from matplotlib.figure import Figure

    layers, where, job = report.layers, report.environment, report.job
    figure = Figure(figsize=(9, 2 + 0.26 * len(layers)), layout="constrained")
    axes = figure.add_subplot()
    rows = range(len(layers))
    measured = [1e3 * layer.timing.median for layer in layers]
    predicted = [1e3 * layer.prediction.seconds for layer in layers]
    floors = [1e3 * layer.prediction.arithmetic for layer in layers]
    axes.barh(rows, measured, color="#56B4E9", label="measured, median")
    axes.plot(predicted, rows, "D", color="#D55E00", markersize=5, label="predicted")
    axes.plot(floors, rows, "|", color="black", markersize=11, label="floor: arithmetic alone")
    axes.set_yticks(rows, [f"{layer.call.name}  ({layer.call.kind})" for layer in layers])
    axes.invert_yaxis()
    axes.set_xlabel("ms")
    figure.legend(loc="outside lower center", ncols=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(
        f"{job.model}, {job.batch}x3x{job.size[0]}x{job.size[1]}, {job.dtype}, labels out\n"
        f"{where['cpu']}, {where['threads']} threads, {where['date'][:10]}",
        fontsize=11,
    )
    _save(path, figure)


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
