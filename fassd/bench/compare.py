"""`fassd bench compare`: a measured job is run again to see if its speed-ups have changed.

A call's time depends on the load of the machine; the quotient of two paths that took turns depends
on it much less. In round i every path was called once, so the ratio of the reference's seconds to a
path's, within that round, is free of influences that slowed both. Two runs are compared by the
medians of these ratios, never by times.

The reliability of such a comparison is estimated by the bootstrap (Efron and Tibshirani, An
Introduction to the Bootstrap, 1993, section 13.3, percentile interval): the rounds of both runs are
repeatedly drawn anew, with replacement. This does not capture differences between processes that
are the same in all rounds, such as addresses of arrays; a tolerance allows for those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from rich.console import RenderableType
from rich.markup import escape
from rich.text import Text

from fassd.bench.candidates import every_candidate
from fassd.bench.jobs import Job
from fassd.bench.others import runs_foreign_code
from fassd.bench.results import ACCEPTED, JobResults, Result, Results
from fassd.bench.run import run
from fassd.bench.tables import BenchReport, Column, heading, report_table
from fassd.io.untrusted import shortened, shown
from fassd.models.device import pick_device

TOLERANCE = 3.0
"""Per cent by which a speed-up may change without being reported."""

LEVEL = 95.0
"""Per cent of the resampled changes inside the interval."""

RESAMPLES = 10_000
"""Number of times that the rounds are drawn anew."""

FEWEST_ROUNDS = 5
"""Minimum number of rounds for resampling: four give only 35 distinct samples."""

Verdict = Literal[
    "faster", "slower", "no change seen", "too few rounds", "disagrees", "disagreed", "missing"
]
ALARMS = ("slower", "disagrees", "missing")

Ratios = npt.NDArray[np.float64]

# ------------------------------------------------------------------------------------- statistics


@dataclass(frozen=True)
class Change:
    """A speed-up now over the speed-up then, and the ends of its bootstrap interval."""

    ratio: float
    low: float
    high: float


def change(then: Ratios, now: Ratios, *, resamples: int = RESAMPLES, seed: int = 0) -> Change:
    """Compute the change of a speed-up.

    Args:
        then, now: paired ratios of each round, (n,) and (m,).
        resamples: number of times that both are drawn anew.
        seed: seed of these draws.

    Returns:
        The quotient of the medians, with the percentile interval of `LEVEL`.
    """
    draws = np.random.default_rng(seed)
    old, new = (
        np.median(draws.choice(ratios, (resamples, len(ratios))), axis=1) for ratios in (then, now)
    )
    outside = (100 - LEVEL) / 2
    low, high = np.percentile(new / old, (outside, 100 - outside))
    return Change(float(np.median(now) / np.median(then)), float(low), float(high))


def judge(found: Change, rounds: int, tolerance: float = TOLERANCE) -> Verdict:
    """The verdict on a change: it counts if the whole interval is beyond the tolerance.

    Args:
        rounds: smaller number of rounds of the two runs.
        tolerance: tolerance in per cent.
    """
    if rounds < FEWEST_ROUNDS:
        return "too few rounds"
    if found.high < 1 - tolerance / 100:
        return "slower"
    if found.low > 1 + tolerance / 100:
        return "faster"
    return "no change seen"


# -------------------------------------------------------------------------------- what was measured


def ratios_of(reference: Result, path: Result) -> Ratios:
    """(n,): speed-up of a path over the reference in each round."""
    return np.array(reference.seconds) / np.array(path.seconds)


@dataclass(frozen=True)
class Baseline:
    """A file of `fassd bench run --json` or `fassd bench peers --json`."""

    file: Path
    results: Results

    def jobs(self, repeats: int | None = None, threads: int | None = None) -> list[Job]:
        """The jobs to measure again, without memory.

        Args:
            repeats: number of measured rounds; None takes the file's.
            threads: number of PyTorch's CPU threads; None takes the number in the file.

        Raises:
            ValueError: the file was measured with another number of threads.
        """
        jobs = []
        for job in (then.job for then in self.results.comparisons):
            known = job.threads or self.results.environment.get("threads")
            if threads not in (None, known):
                raise ValueError(
                    f"--threads: {threads} was asked for, but {self.file} was measured with {known}"
                )
            rounds, cores = repeats or job.repeats, threads or job.threads
            jobs.append(replace(job, repeats=rounds, threads=cores, memory=False))
        return jobs


def read_baseline(file: Path) -> Baseline:
    """Read a file written by `fassd bench run --json` or `fassd bench peers --json`.

    Raises:
        ValueError: it is not such a file, or contains a path that is unknown here; the message
            names the file, what is in it, and what is accepted.
        OSError: the file cannot be read.
    """
    results = Results.read(file)
    try:
        for part in results.comparisons:
            if runs_foreign_code(part.job.model):
                raise ValueError(
                    f"it names the code {shown(part.job.model)}, which no file may choose to run"
                )
            known = every_candidate(part.job.device) if results.peers else part.job.paths()
            unknown = next((name for name in part.by_name if name not in known), None)
            if unknown is not None:
                raise ValueError(f"unknown path {shown(unknown)}, known are {', '.join(known)}")
            _reference_of(part)
    except ValueError as error:
        raise ValueError(f"{file}: {shortened(str(error), 400)}; {ACCEPTED}") from error
    return Baseline(file, results)


def _reference_of(measured: JobResults) -> Result:
    """The result that the job's paths are compared with.

    Raises:
        ValueError: it is missing.
    """
    if measured.reference is None:
        has = ", ".join(map(shown, measured.by_name)) or "nothing"
        raise ValueError(f"results have no plain PyTorch in float32, the reference; have {has}")
    return measured.reference


# ------------------------------------------------------------------------------------ the new run


def run_compare(
    baseline: Baseline,
    jobs: Sequence[Job],
    *,
    tolerance: float = TOLERANCE,
    step: Callable[[str], object] = lambda _: None,
    tick: Callable[[], object] = lambda: None,
) -> CompareReport:
    """Measure the jobs of `baseline` again and compare the speed-ups.

    Args:
        jobs: result of `baseline.jobs()`.
        tolerance: per cent by which a speed-up may fall without an alarm.
        step, tick: progress functions, as in `fassd.bench.run.run`.

    Raises:
        ValueError: `tolerance` is not from 0 to below 100; or this machine lacks the file's device.
        RuntimeError: a backend, or the reference, cannot be used on this machine.
    """
    if not 0 <= tolerance < 100:
        raise ValueError(f"tolerance must be from 0 to below 100 per cent, got {tolerance:g}")
    pick_device(jobs[0].device)
    before, chosen = baseline.results, None
    if before.peers:
        measured = {name for then in before.comparisons for name in then.by_name}
        chosen = [c for title, c in every_candidate(jobs[0].device).items() if title in measured]
    after = run(jobs, chosen, step=step, tick=tick).results
    changes = tuple(
        tuple(_changes(then, now, tolerance))
        for then, now in zip(before.comparisons, after.comparisons, strict=True)
    )
    return CompareReport(baseline, after, changes, tolerance)


def _changes(then: JobResults, now: JobResults, tolerance: float) -> Iterator[PathChange]:
    """The change of each path of one job, in the order of the file."""
    before = _reference_of(then)
    try:
        after = _reference_of(now)
    except ValueError as error:  # without its reference a run is useless
        raise RuntimeError("; ".join([str(error), *now.notes])) from error
    for name, path in then.by_name.items():
        if path is before:
            continue
        found = now.by_name.get(name)
        old = ratios_of(before, path) if path.comparable else None
        new = ratios_of(after, found) if found and found.comparable else None
        changed: Change | None = None
        verdict: Verdict = "missing" if found is None else "disagrees"
        if new is not None:
            verdict = "disagreed"
        if old is not None and new is not None:
            changed = change(old, new)
            verdict = judge(changed, min(len(old), len(new)), tolerance)
        yield PathChange(name, Speedup.of(old), Speedup.of(new), changed, verdict)


@dataclass(frozen=True)
class Speedup:
    """Median of a path's ratios, half their interquartile range, and their number."""

    median: float
    spread: float
    n: int

    @classmethod
    def of(cls, ratios: Ratios | None) -> Speedup | None:
        if ratios is None:
            return None
        first, median, third = np.percentile(ratios, (25, 50, 75))
        return cls(float(median), float(third - first) / 2, len(ratios))


@dataclass(frozen=True)
class PathChange:
    """One path in the old and the new run.

    Attributes:
        then, now: speed-ups over the reference; None if the outputs disagree or are missing.
        change: change of the speed-up; None if one of them is missing.
        verdict: verdict; "disagrees" and "missing" refer to now, "disagreed" to then.
    """

    path: str
    then: Speedup | None
    now: Speedup | None
    change: Change | None
    verdict: Verdict

    @property
    def is_alarm(self) -> bool:
        return self.verdict in ALARMS


# --------------------------------------------------------------------------------------- the report

MACHINE = ("device", "cpu", "cores", "threads", "instruction_set", "torch")
RUNTIMES = ("onnx", "onnxruntime", "openvino")


def _speedup(speedup: Speedup | None) -> str:
    return "-" if speedup is None else f"{speedup.median:.2f}x ±{speedup.spread:.2f}"


def _interval(row: PathChange) -> str:
    # An interval from too few rounds would promise too much.
    if row.change is None or row.verdict == "too few rounds":
        return "-"
    return f"{row.change.low:.3f} to {row.change.high:.3f}"


def _verdict(row: PathChange) -> str:
    colour = "red" if row.is_alarm else "green" if row.verdict == "faster" else "default"
    return f"[{colour}]{row.verdict}[/]"


COLUMNS: tuple[Column[PathChange], ...] = (
    Column("path", lambda row: escape(row.path), words=True),
    Column("then", lambda row: _speedup(row.then)),
    Column("now", lambda row: _speedup(row.now)),
    Column("change", lambda row: "-" if row.change is None else f"{row.change.ratio:.3f}"),
    Column(f"{LEVEL:g}% interval", _interval),
    Column("verdict", _verdict, words=True, wraps=True),
)


@dataclass(frozen=True)
class CompareReport(BenchReport):
    """The changes of all paths.

    Attributes:
        baseline: file that was compared with.
        results: results of the new run.
        changes: changes for each of the baseline's jobs, with its paths in the order of the file.
        tolerance: tolerance in per cent.
    """

    baseline: Baseline
    results: Results
    changes: tuple[tuple[PathChange, ...], ...]
    tolerance: float

    @property
    def jobs(self) -> list[tuple[JobResults, tuple[PathChange, ...]]]:
        """Each job, measured again, and its paths."""
        return list(zip(self.results.comparisons, self.changes, strict=True))

    @property
    def ok(self) -> bool:
        """True if no path is slower, disagrees with the reference, or is missing."""
        return not any(row.is_alarm for rows in self.changes for row in rows)

    @property
    def warnings(self) -> list[str]:
        """One sentence on differences between the machines, or none."""
        there, here = (
            _facts(results.environment, results.peers)
            for results in (self.baseline.results, self.results)
        )
        different = [
            f"{name.replace('_', ' ')} {there[name]} then, {here[name]} now"
            for name in here
            if there[name] != here[name]
        ]
        if not different:
            return []
        return [f"{'; '.join(different)}: a ratio of one machine or version says little of another"]

    def to_json(self) -> dict[str, Any]:
        """All figures, ready for `json.dump`; ratios have no unit, `measured` is in seconds."""
        return {
            "against": {
                "file": str(self.baseline.file),
                "environment": self.baseline.results.environment,
            },
            "environment": self.results.environment,
            "ok": self.ok,
            "warnings": self.warnings,
            "tolerance_percent": self.tolerance,
            "interval_percent": LEVEL,
            "resamples": RESAMPLES,
            "changes": [
                {
                    "job": asdict(measured.job),
                    "reference": _reference_of(measured).name,
                    "results": [{**asdict(row), "alarm": row.is_alarm} for row in rows],
                }
                for measured, rows in self.jobs
            ],
            "measured": self.results.to_json(),
        }

    def parts(self, width: int) -> Iterator[RenderableType]:
        then, now = self.baseline.results.environment, self.results.environment
        source = f"{then.get('date', 'of an unknown date')}, commit {then.get('commit')}"
        for measured, rows in self.jobs:
            yield heading(measured.job, now)
            yield Text(f"against {self.baseline.file}: {source}; commit now {now['commit']}")
            yield report_table(rows, COLUMNS)
            yield from measured.notes
            yield Text()
        for warning in self.warnings:
            yield Text.assemble(("warning: ", "yellow"), warning)
        references = dict.fromkeys(_reference_of(measured).name for measured, _ in self.jobs)
        yield (
            f"then, now: speed-up over {', '.join(references)}, the median of the ratios of each "
            "round, ± half their interquartile range. Change: now over then, with its bootstrap "
            "interval. Slower or faster: all of the interval lies more than "
            f"{self.tolerance:g}% from 1."
        )


def _facts(environment: Mapping[str, Any], with_peers: bool) -> dict[str, Any]:
    facts = {name: environment.get(name) for name in MACHINE}
    if with_peers:
        versions = environment.get("versions") or {}
        facts |= {name: versions.get(name) for name in RUNTIMES}
    return facts
