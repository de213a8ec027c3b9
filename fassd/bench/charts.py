"""The charts of `fassd bench`: speed-ups of every candidate, time by layer or by launch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fassd.bench.candidates import REFERENCE
from fassd.bench.launches import LaunchReport
from fassd.bench.layers import LayerReport
from fassd.bench.report.charts import (
    BLACK,
    COLOURS,
    Marks,
    bar_rows,
    check_matplotlib,
    layer_figure,
    png,
    row_figure,
)
from fassd.bench.report.figures import Way, bars_by_way
from fassd.bench.report.results import Figure, ResultsFile, job_of
from fassd.bench.run import Report
from fassd.io.files import replacing


def draw(path: Path, report: Report | LayerReport | LaunchReport) -> None:
    """Draw a report of `fassd bench` as PNG; the file is replaced when the new one is complete.

    Raises:
        ImportError: matplotlib is not installed.
    """
    check_matplotlib()
    if isinstance(report, LaunchReport):
        figure = launch_figure(report)
    elif isinstance(report, LayerReport):
        figure = layer_figure(report.to_json())
    else:
        figure = speedup_figure(report.to_json())
    with replacing(path) as file:
        file.write(png(figure))


def speedup_figure(content: Mapping[str, Any]) -> Any:
    """The speed-up of each candidate of a peers `Report` over plain PyTorch in NCHW.

    One row of groups of bars for each size and batch, a group for each network. Candidates that
    disagree, or were not timed together with plain PyTorch, have no bar.

    Args:
        content: result of `Report.to_json`.
    """
    source = ResultsFile("", "comparisons", content)
    places: dict[str, list[Figure]] = {}
    ways: dict[Way, None] = {}  # each once, in their order
    for index, comparison in enumerate(content["comparisons"]):
        figure = source.at("comparisons", index)
        places.setdefault(job_of(figure).shape, []).append(figure)
        for result in comparison["results"]:
            if result["key"] != REFERENCE:
                way = Way(result["name"], result["key"], result["dtype"], result["output"])
                ways[way] = None
    rows = [
        (
            place,
            [job_of(comparison).model for comparison in comparisons],
            bars_by_way(comparisons, list(ways)),
        )
        for place, comparisons in places.items()
    ]
    where = source.environment
    return bar_rows(
        rows,
        title="Speed-up over plain PyTorch (NCHW, float32)\n"
        f"{where['cpu']}, {where['threads']} threads, torch {where['torch']}, {where['date'][:10]}",
    )


def launch_figure(report: LaunchReport) -> Any:
    """The predicted time of a GPU's launches, their floor, and the measured time if available."""
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
