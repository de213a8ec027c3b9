"""`fassd bench launches`: every launch of a network, by the time model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.text import Text

from fassd.bench.costs import SUMS
from fassd.bench.jobs import Job, torch_dtype
from fassd.bench.tables import BenchReport, Column, report_table

if TYPE_CHECKING:
    from fassd.bench.costs.cuda import LaunchGroup, PredictedLaunch, Prediction

WIDE = 240  # characters needed by all columns
WIDE_ONLY = (  # columns that are only shown then
    *("tile", "taps", "blocks", "KB", "cache\nMB", "GFLOP", "memory\nus", "arithmetic\nus"),
    *("copy\nM", "product\nM", "epilogue\nM"),
)

MIDDLE = 110  # characters, for all columns but those and these
NOT_NARROW = ("channels", "waves", "padded\nGFLOP", "instr.\nM", "issue\nus")

LEGEND = (
    "floor: bytes at the memory's bandwidth or operations at the full rate; above floor: "
    "predicted over it. instr.: warp instructions, in millions, of which for copies to shared "
    "memory, products and the epilogue; issue: their time at one a clock from every scheduler. "
    "padded: operations with those on padding. predicted: "
    "with the blocks that the cuda backend launches on this GPU, and the gap between two "
    "launches of a graph. waves: blocks over those that are on the GPU at once; KB: of "
    "shared memory, a block's. Equal launches are one row, with their sums."
)


def columns_of(prediction: Prediction) -> Iterator[Column[LaunchGroup]]:
    """The columns of a table of launches, with equal ones grouped."""

    def short(tile: str) -> str:
        return tile.replace(" stages", " st").replace(" stage", " st")

    yield Column("launch", lambda g: g.label, "total", words=True)
    yield Column("channels", lambda g: g.first.channels, words=True, wraps=True)
    yield Column("size", lambda g: f"{g.first.height}x{g.first.width}", words=True)
    yield Column("x", lambda g: str(g.count), str(len(prediction.launches)))
    yield Column("tile", lambda g: short(g.first.tile), words=True)
    yield Column("taps", lambda g: g.first.taps)
    yield Column("blocks", lambda g: str(g.first.blocks or "-"))
    yield Column("waves", lambda g: f"{g.first.waves:.2f}" if g.first.blocks else "-")
    yield Column("KB", lambda g: f"{g.first.shared_bytes / 1024:.0f}")
    for name, what, unit, digits in SUMS:

        def cell(
            group: LaunchGroup | Prediction, what: str = what, unit: float = unit, d: int = digits
        ) -> str:
            return f"{unit * group.total(what):.{d}f}"

        if prediction.total(what) is not None:
            yield Column(name, cell, cell(prediction))

    def above(one: PredictedLaunch | Prediction) -> str:
        return f"{one.predicted / one.floor:.1f}x"

    yield Column("above\nfloor", lambda g: above(g.first), above(prediction))
    yield Column("bound by", lambda g: g.first.bound, words=True)


@dataclass(frozen=True)
class LaunchReport(BenchReport):
    """All launches of one network, predicted and, if its GPU is available, measured.

    `note` is the reason why nothing was measured, and is empty if it was.
    """

    job: Job
    prediction: Prediction
    note: str

    def to_json(self) -> dict[str, Any]:
        return {"job": asdict(self.job), **self.prediction.to_json(), "note": self.note}

    def parts(self, width: int) -> Iterator[RenderableType]:
        prediction = self.prediction
        name, settings = prediction.network, prediction.title.removeprefix(prediction.network)
        yield Text.assemble((name, "bold"), settings)
        summary = (
            f"{len(prediction.launches)} launches, floor {1e3 * prediction.floor:.3f} ms, "
            f"predicted {1e3 * prediction.predicted:.3f} ms: "
            f"{prediction.frames_per_second:.0f} frames/s"
        )
        if prediction.replay is not None:
            rate = prediction.batch / prediction.replay
            summary += f"; measured {1e3 * prediction.replay:.3f} ms: {rate:.0f} frames/s"
        yield Text(summary)
        left_out: tuple[str, ...] = WIDE_ONLY if width < WIDE else ()
        left_out += NOT_NARROW if width < MIDDLE else ()
        columns = [each for each in columns_of(prediction) if each.heading not in left_out]
        yield report_table(prediction.groups(), columns)
        yield Text(self.note or "measured: from the end of a kernel to the end of the next")
        yield LEGEND + (" A wider terminal shows more columns." if left_out else "")


def run_launches(
    job: Job,
    gpu: str,
    *,
    step: Callable[[str], object] = lambda _: None,
    tick: Callable[[], object] = lambda: None,
) -> LaunchReport:
    """Predict every launch of the accelerated network, labels out, and measure it if possible.

    Args:
        job: job to predict; its `weights`, `device`, `compile` and `memory` are ignored.
        gpu: name of a GPU, or a part of it; it is measured if this machine has it.
        step: function called with a few words when each part begins.
        tick: function called once, at the end.

    Raises:
        ImportError: Triton or the C++ extension is missing.
        ValueError: the GPU, model or dtype is unknown, or the size too small.
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
            # The prediction is worth showing all the same.
            why = str(error)
    tick()
    return LaunchReport(job, prediction, why and f"not measured: {why}")
