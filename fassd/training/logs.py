"""Logs of a run: CSV files that a resumed run continues, TensorBoard, and validation scenes.

The CSV files contain nothing that depends on the clock, so that a run that was interrupted and
resumed writes the same bytes as one that was not.
"""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fassd.data.card import Card
from fassd.data.dataset import Sample
from fassd.distributed import is_main
from fassd.evaluation.evaluate import Evaluation
from fassd.io.bands import shown
from fassd.io.files import replacing
from fassd.io.images import write_image
from fassd.io.palette import colorize
from fassd.io.panel import Tile, draw_panel
from fassd.training.recipe import Recipe

SHOWN_PICTURES = 3  # number of validation pictures drawn each time


class Done(NamedTuple):
    """A step that has not been logged yet.

    Attributes:
        step: number of the step, from 1.
        loss: this process's share of its loss.
        labelled: number of pictures over all processes that have a labelled pixel.
        paths: paths of this process's pictures.
        skipped: reasons why pictures were left out.
    """

    step: int
    loss: Tensor
    labelled: Tensor
    paths: list[Path]
    skipped: list[str]


class Reporter(Protocol):
    """Listener to a run; called in the main process only, except for `message`."""

    def started(self, recipe: Recipe, step: int) -> None: ...
    def stepped(self, step: int, loss: float, learning_rate: float) -> None: ...
    def validating(self, done: int, total: int) -> None: ...
    def validated(self, step: int, evaluations: Sequence[Evaluation], best: bool) -> None: ...
    def message(self, text: str) -> None: ...


class CSVLog:
    """A CSV file with a header, whose first column is the step.

    Rows of steps `after` a given one, left by an interrupted run, are removed; 0 starts the file
    anew.
    """

    def __init__(self, path: Path, columns: Sequence[str], after: int) -> None:
        self.path = path
        self.columns = list(columns)
        kept = [row for row in self._rows() if row and int(row[0]) <= after] if after else []
        self.waiting: list[Sequence[Any]] = []
        with replacing(path) as file:
            file.write(_lines([self.columns, *kept]))

    def _rows(self) -> list[list[str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))[1:]
        # A line that was interrupted while it was written has fewer cells.
        return [row for row in rows if len(row) == len(self.columns) and row[0].isdigit()]

    def write(self, rows: Sequence[Sequence[Any]]) -> None:
        """Append rows; they are on disk when this returns.

        Raises:
            OSError: they could not be written; the next call writes them again.
        """
        self.waiting += rows
        size = self.path.stat().st_size
        try:
            with self.path.open("ab") as file:
                file.write(_lines(self.waiting))
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            os.truncate(self.path, size)  # otherwise half a row would stay
            raise
        self.waiting = []


def _lines(rows: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def open_board(folder: Path, after: int) -> Any:
    """Open a TensorBoard writer; None, after a warning, if that is impossible.

    Values logged by an earlier part of the run after step `after` are hidden.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(folder), purge_step=after + 1 if after else None)
    except ImportError:
        why = "the package tensorboard is missing (pip install 'fassd-net[train]')"
    except UnicodeEncodeError:
        why = f"it takes no name that is not UTF-8: {folder}"
    warnings.warn(f"no TensorBoard logs: {why}", stacklevel=2)
    return None


class ScenePanel:
    """A few validation scenes, one per row: input, ground truth, prediction.

    The scenes are evenly spread over `indices`, the samples that this process validates.
    """

    def __init__(self, card: Card, indices: list[int]) -> None:
        self.card = card
        self.indices = indices[:: max(1, len(indices) // SHOWN_PICTURES)][:SHOWN_PICTURES]
        self.rows: dict[int, tuple[Sample, npt.NDArray[np.uint8]]] = {}

    def add(self, index: int, sample: Any, labels: npt.NDArray[np.uint8]) -> None:
        if index in self.indices and is_main():
            self.rows[index] = (sample, labels)

    def draw(self) -> npt.NDArray[np.uint8] | None:
        """(H, W, 3) uint8 RGB, or None if this process saw none of the scenes."""
        if not self.rows:
            return None
        colors = self.card.palette
        rows = [
            [
                Tile(sample.image if self.card.bands is None else shown(sample.image)),
                Tile(colorize(sample.labels, colors)),
                Tile(colorize(labels, colors)),
            ]
            for _, (sample, labels) in sorted(self.rows.items())
        ]
        return draw_panel(["input", "ground truth", "prediction"], rows, self.card.classes)


def _of_data(number: int) -> str:
    """Part of a log's name that stands for a data set of the run: empty for the first."""
    return "" if number == 1 else f".{number}"


class RunLogs:
    """The open logs of a run, in its main process.

    Every write goes through `guarded`, a function of a name, a function and its arguments that
    reports an OSError instead of raising it, and is True if there was none.

    `class_names` holds the class names of each data set that is validated on. Rows logged after
    `step`, the last step that the run has done, are removed, and if its validation is `pending`,
    those of its scores: a run that was killed may have written some.
    """

    def __init__(
        self,
        folder: Path,
        step: int,
        class_names: Sequence[Sequence[str]],
        guarded: Callable[..., bool],
        pending: bool = False,
    ) -> None:
        self.folder = folder
        self.guarded = guarded
        self.steps = CSVLog(folder / "log.csv", ["step", "learning_rate", "loss"], step)
        self.scores = []
        for number, names in enumerate(class_names, start=1):
            columns = ["step", "miou", "pixel_accuracy", *(f"iou/{name}" for name in names)]
            path = folder / f"val{_of_data(number)}.csv"
            self.scores.append(CSVLog(path, columns, step - pending))
        self.board = open_board(folder / "tensorboard", step)

    def write_steps(
        self, steps: Sequence[int], rates: Sequence[float], losses: Sequence[float]
    ) -> None:
        """Log the learning rate and loss of each step, and the mean loss for TensorBoard."""
        rows = [
            (step, f"{rate:.9g}", f"{loss:.9g}")
            for step, rate, loss in zip(steps, rates, losses, strict=True)
        ]
        self.guarded("log.csv", self.steps.write, rows)
        means = {"loss": sum(losses) / len(losses), "lr": rates[-1]}
        self._show_scalars(means, steps[-1])

    def write_scores(self, step: int, validations: Sequence[tuple[Evaluation, ScenePanel]]) -> None:
        """Log the scores of a validation on each data set, and draw scenes."""
        for number, (evaluation, panel) in enumerate(validations, start=1):
            scores, where = evaluation.scores, _of_data(number)
            figures = {
                f"val{where}/miou": scores.miou,
                f"val{where}/pixel_accuracy": scores.pixel_accuracy,
            }
            row = [step, *(f"{figure:.9g}" for figure in (*figures.values(), *scores.iou))]
            log = self.scores[number - 1]
            self.guarded(log.path.name, log.write, [row])
            self._show_scalars(figures, step)
            image = panel.draw()
            if image is not None:
                path = self.folder / "pictures" / f"step-{step:06d}{where}.jpg"
                self.guarded(str(path), write_image, path, image)
                self._show("add_image", f"val{where}/predictions", image, step, None, "HWC")
        self._show("flush")

    def close(self) -> None:
        self._show("close")

    def _show_scalars(self, values: Mapping[str, float], step: int) -> None:
        def add() -> None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

        if self.board is not None:
            self.guarded("TensorBoard", add)

    def _show(self, call: str, *arguments: Any) -> None:
        if self.board is not None:
            self.guarded("TensorBoard", getattr(self.board, call), *arguments)
