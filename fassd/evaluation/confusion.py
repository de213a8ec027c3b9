"""Confusion matrices as files: counts as CSV, and a heat map."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fassd.io.files import replacing
from fassd.io.packages import need

FIGURES_UP_TO = 25
"""Largest number of classes with a figure in each cell of the heat map; more are not legible."""


def write_csv(path: Path, matrix: npt.NDArray[np.integer], class_names: Sequence[str]) -> None:
    """Write counts: a row for each true class, a column for each predicted one.

    Args:
        path: path of the file; it is replaced only when the new one is complete.
        matrix: (C, C) integers, [truth, prediction].
        class_names: names of the C classes.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["truth \\ prediction", *class_names])
    for name, row in zip(class_names, matrix.tolist(), strict=True):
        table.writerow([name, *row])
    with replacing(path) as file:
        file.write(text.getvalue().encode())


def write_heat_map(
    path: Path, matrix: npt.NDArray[np.integer], class_names: Sequence[str], title: str = ""
) -> None:
    """Draw, as PNG, the share of each true class's pixels that is predicted as each class.

    Args:
        path: path of the file; it is replaced only when the new one is complete.
        matrix: (C, C) counts, [truth, prediction]; rows are normalised, an empty one stays blank.
        class_names: names of the C classes.
        title: title above the map.

    Raises:
        ImportError: matplotlib is not installed; the message says how to install it.
    """
    figures = need("matplotlib.figure", "the heat map needs", "train")
    shares = _percent_of_rows(matrix)
    with_figures = len(class_names) <= FIGURES_UP_TO
    # In inches: a cell has room for three digits at 8 points, and for its name beside it.
    side = 3 + (0.42 if with_figures else 0.17) * max(len(class_names), 8)
    figure = figures.Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    positions = range(len(class_names))
    axes.set_xticks(positions, class_names, rotation=90, parse_math=False)
    axes.set_yticks(positions, class_names, parse_math=False)
    axes.set_xlabel("prediction")
    axes.set_ylabel("truth")
    axes.set_title(title, parse_math=False)
    for row, column in np.argwhere(np.nan_to_num(shares) >= 0.5) if with_figures else ():
        share = shares[row, column]
        color = "white" if share > 55 else "black"
        axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=8, color=color)
    figure.colorbar(drawn, ax=axes, label="% of the true class's pixels", shrink=0.8)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=110)


def _percent_of_rows(matrix: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """Each row in per cent of its sum; NaN, which is drawn blank, for an empty row."""
    sums = matrix.sum(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return 100 * matrix / sums
