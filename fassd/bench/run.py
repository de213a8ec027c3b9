"""`fassd bench run`, `fassd bench peers` and `fassd demo`: ways to compute a network's output."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fassd.bench import memory, stopwatch
from fassd.bench.candidates import (
    EXTRA,
    PATHS_REFERENCE,
    BuildContext,
    Candidate,
    every_candidate,
)
from fassd.bench.jobs import (
    ROUNDING_NOTE,
    Job,
    build_model,
    calibration_of,
    network_of,
    render_batch,
    weights_note,
)
from fassd.bench.machine import environment
from fassd.bench.memory import Energy, energy_of
from fassd.bench.others import is_other, published
from fassd.bench.results import JobResults, Result, Results
from fassd.bench.stopwatch import Outputs
from fassd.bench.tables import (
    BenchReport,
    Column,
    heading,
    mebibytes,
    milliseconds,
    or_dash,
    report_table,
)
from fassd.evaluation.agreement import AGREEMENT_LIMIT, LABELS_LIMIT, agreement_of
from fassd.export.runtimes import first_line
from fassd.io.palette import classes_of
from fassd.models.clock import timed
from fassd.models.device import torch_threads
from fassd.models.encoder import reparameterize

NOT_COUNTED = Energy(None, "not measured")

ABOUT_PATHS = (
    f"Speed-up: over {PATHS_REFERENCE}. Labels: how many equal float64's; diff: largest difference "
    "from float64's scores, over the largest score. ±: half the interquartile range."
)
ABOUT_PEERS = (
    "Each measured call follows an unmeasured one of the same candidate. "
    "x eager: speed-up over plain PyTorch in NCHW; x peer: over the fastest float32 "
    "candidate that is not ours. ±: half the interquartile range. first s: from the plain "
    "network to its first output, without the export to ONNX. Match: at least "
    f"{AGREEMENT_LIMIT:g}% of the labels equal float64's, in int8 {100 * LABELS_LIMIT['int8']:g}%; "
    "diff: largest difference of "
    "a score from float64's over the largest score. MiB: peak memory of a call beyond the loaded "
    "model. Joules: of the whole GPU, per call."
)


# -------------------------------------------------------------------------------------- the report


class MeasuredPicture(NamedTuple):
    """A job's first picture, and its last candidate's labels.

    `picture` is (H, W, 3) uint8 RGB, `labels` (H, W), and `colors`, those of the network's classes,
    (classes, 3) uint8 RGB.
    """

    picture: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.integer]
    colors: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class RunReport(BenchReport):
    """The measurements, and a scene of each job; prints itself with rich.

    `interrupted` is True if jobs are missing because Ctrl-C was pressed.
    """

    results: Results
    scenes: tuple[MeasuredPicture, ...] = field(default=(), repr=False)
    interrupted: bool = False

    @property
    def labels_agree(self) -> float:
        """The smallest share of labels equal to the reference's, in per cent."""
        results = (row for part in self.results.comparisons for row in part.results)
        return min(row.labels_equal_percent for row in results)

    def to_json(self) -> dict[str, Any]:
        """All figures, ready for `json.dump`; times in seconds, memory in bytes, labels in %."""
        return self.results.to_json()

    def parts(self, width: int) -> Iterable[RenderableType]:
        peers = self.results.peers
        for measured in self.results.comparisons:
            yield heading(measured.job, self.results.environment)
            if not peers:
                yield path_table(measured)
            if peers:
                yield peer_table(measured)
                yield Text()
            yield from measured.notes
            if peers:
                yield Text()
        if peers:
            yield ABOUT_PEERS


NAME = Column[Result]("path", lambda row: escape(row.name), words=True)
MEDIAN = Column[Result]("median ms", lambda row: milliseconds(row.timing))
FIRST = Column[Result]("first s", lambda row: or_dash(row.first_call_s, ".2f"))
DIFFERENCE = Column[Result]("diff", lambda row: or_dash(row.max_relative_difference, ".1e"))


def equal_labels(row: Result) -> str:
    text = or_dash(row.labels_equal_percent, ".3f")
    return text if row.comparable else f"[red]{text}[/]"


def rate(measured: JobResults, title: str) -> Column[Result]:
    return Column(title, lambda row: f"{measured.job.batch / row.timing.median:.1f}")


def path_table(measured: JobResults) -> Table:
    """Table of the paths of `fassd bench run`."""
    reference = measured.reference

    def faster(row: Result) -> str:
        speedup = measured.speedup(row, reference)
        if speedup is None:
            return "[red]disagrees[/]"
        return "1.00x" if row is reference else f"[bold]{speedup:.2f}x[/]"

    def needed(row: Result) -> str:
        peak = row.peak_memory_bytes
        return "-" if peak is None else f"{mebibytes(peak)} MiB"

    columns = [
        NAME,
        MEDIAN,
        rate(measured, "fps"),
        Column("speed-up", faster),
        Column("labels %", equal_labels),
        DIFFERENCE,
    ]
    if measured.job.memory:
        columns.append(Column("memory", needed, wraps=True))
    return report_table(measured.results, columns)


def peer_table(measured: JobResults) -> Table:
    """Table of a network's candidates."""

    def over(result: Result, other: Result | None) -> str:
        return or_dash(measured.speedup(result, other), ".2f")

    columns = [
        replace(NAME, heading="candidate"),
        MEDIAN,
        Column("x eager", lambda r: over(r, measured.reference)),
        Column("x peer", lambda r: over(r, measured.fastest_peer)),
        FIRST,
        Column("match", lambda r: "yes" if r.comparable else "[red]disagrees[/]"),
        Column("labels %", equal_labels),
        DIFFERENCE,
    ]
    if is_other(measured.job.model):  # their published figures are quoted
        columns.insert(2, rate(measured, "frames/s"))
    return report_table(measured.results, [*columns, *costs(measured.results)])


def costs(results: Sequence[Result]) -> list[Column[Result]]:
    """Columns that are only shown if something was measured."""
    columns: list[Column[Result]] = []
    if any(result.peak_memory_bytes is not None for result in results):
        columns.append(Column("MiB", lambda r: mebibytes(r.peak_memory_bytes)))
    if any(result.energy_j is not None for result in results):
        columns.append(Column("joules", lambda r: or_dash(r.energy_j, ".3f")))
    return columns


class Interrupted(KeyboardInterrupt):
    """Ctrl-C after some jobs were done, which are in `report`."""

    def __init__(self, report: RunReport) -> None:
        super().__init__()
        self.report = report


# ------------------------------------------------------------------------------------- measurement


def run(
    jobs: Sequence[Job],
    peers: Sequence[Candidate] | None = None,
    *,
    compiler: str = "inductor",
    step: Callable[[str], object] = lambda _: None,
    tick: Callable[[], object] = lambda: None,
) -> RunReport:
    """Measure every job, one after the other, in this process, on its device.

    Args:
        jobs: networks, sizes, batches. All candidates of one are in memory together and take turns.
        peers: candidates from `fassd.bench.candidates.candidates`; one that cannot be run becomes a
            note. None for the paths of each job, which must all run.
        compiler: backend of `torch.compile`.
        step: function called with a few words when each part begins.
        tick: function called after each of the `warmup + repeats` rounds of every job.

    Raises:
        ValueError: there is nothing to measure; the model or dtype is unknown, the weights are
            unsuitable, or the size is too small for the network.
        RuntimeError: a path, or all peers of a job, cannot be run on this machine.
        Interrupted: Ctrl-C was pressed after the first job.
    """
    if not jobs or (peers is not None and not peers):
        raise ValueError("nothing to measure: no jobs or no candidates")
    comparisons: list[JobResults] = []
    scenes: list[MeasuredPicture] = []
    with torch_threads(jobs[0].threads):
        where = environment(jobs[0].device)

    def report(interrupted: bool = False) -> RunReport:
        results = Results(
            environment=where, comparisons=tuple(comparisons), peers=peers is not None
        )
        return RunReport(results, tuple(scenes), interrupted)

    try:
        for job in jobs:
            measured, scene = measure(job, peers, compiler, step, tick)
            comparisons.append(measured)
            scenes += scene
            memory.release()
    except KeyboardInterrupt:
        if not comparisons:
            raise
        raise Interrupted(report(interrupted=True)) from None
    return report()


def measure(
    job: Job,
    peers: Sequence[Candidate] | None,
    compiler: str,
    step: Callable[[str], object],
    tick: Callable[[], object],
) -> tuple[JobResults, list[MeasuredPicture]]:
    """Measure a job with `run`'s arguments and errors; other projects' networks have no scene."""
    candidates = list(job.paths().values()) if peers is None else peers
    other = is_other(job.model)
    candidates = [candidate for candidate in candidates if not (other and candidate.labels)]
    notes = [*([ABOUT_PATHS] if peers is None else []), *weights_note(job), *published(job.model)]
    calls: dict[str, Callable[[], Outputs]] = {}
    figures: dict[str, dict[str, Any]] = {}
    with (
        torch_threads(job.threads),
        torch.no_grad(),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        step(f"{job.model}: building")
        pictures, batch = render_batch(job)
        model = build_model(job, batch)
        context = BuildContext(
            model,
            batch.device,
            (batch,),
            job.accelerated_backend,
            compiler,
            calibration=partial(calibration_of, job),
        )
        with FlopCounterMode(display=False) as counter:
            reference = in_float64(model, batch)
        for candidate in candidates:
            title = candidate.title
            step(f"{job.model}: {title}")
            try:
                calls[title], figures[title] = try_out(candidate, context, reference)
            except Exception as error:  # a runtime may raise anything, and the others continue
                if peers is None:
                    raise
                notes.append(f"{title} not measured: {reason(error)}")
        if not calls:
            raise RuntimeError("; ".join(notes))
        step(f"{job.model}: timing")
        own_threads = batch.device.type == "cpu" and (peers is not None or job.exported is not None)
        timings = stopwatch.compare(
            calls,
            repeats=job.repeats,
            warmup=job.warmup,
            settle=stopwatch.SETTLE if own_threads else 0,
            device=job.device,
            tick=tick,
        )
        for title, call in calls.items():
            step(f"{job.model}: memory and energy of {title}")
            figures[title] |= memory_and_energy(job, title, call, peers is not None, compiler)
        output = calls[title]()
    results = [Result(**figures[name], seconds=timings[name].seconds) for name in calls]
    notes += notes_of(job, results, [str(w.message) for w in caught], peers is not None)
    measured = JobResults(
        job=job,
        results=tuple(results),
        notes=tuple(notes),
        params=sum(parameter.numel() for parameter in model.parameters()),
        macs=counter.get_total_flops() // 2,
    )
    if other or not isinstance(output, Tensor):
        return measured, []
    labels = output[0].argmax(0) if output.is_floating_point() else output[0]
    colors = np.array([info.color for info in classes_of(model)], np.uint8)
    return measured, [MeasuredPicture(pictures[0], labels.cpu().numpy(), colors)]


def in_float64(model: torch.nn.Module, batch: Tensor) -> Outputs:
    """The float64 output that every candidate is compared with.

    Raises:
        ValueError: it is neither a tensor nor several.
    """
    output = copy.deepcopy(model).double()(batch.double())
    several = output if isinstance(output, (list, tuple)) else [output]
    for each in several:
        if not isinstance(each, Tensor):
            raise ValueError(
                f"{type(model).__name__} gives a {type(each).__name__}; expected a tensor, or a "
                "list or tuple of tensors: wrap the network in one that gives these"
            )
    return output


def try_out(
    candidate: Candidate, context: BuildContext, reference: Outputs
) -> tuple[Callable[[], Outputs], dict[str, Any]]:
    """Build a candidate, call it once, and compare its output with the reference's.

    Returns:
        The call to repeat, and the fields of a `Result` that are known then.

    Raises:
        ValueError: the output does not have the reference's shape.
    """
    if candidate.exported:
        assert context.onnx  # exported here, outside of the time of the first call

    def first_call() -> tuple[Callable[[], Outputs], Outputs]:
        call = candidate.bound(context)
        return call, call()

    (call, output), seconds = timed(first_call, context.device)
    found = agreement_of(reference, output)
    return call, {
        "name": candidate.title,
        "key": candidate.key,
        "dtype": candidate.dtype,
        "first_call_s": seconds,
        "output": "labels" if found.relative is None else "logits",
        "labels_equal_percent": found.labels,
        "max_relative_difference": found.relative,
    }


def memory_and_energy(
    job: Job, title: str, call: Callable[[], Outputs], is_peer: bool, compiler: str
) -> dict[str, Any]:
    """The fields of a `Result` for a call's costs; energy is measured for peers on a GPU."""
    peak, energy = memory.NOT_ASKED, NOT_COUNTED
    if job.memory:
        how = {"title": title, "is_peer": is_peer, "compiler": compiler}
        arguments = {"job": asdict(job), "threads": torch.get_num_threads(), **how}
        peak = memory.memory_of(call, job.device, "fassd.bench.run:memory_call", arguments)
    if is_peer and torch.device(job.device).type != "cpu":
        energy = energy_of(call, job.device)
    return {
        "peak_memory_bytes": peak.peak,
        "peak_memory_note": peak.note,
        "energy_j": energy.joules,
        "energy_note": energy.note,
    }


def memory_call(
    job: dict[str, Any], threads: int, title: str, is_peer: bool, compiler: str
) -> Callable[[], Outputs]:
    """The call of one candidate, for the process that measures its memory; with any picture."""
    # PyTorch's own code, 130 MB, which the first call would import.
    torch.compile(torch.neg, backend="eager", dynamic=True)(torch.zeros(2))
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    given = Job(**job)
    model = reparameterize(network_of(replace(given, weights=None)))
    picture = torch.zeros(given.batch, 3, *given.size)
    context = BuildContext(model, picture.device, (picture,), given.accelerated_backend, compiler)
    known = every_candidate() if is_peer else given.paths()
    return known[title].bound(context)


def notes_of(
    job: Job, results: Sequence[Result], warned: Sequence[str], are_peers: bool
) -> list[str]:
    """Notes on results that a table does not show."""
    disagreeing = [result for result in results if not result.comparable]
    notes = [
        f"{result.name}: only {result.labels_equal_percent:.2f}% of the labels agree "
        f"(at least {AGREEMENT_LIMIT:g}% are asked for), so no speed-up is given"
        for result in disagreeing
        if not are_peers
    ]
    if job.weights is None and any(result.dtype != "float32" for result in disagreeing):
        notes.append(ROUNDING_NOTE)
    # The only relevant warnings are those of our own packages, such as about a fallback.
    notes += sorted({text for text in warned if "fassd" in text or "GraphRunner" in text})
    unknown = {
        "memory": {r.peak_memory_note for r in results if r.peak_memory_bytes is None},
        "energy": {r.energy_note for r in results if r.energy_j is None},
    }
    for what, why in unknown.items():
        why -= {memory.NOT_ASKED.note, NOT_COUNTED.note}
        notes += [f"{what} not measured: {note}" for note in sorted(why)]
    return notes


def reason(error: Exception) -> str:
    """The reason why a candidate could not be run: one line, with a missing package's remedy."""
    text = first_line(error)
    return f"{text}: {EXTRA}" if isinstance(error, ImportError) else text
