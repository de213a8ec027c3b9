"""What `fassd bench` and `fassd demo` run: one network on several paths, compared."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from torch import nn

from fassd.bench import machine, memory, stopwatch
from fassd.data import normalize
from fassd.evaluation.agreement import AGREEMENT_LIMIT, Agreement, agreement_of
from fassd.inference.segmenter import accelerated
from fassd.io.palette import classes_of
from fassd.models import create_model
from fassd.models.device import torch_threads
from fassd.synth import render_street

__all__ = [
    "REFERENCE",
    "ROUNDING_NOTE",
    "Job",
    "Report",
    "Row",
    "build_model",
    "calibrate",
    "heading",
    "plain_table",
    "render_batch",
    "run",
    "torch_dtype",
    "torch_threads",
    "weights_note",
]

REFERENCE = "PyTorch"

ROUNDING_NOTE = "a random network amplifies rounding: judge 16 bits by trained weights"


@dataclass(frozen=True)
class Job:
    """What to measure.

    Attributes:
        model, weights, classes, alpha: as `fassd.create_model`; without weights the network gets
            random ones (seed 0) whose batch norms are calibrated on the picture, see `calibrate`,
            unless there is a file to compare with.
        size: (height, width) of the input, a generated street scene.
        batch: pictures per call.
        seed: of the first scene; the others of the batch follow it.
        backend: of the accelerated path, as in `fassd.Segmenter`.
        dtype: "float32", "float16" or "bfloat16", what all paths but the reference compute in.
        device: "cpu", "cuda", "cuda:1", ...
        compile: also time `torch.compile`.
        threads: CPU threads of PyTorch; None leaves its own choice.
        repeats, warmup: rounds, as in `fassd.bench.stopwatch.compare`.
        memory: also measure peak memory, in a process per path on the CPU.
        exported: a file of `fassd export`, made from this network, to measure beside it. It is
            called with what it takes, pictures or normalised batches, by every runtime that is
            here, or by the one that `backend` names.
    """

    model: str = "fassd_net"
    weights: str | None = None
    classes: int = 19
    alpha: int = 2
    size: tuple[int, int] = (1024, 2048)
    batch: int = 1
    seed: int = 1
    backend: str = "auto"
    dtype: str = "float32"
    device: str = "cpu"
    compile: bool = False
    threads: int | None = None
    repeats: int = 10
    warmup: int = 2
    memory: bool = True
    exported: str | None = None

    def paths(self) -> dict[str, tuple[str, str]]:
        """Every way to run the network, the reference first: name -> (kind, dtype)."""
        paths = {f"{REFERENCE} float32": ("eager", "float32")}
        # On a CPU without 16-bit arithmetic plain PyTorch takes 20 times float32's time in
        # bfloat16 (63 s a frame on a Zen 3): nobody's alternative, so not a peer there.
        if self.dtype != "float32" and torch.device(self.device).type != "cpu":
            paths[f"{REFERENCE} {self.dtype}"] = ("eager", self.dtype)
        if self.compile:
            paths[f"torch.compile {self.dtype}"] = ("compile", self.dtype)
        if self.backend != "reference":
            paths[f"fassd_kernels {self.dtype}"] = ("accelerated", self.dtype)
        for runtime in self.runtimes():
            paths[f"{Path(str(self.exported)).name}, {runtime}"] = (runtime, self.dtype)
        return paths

    def runtimes(self) -> list[str]:
        """What `exported` is run by."""
        if self.exported is None:
            return []
        from fassd.export.runtimes import RUNTIMES, is_installed

        known = RUNTIMES[Path(self.exported).suffix.lower()]
        if self.backend in known:
            return [self.backend]
        return [name for name in known if is_installed(name)] or list(known)

    @property
    def accelerated_backend(self) -> str:
        """`backend`, where that does not name a runtime of the file."""
        return "auto" if self.backend in self.runtimes() else self.backend


@dataclass(frozen=True)
class Row:
    """One path's figures; `speedup` is None where the outputs disagree with the reference's."""

    name: str
    timing: stopwatch.Timing
    agreement: Agreement
    memory: memory.Memory
    speedup: float | None


@dataclass(frozen=True)
class Report:
    """What was measured and what came out; prints itself with rich.

    `picture`, (H, W, 3) uint8 RGB, is the first of the batch, `labels`, (H, W), what the last path
    makes of it, and `colors`, (classes, 3) uint8 RGB, those of the network's classes.
    """

    job: Job
    environment: dict[str, Any]
    rows: list[Row]
    notes: list[str]
    picture: npt.NDArray[np.uint8] = field(repr=False)
    labels: npt.NDArray[np.integer] = field(repr=False)
    colors: npt.NDArray[np.uint8] = field(repr=False)

    @property
    def labels_agree(self) -> float:
        """The smallest share of labels equal to the reference's, in per cent."""
        return min(row.agreement.labels for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for `json.dump`; times in seconds, memory in bytes, labels in %."""
        rows = [
            {
                "name": row.name,
                **row.timing.to_json(),
                "speedup": row.speedup,
                "labels_equal_percent": row.agreement.labels,
                "max_relative_difference": row.agreement.relative,
                "peak_memory_bytes": row.memory.peak,
                "peak_memory_note": row.memory.note,
            }
            for row in self.rows
        ]
        return {
            "environment": self.environment,
            "job": asdict(self.job),
            "results": rows,
            "notes": self.notes,
        }

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Group(
            self._header(), self._table(), *(Text(note, style="dim") for note in self.notes)
        )

    def _header(self) -> Text:
        return heading(self.job, self.environment)

    def _table(self) -> Table:
        table = plain_table()
        table.add_column("path", no_wrap=True)
        for heading in ("median ms", "fps", "speed-up", "labels %", "diff"):
            table.add_column(heading, justify="right", no_wrap=True)
        if self.job.memory:
            table.add_column("memory", justify="right")
        for row in self.rows:
            is_reference = row is self.rows[0]
            agrees = f"{row.agreement.labels:.3f}"
            relative = row.agreement.relative
            difference = "-" if is_reference or relative is None else f"{relative:.1e}"
            if row.speedup is None:
                faster, agrees = "[red]disagrees[/]", f"[red]{agrees}[/]"
            else:
                faster = f"[bold]{row.speedup:.2f}x[/]" if not is_reference else "1.00x"
            cells = [
                escape(row.name),
                f"{1000 * row.timing.median:.1f} ±{1000 * row.timing.spread:.1f}",
                f"{self.job.batch / row.timing.median:.1f}",
                faster,
                agrees,
                difference,
            ]
            if self.job.memory:
                peak = row.memory.peak
                cells.append("-" if peak is None else f"{peak / 2**20:.0f} MiB")
            table.add_row(*cells)
        return table


def heading(job: Job, environment: Mapping[str, Any]) -> Text:
    """Two lines above a table: what was measured, and on what machine (`speed.environment`)."""
    cuda = f" (CUDA {environment['cuda']})" if environment["device_type"] == "cuda" else ""
    text = Text(f"{job.model}", style="bold")
    text.append(
        f" at {job.batch} x {job.size[0]}x{job.size[1]}, {job.repeats} interleaved rounds\n"
        f"{environment['device']}, {environment['threads']} threads, "
        f"torch {environment['torch']}{cuda}, fassd {environment['fassd']}",
        style="not bold",
    )
    return text


def plain_table(**settings: Any) -> Table:
    """A rich table without lines, as every report here prints."""
    return Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0), **settings)


@torch.no_grad()
def calibrate(model: nn.Module, batch: torch.Tensor) -> nn.Module:
    """Give every batch norm the statistics of `batch`, in place; returns the model in eval mode.

    A single picture is joined by its mirror image.

    A freshly initialised network paints one flat colour, and two flat colours agree too easily to
    prove anything. With its activations normalised, its labels vary with what the picture shows.
    """
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average: after one batch, just its statistics
    # Of a single small picture the coarsest map is one pixel, which has no statistics.
    model.train()(torch.cat([batch, batch.flip(3)]) if len(batch) == 1 else batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


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
    for name, output in outputs.items():
        agreement = agreement_of(outputs[first], output)
        speedup = timings[first].median / timings[name].median if agreement.comparable else None
        rows.append(Row(name, timings[name], agreement, memories[name], speedup))
    last = next(reversed(outputs.values()))[0]
    labels = (last if last.dtype == torch.uint8 else last.argmax(0)).cpu().numpy()
    colors = np.array([info.color for info in classes_of(model)], np.uint8)
    return Report(job, where, rows, _notes(job, rows, caught), scenes[0], labels, colors)


def _notes(job: Job, rows: list[Row], caught: list[warnings.WarningMessage]) -> list[str]:
    notes = [
        f"Compared with {rows[0].name}: speed-up, equal labels, largest difference of a score over "
        "the largest score. ±: half the interquartile range."
    ]
    notes += weights_note(job)
    for row in rows:
        if row.speedup is None:
            notes.append(
                f"{row.name}: only {row.agreement.labels:.2f}% of the labels agree "
                f"(at least {AGREEMENT_LIMIT:g}% are asked for), so no speed-up is given"
            )
            if job.weights is None and job.dtype != "float32":
                notes.append(ROUNDING_NOTE)
        if job.memory and row.memory.peak is None:
            notes.append(f"{row.name}: memory not measured: {row.memory.note}")
    # Of warnings, those of our own packages matter to the reader.
    ours = {str(w.message) for w in caught if "fassd" in f"{w.message}{w.filename}"}
    return notes + sorted(ours)


def weights_note(job: Job) -> list[str]:
    """What the labels are worth, where that is less than one may expect: one sentence, or none."""
    if job.weights is None:
        return ["random weights: labels are meaningless until trained weights are given"]
    if job.weights == "synthetic":
        return ["synthetic weights: trained on generated streets of other textures than this"]
    return []


# ---------------------------------------------------------------------------------- its parts


def render_batch(job: Job) -> tuple[list[npt.NDArray[np.uint8]], torch.Tensor]:
    """The job's pictures, (H, W, 3) uint8 RGB each, and the network's input made of them.

    The input is (N, 3, H, W) float32, contiguous, on the job's device.
    """
    scenes = [render_street(*job.size, seed=job.seed + i, split="val")[0] for i in range(job.batch)]
    batch = torch.from_numpy(np.stack([normalize(scene) for scene in scenes]))
    return scenes, batch.to(job.device)


def build_model(job: Job, batch: torch.Tensor) -> nn.Module:
    """The reference network of the job, in float32 and eval mode, on the job's device."""
    torch.manual_seed(0)
    model = create_model(job.model, job.classes, job.alpha, weights=job.weights).to(job.device)
    # What a file was made from was not calibrated.
    calibrating = job.weights is None and job.exported is None
    return calibrate(model, batch) if calibrating else model.eval()


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


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of "float32", "float16" or "bfloat16"."""
    if name not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"dtype must be float32, float16 or bfloat16, got {name!r}")
    return getattr(torch, name)


def _memory(
    job: Job, name: str, call: Callable[[], object], step: Callable[[str], object]
) -> memory.Memory:
    if not job.memory:
        return memory.Memory(None, "not asked for")
    step(f"memory of {name}")
    kind = torch.device(job.device).type
    if kind == "cuda":
        return memory.peak_memory(call)
    if kind != "cpu":
        return memory.Memory(None, f"no counter for {kind} devices")
    fields = (
        *("model", "classes", "alpha", "size", "batch", "backend", "dtype", "compile"),
        "exported",
    )
    arguments = {field: getattr(job, field) for field in fields}
    return memory.peak_memory_of_child(
        "fassd.bench.run:memory_call",
        {**arguments, "path": name, "threads": torch.get_num_threads()},
    )
