"""What `fassd bench peers` runs: a network on every candidate of `candidates`, compared."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor

from fassd.bench import memory, stopwatch
from fassd.bench.candidates import EXTRA, BuildContext, Candidate, every_candidate
from fassd.bench.costs.counts import count_macs
from fassd.bench.jobs import ROUNDING_NOTE, Job, build_model, render_batch, weights_note
from fassd.bench.machine import environment
from fassd.bench.memory import Energy, energy_of
from fassd.bench.results import OTHER, JobResults, Result, Results
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
from fassd.models import create_model
from fassd.models.device import torch_threads

__all__ = ["PeerReport", "measure", "run_peers", "tables"]

ABOUT = (
    "Each measured call follows an unmeasured one of the same candidate. "
    "x eager: speed-up over plain PyTorch in NCHW; x peer: over the fastest float32 "
    "candidate that is not ours. ±: half the interquartile range. first s: from the plain "
    "network to its first output, without the export to ONNX. Match: at least "
    f"{AGREEMENT_LIMIT:g}% of the labels equal eager's; diff: largest difference of "
    "a score over the largest score. MiB: peak memory of a call beyond the loaded model. "
    "Joules: of the whole GPU, per call."
)


@dataclass(frozen=True)
class PeerReport(BenchReport):
    """All results of one run; prints itself with rich."""

    results: Results

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for `json.dump`."""
        return self.results.to_json()

    def parts(self, width: int) -> Iterable[RenderableType]:
        for measured in self.results.comparisons:
            yield heading(measured.job, self.results.environment)
            for table in tables(measured):
                yield table
                yield Text()
            yield from measured.notes
            yield Text()
        yield ABOUT


def tables(measured: JobResults) -> list[Table]:
    """Of this network's candidates, then, where there are any, of other networks."""

    def over(result: Result, other: Result | None) -> str:
        return or_dash(measured.speedup(result, other), ".2f")

    name = Column[Result]("candidate", lambda r: r.name, words=True)
    median = Column[Result]("median ms", lambda r: milliseconds(r.timing))
    first = Column[Result]("first s", lambda r: or_dash(r.first_call_s, ".2f"))
    own = [
        name,
        median,
        Column("x eager", lambda r: over(r, measured.reference)),
        Column("x peer", lambda r: over(r, measured.fastest_peer)),
        first,
        Column("match", lambda r: "yes" if r.comparable else "[red]disagrees[/]"),
        Column("labels %", lambda r: or_dash(r.labels_equal_percent, ".3f")),
        Column("diff", lambda r: or_dash(r.max_relative_difference, ".1e")),
    ]
    other = [
        replace(name, heading="other network"),
        median,
        Column("frames/s", lambda r: f"{measured.job.batch / r.timing.median:.1f}"),
        Column("GMAC", lambda r: or_dash(r.macs, ".1f", 1e-9)),
        Column("M params", lambda r: or_dash(r.params, ".2f", 1e-6)),
        first,
    ]
    found = [(list(measured.own.values()), own)]
    found.append(([result for result in measured.results if result.kind == OTHER], other))
    return [report_table(rows, [*columns, *costs(rows)]) for rows, columns in found if rows]


def costs(results: Sequence[Result]) -> list[Column[Result]]:
    """Columns that are there only where something was measured."""
    columns: list[Column[Result]] = []
    if any(result.peak_memory_bytes is not None for result in results):
        columns.append(Column("MiB", lambda r: mebibytes(r.peak_memory_bytes)))
    if any(result.energy_j is not None for result in results):
        columns.append(Column("joules", lambda r: or_dash(r.energy_j, ".3f")))
    return columns


def run_peers(
    jobs: Sequence[Job],
    chosen: Sequence[Candidate],
    *,
    compiler: str = "inductor",
    step: Callable[[str], object] = lambda _: None,
    tick: Callable[[], object] = lambda: None,
) -> PeerReport:
    """Measure every job, one after the other, in this process, on its device.

    Args:
        jobs: networks, sizes, batches. Of one, all candidates are alive together and take turns.
        chosen: of `fassd.bench.candidates.candidates`.
        compiler: backend of `torch.compile`.
        step: called with a few words as each part begins.
        tick: called after each of the `warmup + repeats` rounds of every job.

    Raises:
        ValueError: nothing to measure; an unknown model, unsuitable weights, a size too small.
        RuntimeError: no candidate of a job could be run.
    """
    if not jobs or not chosen:
        raise ValueError("nothing to measure: no jobs or no candidates")
    comparisons = []
    for job in jobs:
        comparisons.append(measure(job, chosen, compiler=compiler, step=step, tick=tick))
        release()
    with torch_threads(jobs[0].threads):
        where = environment(jobs[0].device)
    return PeerReport(Results(environment=where, comparisons=tuple(comparisons), peers=True))


def measure(
    job: Job,
    chosen: Sequence[Candidate],
    *,
    compiler: str = "inductor",
    step: Callable[[str], object] = lambda _: None,
    tick: Callable[[], object] = lambda: None,
) -> JobResults:
    """One job of `run_peers`, with the same arguments and errors."""
    notes = weights_note(job)
    on_cpu = torch.device(job.device).type == "cpu"
    calls: dict[str, Callable[[], Tensor]] = {}
    figures: dict[str, dict[str, Any]] = {}
    with (
        torch_threads(job.threads),
        torch.no_grad(),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        step(f"{job.model}: building")
        _, batch = render_batch(job)
        model = build_model(job, batch)
        context = BuildContext(model, batch.device, (batch,), job.backend, compiler)
        reference = model(batch)
        for candidate in chosen:
            title = candidate.title
            step(f"{job.model}: {title}")
            try:
                calls[title], figures[title] = try_out(candidate, context, reference)
            except Exception as error:  # whatever a foreign runtime raises, the others go on
                remedy = candidate.other.install if candidate.other else EXTRA
                notes.append(f"{title} not measured: {reason(error, remedy)}")
        if not calls:
            raise RuntimeError("; ".join(notes))
        step(f"{job.model}: timing")
        timings = stopwatch.compare(
            calls,
            repeats=job.repeats,
            warmup=job.warmup,
            settle=stopwatch.SETTLE if on_cpu else 0,
            device=job.device,
            tick=tick,
        )
        results = []
        for title, call in calls.items():
            step(f"{job.model}: memory and energy of {title}")
            energy = Energy(None, "not measured") if on_cpu else energy_of(call, job.device)
            peak = peak_memory(job, title, call, compiler)
            results.append(
                Result(
                    **figures[title],
                    seconds=timings[title].seconds,
                    peak_memory_bytes=peak.peak,
                    peak_memory_note=peak.note,
                    energy_j=energy.joules,
                    energy_note=energy.note,
                )
            )
    disagreeing = [r for r in results if r.agreement and not r.comparable]
    if job.weights is None and any(r.dtype != "float32" for r in disagreeing):
        notes.append(ROUNDING_NOTE)
    # Of warnings, those of our own packages matter to the reader, such as a fallback's.
    notes += sorted({text for text in (str(w.message) for w in caught) if "fassd" in text})
    if job.memory:
        notes += sorted(
            {f"memory: {r.peak_memory_note}" for r in results if r.peak_memory_bytes is None}
        )
    if not on_cpu:
        notes += sorted({f"energy: {r.energy_note}" for r in results if r.energy_j is None})
    return JobResults(job=job, results=tuple(results), notes=tuple(notes))


def try_out(
    candidate: Candidate, context: BuildContext, reference: Tensor
) -> tuple[Callable[[], Tensor], dict[str, Any]]:
    """Build a candidate, call it once, and compare its output with the reference's logits.

    Returns:
        What runs it again, and the fields of a `Result` that are known then.

    Raises:
        ValueError: the output is not of the reference's shape.
    """
    if candidate.exported:
        assert context.onnx  # made now if this is the first that needs it: not in its first call
    start = time.perf_counter()
    call = candidate.bound(context)
    output = call()
    stopwatch.synchronize(context.device)
    figures: dict[str, Any] = {
        "name": candidate.title,
        "key": candidate.key,
        "dtype": candidate.dtype,
        "output": candidate.output,
        "first_call_s": time.perf_counter() - start,
    }
    if candidate.other is None:
        found = agreement_of(reference, output)
        figures.update(labels_equal_percent=found.labels, max_relative_difference=found.relative)
        return call, figures
    if output.shape != reference.shape:
        raise ValueError(
            f"logits must be of shape {tuple(reference.shape)}, got {tuple(output.shape)}"
        )
    network = candidate.other.build().eval()
    figures.update(
        kind=OTHER,
        params=sum(parameter.numel() for parameter in network.parameters()),
        macs=count_macs(network, tuple(context.inputs[0].shape)),
    )
    return call, figures


def peak_memory(job: Job, title: str, call: Callable[[], Tensor], compiler: str) -> memory.Memory:
    if not job.memory:
        return memory.NOT_ASKED
    fields = ("model", "classes", "alpha", "size", "batch", "backend")
    arguments = {name: getattr(job, name) for name in fields}
    where = {"title": title, "threads": torch.get_num_threads(), "compiler": compiler}
    return memory.memory_of(call, job.device, "fassd.bench.peers:memory_call", arguments | where)


def memory_call(title: str, threads: int, size: list[int], **fields: Any) -> Callable[[], Tensor]:
    """The call of one candidate, for the process that measures its memory; any picture does."""
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    model = create_model(fields["model"], fields["classes"], fields["alpha"]).eval()
    picture = torch.zeros(fields["batch"], 3, *size)
    how = {name: fields[name] for name in ("backend", "compiler")}
    context = BuildContext(model, picture.device, (picture,), **how)
    return every_candidate()[title].bound(context)


def reason(error: Exception, remedy: str = EXTRA) -> str:
    """Why a candidate could not be run: one line, with the remedy for a missing package."""
    text = (str(error).splitlines() or [""])[0] or type(error).__name__
    return f"{text}: {remedy}" if isinstance(error, ImportError) else text


def release() -> None:
    """Give back what the last job's candidates held: compiled code, cycles, kept activations."""
    import fassd_kernels

    torch._dynamo.reset()
    gc.collect()
    fassd_kernels.release_memory()
