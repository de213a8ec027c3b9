"""What `fassd bench run` and `fassd demo` run: one network on several paths, compared."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import RenderableType
from rich.markup import escape
from torch import nn

from fassd.bench import machine, memory, stopwatch
from fassd.bench.jobs import (
    ROUNDING_NOTE,
    Job,
    build_model,
    render_batch,
    torch_dtype,
    weights_note,
)
from fassd.bench.results import JobResults, Result, Results
from fassd.bench.tables import (
    BenchReport,
    Column,
    heading,
    mebibytes,
    milliseconds,
    or_dash,
    report_table,
)
from fassd.evaluation.agreement import AGREEMENT_LIMIT, agreement_of
from fassd.inference.segmenter import accelerated
from fassd.io.palette import classes_of
from fassd.models import create_model
from fassd.models.device import torch_threads

__all__ = ["Report", "run"]


@dataclass(frozen=True)
class Report(BenchReport):
    """What was measured and what came out; prints itself with rich.

    `picture`, (H, W, 3) uint8 RGB, is the first of the batch, `labels`, (H, W), what the last path
    makes of it, and `colors`, (classes, 3) uint8 RGB, those of the network's classes.
    """

    results: Results
    picture: npt.NDArray[np.uint8] = field(repr=False)
    labels: npt.NDArray[np.integer] = field(repr=False)
    colors: npt.NDArray[np.uint8] = field(repr=False)

    @property
    def measured(self) -> JobResults:
        """The one job of the results."""
        return self.results.comparisons[0]

    @property
    def labels_agree(self) -> float:
        """The smallest share of labels equal to the reference's, in per cent."""
        return min(row.labels_equal_percent or 0.0 for row in self.measured.results)

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for `json.dump`; times in seconds, memory in bytes, labels in %."""
        return self.results.to_json()

    def parts(self, width: int) -> Iterable[RenderableType]:
        measured = self.measured
        yield heading(measured.job, self.results.environment)
        columns = [
            Column[Result]("path", lambda row: escape(row.name), words=True),
            Column("median ms", lambda row: milliseconds(row.timing)),
            Column("fps", lambda row: f"{measured.job.batch / row.timing.median:.1f}"),
            Column("speed-up", self._faster),
            Column("labels %", _equal),
            Column("diff", self._difference),
        ]
        if measured.job.memory:
            columns.append(Column("memory", _memory_cell, wraps=True))
        yield report_table(measured.results, columns)
        yield from measured.notes

    def _faster(self, row: Result) -> str:
        speedup = self.measured.speedup(row, self.measured.reference)
        if speedup is None:
            return "[red]disagrees[/]"
        return "1.00x" if row is self.measured.reference else f"[bold]{speedup:.2f}x[/]"

    def _difference(self, row: Result) -> str:
        compared = row is not self.measured.reference
        return or_dash(row.max_relative_difference if compared else None, ".1e")


def _equal(row: Result) -> str:
    text = f"{row.labels_equal_percent:.3f}"
    return text if row.comparable else f"[red]{text}[/]"


def _memory_cell(row: Result) -> str:
    peak = row.peak_memory_bytes
    return "-" if peak is None else f"{mebibytes(peak)} MiB"


def run(
    job: Job,
    *,
    step: Callable[[str], object] = lambda _: None,
    tick: Callable[[], object] = lambda: None,
) -> Report:
    """Measure `job`.

    Args:
        step: called with a few words as each part begins.
        tick: called after each of the `job.warmup + job.repeats` rounds.

    Raises:
        ValueError: an unknown model or dtype, unsuitable weights, a size too small for the network.
        RuntimeError: a device or backend that cannot be used here.
    """
    torch_dtype(job.dtype)  # a mistake shows before the work begins
    with torch_threads(job.threads), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step("rendering the scene")
        scenes, batch = render_batch(job)
        step("building the network")
        model = build_model(job, batch)
        calls: dict[str, Callable[[], torch.Tensor]] = {}
        outputs: dict[str, torch.Tensor] = {}
        for name, (kind, dtype) in job.paths().items():
            step(f"first call of {name}")
            calls[name] = job_call(job, model, batch, kind, dtype)
            outputs[name] = calls[name]()
        step("timing")
        timings = stopwatch.compare(
            calls,
            repeats=job.repeats,
            warmup=job.warmup,
            settle=stopwatch.SETTLE if job.exported else 0,
            device=job.device,
            tick=tick,
        )
        memories = {name: _memory(job, name, calls[name], step) for name in calls}
        where = machine.environment(job.device)
    first = next(iter(calls))
    rows = []
    for name, (kind, dtype) in job.paths().items():
        found = agreement_of(outputs[first], outputs[name])
        rows.append(
            Result(
                name=name,
                key=kind,
                dtype=dtype,
                output="logits" if found.relative is not None else "labels",
                seconds=timings[name].seconds,
                labels_equal_percent=found.labels,
                max_relative_difference=found.relative,
                peak_memory_bytes=memories[name].peak,
                peak_memory_note=memories[name].note,
            )
        )
    last = next(reversed(outputs.values()))[0]
    labels = (last if last.dtype == torch.uint8 else last.argmax(0)).cpu().numpy()
    colors = np.array([info.color for info in classes_of(model)], np.uint8)
    measured = JobResults(job=job, results=tuple(rows), notes=tuple(_notes(job, rows, caught)))
    results = Results(environment=where, comparisons=(measured,), peers=False)
    return Report(results, scenes[0], labels, colors)


def _notes(job: Job, rows: list[Result], caught: list[warnings.WarningMessage]) -> list[str]:
    notes = [
        f"Compared with {rows[0].name}: speed-up, equal labels, largest difference of a score over "
        "the largest score. ±: half the interquartile range."
    ]
    notes += weights_note(job)
    for row in rows:
        if not row.comparable:
            notes.append(
                f"{row.name}: only {row.labels_equal_percent:.2f}% of the labels agree "
                f"(at least {AGREEMENT_LIMIT:g}% are asked for), so no speed-up is given"
            )
            if job.weights is None and job.dtype != "float32":
                notes.append(ROUNDING_NOTE)
        if job.memory and row.peak_memory_bytes is None:
            notes.append(f"{row.name}: memory not measured: {row.peak_memory_note}")
    # Of warnings, those of our own packages matter to the reader.
    ours = {str(w.message) for w in caught if "fassd" in f"{w.message}{w.filename}"}
    return notes + sorted(ours)


def job_call(
    job: Job, model: nn.Module, batch: torch.Tensor, kind: str, dtype: str
) -> Callable[[], torch.Tensor]:
    """A call that runs the network, or the exported file, once on one path of `Job.paths`."""
    if job.exported is None or kind not in job.runtimes():
        return path_call(model, batch, kind, dtype, job.accelerated_backend)
    from fassd.export import ExportedNetwork

    network = ExportedNetwork(job.exported, kind, job.device)
    image = network.prepared(batch)
    return lambda: network.run(image)


def path_call(
    model: nn.Module, batch: torch.Tensor, kind: str, dtype: str, backend: str
) -> Callable[[], torch.Tensor]:
    """A call without arguments that runs the network once on one path of `Job.paths`."""
    precision = torch_dtype(dtype)
    path = accelerated(model, backend if kind == "accelerated" else "reference", precision)
    module: Callable[[torch.Tensor], torch.Tensor] = path
    if kind == "compile":
        module = torch.compile(path)
    inputs = batch.to(precision)

    def call() -> torch.Tensor:
        with torch.inference_mode():
            return module(inputs)

    return call


def memory_call(
    path: str, threads: int, size: list[int], **fields: Any
) -> Callable[[], torch.Tensor]:
    """The call of one path, for the process that measures its memory; any picture does."""
    torch.set_num_threads(threads)
    job = Job(size=(size[0], size[1]), threads=threads, **fields)
    kind, dtype = job.paths()[path]
    torch.manual_seed(0)
    model = create_model(job.model, job.classes, job.alpha).eval()
    batch = torch.zeros(job.batch, 3, *job.size)
    return job_call(job, model, batch, kind, dtype)


def _memory(
    job: Job, name: str, call: Callable[[], object], step: Callable[[str], object]
) -> memory.Memory:
    if not job.memory:
        return memory.NOT_ASKED
    step(f"memory of {name}")
    fields = (
        *("model", "classes", "alpha", "size", "batch", "backend", "dtype", "compile"),
        "exported",
    )
    arguments = {field: getattr(job, field) for field in fields}
    child = {**arguments, "path": name, "threads": torch.get_num_threads()}
    return memory.memory_of(call, job.device, "fassd.bench.run:memory_call", child)
