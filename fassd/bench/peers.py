"""What `fassd bench peers` runs: a network on every candidate of `candidates`, compared."""

from __future__ import annotations

import gc
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text
from torch import Tensor

from fassd.bench import memory, stopwatch
from fassd.bench.candidates import EXTRA, REFERENCE, Call, Candidate, Subject
from fassd.bench.costs.counts import count_macs
from fassd.bench.energy import Energy, energy_of
from fassd.bench.machine import environment
from fassd.bench.run import (
    ROUNDING_NOTE,
    Job,
    build_model,
    heading,
    plain_table,
    render_batch,
    weights_note,
)
from fassd.evaluation.agreement import AGREEMENT_LIMIT, agreement_of_scores, equal_labels
from fassd.models.device import torch_threads

__all__ = ["Comparison", "PeerReport", "Result", "measure", "run_peers"]

UNUSED_FIELDS = ("dtype", "compile", "memory")
"""Of a job, what says nothing here."""

OTHER = "other network"
"""What the JSON calls a result of another network."""

NOT_ASKED = memory.Memory(None, "not asked for")
NO_ENERGY = Energy(None, "not measured")


@dataclass(frozen=True)
class Match:
    """How far a candidate's output equals the reference's logits.

    Attributes:
        labels: equal labels, in per cent.
        difference: largest difference of a score over the largest score; NaN or infinite where an
            output is, None of labels.
    """

    labels: float
    difference: float | None

    @property
    def comparable(self) -> bool:
        """Whether the speeds may be compared, as `speed.Agreement.comparable`."""
        return self.labels >= AGREEMENT_LIMIT


@dataclass(frozen=True)
class Result:
    """One candidate's figures.

    Attributes:
        first_call: in seconds, from the plain network to an output.
        match: None of another network, whose labels are its own.
        memory, energy: of one call.
        params, macs: of another network.
    """

    candidate: Candidate
    first_call: float
    match: Match | None
    timing: stopwatch.Timing
    memory: memory.Memory = NOT_ASKED
    energy: Energy = NO_ENERGY
    params: int | None = None
    macs: int | None = None

    @property
    def comparable(self) -> bool:
        """Whether its speed may be compared with the reference's."""
        return self.match is not None and self.match.comparable

    def to_json(self) -> dict[str, Any]:
        """Its own figures, without ratios; seconds, bytes, joules, labels in %."""
        candidate, match = self.candidate, self.match
        return {
            "name": candidate.title,
            "key": candidate.key,
            "kind": OTHER if candidate.other else "network",
            "dtype": candidate.dtype,
            "output": candidate.output,
            **self.timing.to_json(),
            "first_call_s": self.first_call,
            "match": match and match.comparable,
            "labels_equal_percent": match and match.labels,
            "max_relative_difference": match and finite(match.difference),
            "peak_memory_bytes": self.memory.peak,
            "peak_memory_note": self.memory.note,
            "energy_j": self.energy.joules,
            "energy_note": self.energy.note,
            "params": self.params,
            "macs": self.macs,
        }


@dataclass(frozen=True)
class Comparison:
    """What one network at one size came to: `results` in the order of `candidates()`.

    Attributes:
        job: what was measured; its dtype and memory say nothing here.
        notes: candidates that could not be measured and why, and what the labels are worth.
    """

    job: Job
    results: tuple[Result, ...]
    notes: tuple[str, ...]

    @property
    def eager(self) -> Result | None:
        """The reference, if it was timed."""
        return next((r for r in self.results if r.candidate.key == REFERENCE), None)

    @property
    def fastest_peer(self) -> Result | None:
        """The fastest float32 candidate that is not ours and agrees."""
        peers = [r for r in self.results if r.candidate.is_float32_peer and r.comparable]
        return min(peers, key=lambda result: result.timing.median, default=None)

    def speedup(self, result: Result, over: Result | None) -> float | None:
        """How many times faster `result` is than `over`; None where that says nothing."""
        if over is None or not result.comparable:
            return None
        return over.timing.median / result.timing.median

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for `json.dump`; times in seconds, labels in %."""
        peer = self.fastest_peer
        job = asdict(self.job)
        return {
            "job": {name: value for name, value in job.items() if name not in UNUSED_FIELDS},
            "fastest_float32_peer": peer and peer.candidate.title,
            "results": [
                {
                    **result.to_json(),
                    "speedup_over_eager": self.speedup(result, self.eager),
                    "speedup_over_fastest_peer": self.speedup(result, peer),
                }
                for result in self.results
            ],
            "notes": self.notes,
        }

    def tables(self) -> list[Table]:
        """Of this network's candidates, then, where there are any, of other networks."""
        own = [result for result in self.results if result.candidate.other is None]
        others = [result for result in self.results if result.candidate.other is not None]
        return [self._table(own), *([self._other_table(others)] if others else [])]

    def _table(self, results: Sequence[Result]) -> Table:
        table = plain_table()
        table.add_column("candidate", no_wrap=True)
        names = ["median ms", "x eager", "x peer", "first s", "match", "labels %", "diff"]
        for name in (*names, *_extra_names(results)):
            table.add_column(name, justify="right", no_wrap=True)
        for result in results:
            table.add_row(*self._cells(result), *_extra_cells(result, results))
        return table

    def _other_table(self, results: Sequence[Result]) -> Table:
        table = plain_table()
        table.add_column("other network", no_wrap=True)
        names = ["median ms", "frames/s", "GMAC", "M params", "first s"]
        for name in (*names, *_extra_names(results)):
            table.add_column(name, justify="right", no_wrap=True)
        for result in results:
            table.add_row(
                result.candidate.title,
                _milliseconds(result.timing),
                f"{self.job.batch / result.timing.median:.1f}",
                "-" if result.macs is None else f"{1e-9 * result.macs:.1f}",
                "-" if result.params is None else f"{1e-6 * result.params:.2f}",
                f"{result.first_call:.2f}",
                *_extra_cells(result, results),
            )
        return table

    def _cells(self, result: Result) -> list[str]:
        match = result.match
        assert match is not None
        ratios = (self.speedup(result, over) for over in (self.eager, self.fastest_peer))
        return [
            result.candidate.title,
            _milliseconds(result.timing),
            *("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
            f"{result.first_call:.2f}",
            "yes" if match.comparable else "[red]disagrees[/]",
            f"{match.labels:.3f}",
            "-" if match.difference is None else f"{match.difference:.1e}",
        ]


def _milliseconds(timing: stopwatch.Timing) -> str:
    return f"{1000 * timing.median:.1f} ±{1000 * timing.spread:.1f}"


def _extra_names(results: Sequence[Result]) -> list[str]:
    """Columns that are there only where something was measured."""
    memory = any(result.memory.peak is not None for result in results)
    energy = any(result.energy.joules is not None for result in results)
    return [*(["MiB"] if memory else []), *(["joules"] if energy else [])]


def _extra_cells(result: Result, results: Sequence[Result]) -> list[str]:
    peak, joules = result.memory.peak, result.energy.joules
    texts = {
        "MiB": "-" if peak is None else f"{peak / 2**20:.0f}",
        "joules": "-" if joules is None else f"{joules:.3f}",
    }
    return [texts[name] for name in _extra_names(results)]


@dataclass(frozen=True)
class PeerReport:
    """All comparisons of one run; prints itself with rich."""

    environment: dict[str, Any]
    comparisons: tuple[Comparison, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for `json.dump`."""
        return {
            "environment": self.environment,
            "comparisons": [comparison.to_json() for comparison in self.comparisons],
        }

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for comparison in self.comparisons:
            notes = (Text(note, style="dim") for note in comparison.notes)
            yield Group(
                heading(comparison.job, self.environment),
                *(part for table in comparison.tables() for part in (table, Text())),
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
        return PeerReport(environment(jobs[0].device), tuple(comparisons))


def measure(
    job: Job,
    chosen: Sequence[Candidate],
    *,
    compiler: str = "inductor",
    step: Callable[[str], object] = lambda _: None,
    tick: Callable[[], object] = lambda: None,
) -> Comparison:
    """One job of `run_peers`, with the same arguments and errors."""
    notes = weights_note(job)
    on_cpu = torch.device(job.device).type == "cpu"
    trials: list[Trial] = []
    with (
        torch_threads(job.threads),
        torch.no_grad(),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        step(f"{job.model}: building")
        _, batch = render_batch(job)
        subject = Subject(build_model(job, batch), batch, job.backend, compiler)
        reference = subject.model(batch)
        for candidate in chosen:
            step(f"{job.model}: {candidate.title}")
            try:
                trials.append(try_out(candidate, subject, reference))
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
            memory = peak_memory(job, trial, compiler)
            params, macs = trial.size or (None, None)
            results.append(
                Result(
                    trial.candidate,
                    trial.first_call,
                    trial.match,
                    timings[title],
                    memory,
                    energy,
                    params,
                    macs,
                )
            )
    disagreeing = [r.candidate for r in results if r.match and not r.match.comparable]
    if job.weights is None and any(c.dtype != "float32" for c in disagreeing):
        notes.append(ROUNDING_NOTE)
    # Of warnings, those of our own packages matter to the reader, such as a fallback's.
    notes += sorted({text for text in (str(w.message) for w in caught) if "fassd" in text})
    if job.memory:
        notes += sorted({f"memory: {r.memory.note}" for r in results if r.memory.peak is None})
    if not on_cpu:
        notes += sorted({f"energy: {r.energy.note}" for r in results if r.energy.joules is None})
    return Comparison(job, tuple(results), tuple(notes))


@dataclass(frozen=True)
class Trial:
    """A candidate that ran once: what it gave, and how to run it again.

    `size` is of another network: parameters, and multiply-accumulates for the picture.
    """

    candidate: Candidate
    call: Call
    first_call: float
    match: Match | None
    size: tuple[int, int] | None = None


def try_out(candidate: Candidate, subject: Subject, reference: Tensor) -> Trial:
    """Build a candidate, call it once, and compare its output with the reference's logits.

    Raises:
        ValueError: the output is not of the reference's shape.
    """
    if candidate.exported:
        assert subject.onnx  # made now if this is the first that needs it: not in its first call
    start = time.perf_counter()
    call = candidate.build(subject)
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
        macs = count_macs(network, tuple(subject.picture.shape))
        return Trial(candidate, call, first_call, None, (params, macs))
    if candidate.output == "labels":
        match = Match(equal_labels(reference.argmax(1), output), None)
    else:
        found = agreement_of_scores(reference, output)
        match = Match(found.labels, found.relative)
    return Trial(candidate, call, first_call, match)


def peak_memory(job: Job, trial: Trial, compiler: str) -> memory.Memory:
    """Peak memory of a candidate's call: on the CPU, in a process of its own."""
    if not job.memory:
        return NOT_ASKED
    if torch.device(job.device).type == "cuda":
        return memory.peak_memory(trial.call)
    fields = ("model", "classes", "alpha", "size", "batch", "backend")
    arguments = {name: getattr(job, name) for name in fields}
    where = {"title": trial.candidate.title, "threads": torch.get_num_threads()}
    return memory.peak_memory_of_child(
        "fassd.bench.candidates:memory_call", {**arguments, **where, "compiler": compiler}
    )


def finite(value: float | None) -> float | None:
    """The value where JSON can carry it, else None."""
    return value if value is not None and math.isfinite(value) else None


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
