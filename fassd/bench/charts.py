"""The charts of `fassd bench`: speed-ups of every candidate, time by layer or by launch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fassd.bench.candidates import REFERENCE
from fassd.bench.launches import LaunchReport
from fassd.bench.layers import LayerReport
from fassd.bench.peers import Comparison, PeerReport
from fassd.bench.report.charts import (
    BLACK,
    COLOURS,
    BarRow,
    Bars,
    Marks,
    bar_rows,
    candidate_colour,
    check_matplotlib,
    is_hatched,
    layer_figure,
    png,
    row_figure,
)
from fassd.io.images import replacing

__all__ = ["check_matplotlib", "draw"]


def draw(path: Path, report: PeerReport | LayerReport | LaunchReport) -> None:
    """Draw a report of `fassd bench` as PNG; the file is replaced when the new one is complete.

    Raises:
        ImportError: matplotlib is not installed.
    """
    check_matplotlib()
    if isinstance(report, LayerReport):
        figure = layer_figure(report.to_json())
    elif isinstance(report, LaunchReport):
        figure = launch_figure(report)
    else:
        figure = speedup_figure(report)
    with replacing(path) as file:
        file.write(png(figure))


def speedup_figure(report: PeerReport) -> Any:
    """How many times faster than plain PyTorch in NCHW each candidate is.

    One row of groups of bars for each size and batch, a group for each network. Candidates that
    disagree, or were not timed beside plain PyTorch, have no bar.
    """
    places: dict[str, list[Comparison]] = {}
    for comparison in report.comparisons:
        (height, width), batch = comparison.job.size, comparison.job.batch
        places.setdefault(f"{batch}x3x{height}x{width}", []).append(comparison)
    candidates = {
        result.candidate.title: result.candidate
        for comparison in report.comparisons
        for result in comparison.results
        if result.candidate.key != REFERENCE and result.candidate.other is None
    }
    rows: list[BarRow] = []
    for place, comparisons in places.items():
        speedups = [
            {r.candidate.title: c.speedup(r, c.eager) for r in c.results} for c in comparisons
        ]
        series = [
            Bars(
                name,
                [found.get(name) for found in speedups],
                COLOURS[candidate_colour(candidate.key, candidate.dtype)],
                is_hatched(candidate.key, candidate.dtype, candidate.output),
            )
            for name, candidate in candidates.items()
        ]
        rows.append((place, [comparison.job.model for comparison in comparisons], series))
    where = report.environment
    return bar_rows(
        rows,
        title="Speed-up over plain PyTorch (NCHW, float32)\n"
        f"{where['cpu']}, {where['threads']} threads, torch {where['torch']}, {where['date'][:10]}",
    )


def launch_figure(report: LaunchReport) -> Any:
    """The predicted time of a GPU's launches, their floor, and the time where it was measured."""
    prediction = report.prediction
    groups = prediction.groups()
    times = {
        what: [1e6 * group.total(what) for group in groups]
        for what in ("predicted", "floor", *(["measured"] if prediction.replay else []))
    }
    marks: list[Marks] = [("floor", times["floor"], "|", BLACK)]
    if prediction.replay is not None:
        marks.append(("measured, median", times["measured"], "D", COLOURS["vermilion"]))
    names = [
        f"{group.label}  {group.first.channels}" + (f"  x{group.count}" if group.count > 1 else "")
        for group in groups
    ]
    return row_figure(names, ("predicted", times["predicted"]), marks, "us", prediction.title)
