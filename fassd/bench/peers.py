"""What `fassd bench peers` runs: a network on every candidate of `candidates`, compared."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text
from torch import Tensor

from fassd.bench import memory, stopwatch
from fassd.bench.candidates import EXTRA, BuildContext, Call, Candidate
from fassd.bench.costs.counts import count_macs
from fassd.bench.jobs import ROUNDING_NOTE, Job, build_model, render_batch, weights_note
from fassd.bench.machine import environment
from fassd.bench.memory import Energy, energy_of
from fassd.bench.results import OTHER, JobResults, Result, Results
from fassd.bench.tables import heading, mebibytes, milliseconds, plain_table
from fassd.evaluation.agreement import AGREEMENT_LIMIT, Agreement, agreement_of
from fassd.models.device import torch_threads

__all__ = ["BuiltCandidate", "PeerReport", "measure", "run_peers", "tables"]

NO_ENERGY = Energy(None, "not measured")


def tables(measured: JobResults) -> list[Table]:
    """Of this network's candidates, then, where there are any, of other networks."""
    own = list(measured.own.values())
    others = [result for result in measured.results if result.kind == OTHER]
    return [_own_table(measured, own), *([_other_table(measured, others)] if others else [])]


def _own_table(measured: JobResults, results: Sequence[Result]) -> Table:
    table = plain_table()
    table.add_column("candidate", no_wrap=True)
    names = ["median ms", "x eager", "x peer", "first s", "match", "labels %", "diff"]
    for name in (*names, *_extra_names(results)):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        difference = result.max_relative_difference
        ratios = (
            measured.speedup(result, over) for over in (measured.reference, measured.fastest_peer)
        )
        table.add_row(
            result.name,
            milliseconds(result.timing),
            *("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
            f"{result.first_call_s:.2f}",
            "yes" if result.comparable else "[red]disagrees[/]",
            f"{result.labels_equal_percent:.3f}",
            "-" if difference is None else f"{difference:.1e}",
            *_extra_cells(result, results),
        )
    return table


def _other_table(measured: JobResults, results: Sequence[Result]) -> Table:
    table = plain_table()
    table.add_column("other network", no_wrap=True)
    names = ["median ms", "frames/s", "GMAC", "M params", "first s"]
    for name in (*names, *_extra_names(results)):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        table.add_row(
            result.name,
            milliseconds(result.timing),
            f"{measured.job.batch / result.timing.median:.1f}",
            "-" if result.macs is None else f"{1e-9 * result.macs:.1f}",
            "-" if result.params is None else f"{1e-6 * result.params:.2f}",
            f"{result.first_call_s:.2f}",
            *_extra_cells(result, results),
        )
    return table


def _extra_names(results: Sequence[Result]) -> list[str]:
    """Columns that are there only where something was measured."""
    memory = any(result.peak_memory_bytes is not None for result in results)
    energy = any(result.energy_j is not None for result in results)
    return [*(["MiB"] if memory else []), *(["joules"] if energy else [])]


def _extra_cells(result: Result, results: Sequence[Result]) -> list[str]:
    joules = result.energy_j
    texts = {
        "MiB": mebibytes(result.peak_memory_bytes),
        "joules": "-" if joules is None else f"{joules:.3f}",
    }
    return [texts[name] for name in _extra_names(results)]


@dataclass(frozen=True)
class PeerReport:
    """All results of one run; prints itself with rich."""

    results: Results

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for `json.dump`."""
        return self.results.to_json()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for measured in self.results.comparisons:
            notes = (Text(note, style="dim") for note in measured.notes)
            yield Group(
                heading(measured.job, self.results.environment),
                *(part for table in tables(measured) for part in (table, Text())),
                *notes,
                Text(),
            )
        yield Text(
            "Each measured call follows an unmeasured one of the same candidate. "
            "x eager: speed-up over plain PyTorch in NCHW; x peer: over the fastest float32 "
            "candidate that is not ours. ±: half the interquartile range. first s: from the plain "
            "network to its first output, without the export to ONNX. Match: at least "
            f"{AGREEMENT_LIMIT:g}% of the labels equal eager's; diff: largest difference of "
            "a score over the largest score. MiB: peak memory of a call beyond the loaded model. "
            "Joules: of the whole GPU, per call.",
            style="dim",
        )


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
    trials: list[BuiltCandidate] = []
    with (
        torch_threads(job.threads),
        torch.no_grad(),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        step(f"{job.model}: building")
        _, batch = render_batch(job)
        context = BuildContext(build_model(job, batch), batch, job.backend, compiler)
        reference = context.model(batch)
        for candidate in chosen:
            step(f"{job.model}: {candidate.title}")
            try:
                trials.append(try_out(candidate, context, reference))
            except Exception as error:  # whatever a foreign runtime raises, the others go on
                remedy = candidate.other.install if candidate.other else EXTRA
                notes.append(f"{candidate.title} not measured: {reason(error, remedy)}")
        if not trials:
            raise RuntimeError("; ".join(notes))
        step(f"{job.model}: timing")
        timings = stopwatch.compare(
            {trial.candidate.title: trial.call for trial in trials},
            repeats=job.repeats,
            warmup=job.warmup,
            settle=stopwatch.SETTLE if on_cpu else 0,
            device=job.device,
            tick=tick,
        )
        results = []
        for trial in trials:
            title = trial.candidate.title
            step(f"{job.model}: memory and energy of {title}")
            energy = NO_ENERGY if on_cpu else energy_of(trial.call, job.device)
            peak = _peak_memory(job, trial, compiler)
            results.append(trial.result(timings[title], peak, energy))
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


@dataclass(frozen=True)
class BuiltCandidate:
    """A candidate that ran once.

    Attributes:
        call: runs it again.
        first_call: seconds from the plain network to its first output.
        agreement: of that output with the reference's; None of another network.
        params, macs: of another network.
    """

    candidate: Candidate
    call: Call
    first_call: float
    agreement: Agreement | None
    params: int | None = None
    macs: int | None = None

    def result(self, timing: stopwatch.Timing, peak: memory.Memory, energy: Energy) -> Result:
        candidate, agreement = self.candidate, self.agreement
        return Result(
            name=candidate.title,
            key=candidate.key,
            kind=OTHER if candidate.other else "network",
            dtype=candidate.dtype,
            output=candidate.output,
            seconds=timing.seconds,
            first_call_s=self.first_call,
            labels_equal_percent=None if agreement is None else agreement.labels,
            max_relative_difference=None if agreement is None else agreement.relative,
            peak_memory_bytes=peak.peak,
            peak_memory_note=peak.note,
            energy_j=energy.joules,
            energy_note=energy.note,
            params=self.params,
            macs=self.macs,
        )


def try_out(candidate: Candidate, context: BuildContext, reference: Tensor) -> BuiltCandidate:
    """Build a candidate, call it once, and compare its output with the reference's logits.

    Raises:
        ValueError: the output is not of the reference's shape.
    """
    if candidate.exported:
        assert context.onnx  # made now if this is the first that needs it: not in its first call
    start = time.perf_counter()
    call = candidate.build(context)
    output = call()
    if output.is_cuda:
        torch.cuda.synchronize(output.device)
    first_call = time.perf_counter() - start
    if candidate.other is not None:
        if output.shape != reference.shape:
            raise ValueError(
                f"logits must be of shape {tuple(reference.shape)}, got {tuple(output.shape)}"
            )
        network = candidate.other.build().eval()
        params = sum(parameter.numel() for parameter in network.parameters())
        macs = count_macs(network, tuple(context.picture.shape))
        return BuiltCandidate(candidate, call, first_call, None, params, macs)
    return BuiltCandidate(candidate, call, first_call, agreement_of(reference, output))


def _peak_memory(job: Job, trial: BuiltCandidate, compiler: str) -> memory.Memory:
    """Peak memory of a candidate's call: on the CPU, in a process of its own."""
    if not job.memory:
        return memory.NOT_ASKED
    if torch.device(job.device).type == "cuda":
        return memory.peak_memory(trial.call)
    fields = ("model", "classes", "alpha", "size", "batch", "backend")
    arguments = {name: getattr(job, name) for name in fields}
    where = {"title": trial.candidate.title, "threads": torch.get_num_threads()}
    return memory.peak_memory_of_child(
        "fassd.bench.candidates:memory_call", {**arguments, **where, "compiler": compiler}
    )


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
