"""What `fassd bench launches` runs: every launch of a network, by the time model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from fassd.bench.jobs import Job, torch_dtype
from fassd.bench.tables import plain_table

if TYPE_CHECKING:
    from fassd.bench.costs.cuda import Group as Launches
    from fassd.bench.costs.cuda import Prediction

__all__ = ["LaunchReport", "run_launches"]

WIDE = 185  # characters, that all columns need

Justify: TypeAlias = Literal["left", "right"]
# Title, whether it is for wide terminals alone, and the cell of launches of one shape.
CELLS: tuple[tuple[str, bool, Justify, Callable[[Launches], str]], ...] = (
    ("launch", False, "left", lambda g: g.label),
    ("channels", False, "left", lambda g: g.first.channels),
    ("size", False, "left", lambda g: f"{g.first.height}x{g.first.width}"),
    ("x", False, "right", lambda g: str(g.count)),
    (
        "tile",
        True,
        "left",
        lambda g: g.first.tile.replace(" stages", " st").replace(" stage", " st"),
    ),
    ("taps", True, "right", lambda g: g.first.taps),
    ("blocks", True, "right", lambda g: str(g.first.blocks or "-")),
    ("waves", False, "right", lambda g: f"{g.first.waves:.2f}" if g.first.blocks else "-"),
    ("KB", True, "right", lambda g: f"{g.first.shared_bytes / 1024:.0f}"),
)
# Title, whether it is for wide terminals alone, what is summed, in which unit, and digits.
SUMS: tuple[tuple[str, bool, str, float, int], ...] = (
    ("MB", False, "bytes", 1e-6, 1),
    ("cache\nMB", True, "loaded", 1e-6, 0),
    ("GFLOP", True, "operations", 1e-9, 2),
    ("padded\nGFLOP", False, "issued", 1e-9, 2),
    ("floor\nus", False, "floor", 1e6, 1),
    ("predicted\nus", False, "predicted", 1e6, 1),
    ("measured\nus", False, "measured", 1e6, 1),
)


@dataclass(frozen=True)
class LaunchReport:
    """All launches of one network, predicted and, where its GPU is there, measured.

    `note` says why nothing was measured, and is empty where it was.
    """

    job: Job
    prediction: Prediction
    note: str

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for `json.dump`; times in seconds."""
        return {
            "job": asdict(self.job),
            **self.prediction.to_json(),
            "note": self.note,
        }

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        prediction = self.prediction
        heading = Text(prediction.network, style="bold")
        heading.append(prediction.title.removeprefix(prediction.network), style="not bold")
        legend = (
            "floor: bytes at the memory's bandwidth or operations at the full rate; above floor: "
            "predicted over it. padded: operations with those on padding. predicted: "
            "with the blocks that the cuda backend launches on this GPU, and the gap between two "
            "launches of a graph. waves: blocks over those that are on the GPU at once; KB: of "
            "shared memory, a block's. Equal launches are one row, with their sums."
        )
        yield Group(
            heading,
            Text(self._summary()),
            self._table(options.max_width >= WIDE),
            Text(self.note or "measured: from the end of a kernel to the end of the next"),
            Text(legend, style="dim"),
        )

    def _summary(self) -> str:
        prediction = self.prediction
        words = (
            f"{len(prediction.launches)} launches, floor {1e3 * prediction.floor:.3f} ms, "
            f"predicted {1e3 * prediction.predicted:.3f} ms: "
            f"{prediction.frames_per_second:.0f} frames/s"
        )
        if prediction.replay is not None:
            rate = prediction.batch / prediction.replay
            words += f"; measured {1e3 * prediction.replay:.3f} ms: {rate:.0f} frames/s"
        return words

    def _table(self, wide: bool) -> Table:
        prediction = self.prediction
        table = plain_table(show_footer=True, footer_style="bold")
        cells = [column for column in CELLS if wide or not column[1]]
        sums = [
            column
            for column in SUMS
            if (wide or not column[1]) and prediction.total(column[2]) is not None
        ]
        totals = {"launch": "total", "x": str(len(prediction.launches))}
        for name, _, justify, _ in cells:
            wraps = name == "channels"
            table.add_column(
                name, totals.get(name, ""), justify=justify, no_wrap=not wraps, overflow="fold"
            )
        for name, _, what, unit, digits in sums:
            total = f"{unit * prediction.total(what):.{digits}f}"
            table.add_column(name, total, justify="right", no_wrap=True)
        above = f"{prediction.predicted / prediction.floor:.1f}x"
        table.add_column("above\nfloor", above, justify="right", no_wrap=True)
        table.add_column("bound by", no_wrap=True)
        for group in prediction.groups():
            table.add_row(
                *(cell(group) for _, _, _, cell in cells),
                *(f"{unit * group.total(what):.{digits}f}" for _, _, what, unit, digits in sums),
                f"{group.first.predicted / group.first.floor:.1f}x",
                group.first.bound,
            )
        return table


def run_launches(
    job: Job,
    gpu: str,
    *,
    step: Callable[[str], object] = lambda _: None,
    tick: Callable[[], object] = lambda: None,
) -> LaunchReport:
    """Predict every launch of the accelerated network, labels out, and measure it where possible.

    Args:
        job: what to predict; its `weights`, `device`, `compile` and `memory` say nothing here.
        gpu: name of a GPU, or a part of it; it is measured if it is this machine's.
        step: called with a few words as each part begins.
        tick: called once, when all is done.

    Raises:
        ImportError: Triton or the C++ extension is missing.
        ValueError: an unknown GPU, model or dtype, a size too small.
    """
    from fassd.bench import timeline
    from fassd.bench.costs import cuda as predict

    step("planning")
    device = predict.find_device(gpu)
    prediction = predict.predict_network(
        job.model,
        *job.size,
        device,
        batch=job.batch,
        dtype=torch_dtype(job.dtype),
        classes=job.classes,
        alpha=job.alpha,
    )
    why = timeline.unmeasurable(device.name)
    if not why:
        step("measuring")
        try:
            seen = timeline.time_network(prediction, job.repeats, job.classes, job.alpha)
            prediction = timeline.measured(prediction, seen)
        except (ValueError, RuntimeError) as error:
            # What was predicted is worth showing all the same.
            why = str(error)
    tick()
    return LaunchReport(job, prediction, why and f"not measured: {why}")
