"""What `fassd bench compare` runs: a measured job once more, and whether its speed-ups changed.

A call's time depends on what else the machine does; the quotient of two paths that took turns much
less. In round i every path was called once, so that the reference's seconds over a path's, of that
round, are free of what slowed both. Two runs are compared by the medians of these ratios, never by
times.

How far such a comparison can be trusted is estimated by the bootstrap (Efron and Tibshirani, An
Introduction to the Bootstrap, 1993, section 13.3, percentile interval): the rounds of both runs
are drawn anew, with replacement, and again. What differs from process to process but not from
round to round, such as where arrays lie in memory, it cannot see; a tolerance allows for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

import numpy as np
import numpy.typing as npt
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fassd.bench import candidates as peers
from fassd.bench import peers as peer_report
from fassd.bench import run as bench
from fassd.bench.run import Job, heading, plain_table
from fassd.evaluation.agreement import AGREEMENT_LIMIT
from fassd.io.untrusted import read_json, read_text, shortened, shown
from fassd.models.device import pick_device

__all__ = [
    "FEWEST_ROUNDS",
    "LEVEL",
    "RESAMPLES",
    "TOLERANCE",
    "Baseline",
    "Change",
    "CompareReport",
    "Rounds",
    "Row",
    "Speedup",
    "change",
    "judge",
    "read_baseline",
    "run_compare",
]

TOLERANCE = 3.0
"""Per cent of a speed-up that may be lost or won without being worth a word."""

LEVEL = 95.0
"""Per cent of the resampled changes that lie inside the interval."""

RESAMPLES = 10_000
"""How often the rounds are drawn anew."""

FEWEST_ROUNDS = 5
"""Of fewer rounds than these, resampling tells next to nothing: four give 35 distinct samples."""

MOST_BYTES = 1 << 26
"""Of a file; thousands of rounds have fewer than a million."""

MOST_ROUNDS = 10_000
"""Of a path; resampling them takes 800 MB."""

LARGEST = 1 << 16
"""What a job may have of anything: sides, pictures, rounds, threads."""

ACCEPTED = "accepted is a file that `fassd bench run --json` or `fassd bench peers --json` wrote"

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
    """How a speed-up changed.

    Args:
        then, now: (n,) and (m,), the paired ratio of each round.
        resamples: how often both are drawn anew.
        seed: of these draws.

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
    """What a change amounts to: it counts if the whole interval lies beyond the tolerance.

    Args:
        rounds: the smaller number of rounds of the two runs.
        tolerance: in per cent.
    """
    if rounds < FEWEST_ROUNDS:
        return "too few rounds"
    if found.high < 1 - tolerance / 100:
        return "slower"
    if found.low > 1 + tolerance / 100:
        return "faster"
    return "no change seen"


# -------------------------------------------------------------------------------- what was measured


@dataclass(frozen=True)
class Rounds:
    """What one job came to.

    Attributes:
        job: what was measured.
        reference: the path that the others are compared with.
        seconds: of every path, the reference's too; entry i of each is of round i.
        labels: of every path, labels equal to the reference's, in per cent.
        notes: what else was said, such as why a path could not be measured.
    """

    job: Job
    reference: str
    seconds: Mapping[str, Sequence[float]]
    labels: Mapping[str, float]
    notes: Sequence[str]

    def agrees(self, path: str) -> bool:
        """Whether the path does the reference's work, as `speed.Agreement.comparable`."""
        return self.labels[path] >= AGREEMENT_LIMIT

    def ratios(self, path: str) -> Ratios:
        """(n,): how many times faster than the reference the path was, in each round."""
        return np.array(self.seconds[self.reference]) / np.array(self.seconds[path])


@dataclass(frozen=True)
class Baseline:
    """A file of `fassd bench run --json` or `fassd bench peers --json`.

    Attributes:
        file: its name.
        environment: where its figures come from, as `speed.environment`.
        measured: what it tells, job by job.
        peers: whether `fassd bench peers` wrote it.
    """

    file: Path
    environment: Mapping[str, Any]
    measured: tuple[Rounds, ...]
    peers: bool

    def jobs(self, repeats: int | None = None, threads: int | None = None) -> list[Job]:
        """The jobs to measure once more, without memory.

        Args:
            repeats: measured rounds; None takes the file's.
            threads: of PyTorch on the CPU; None does as the file's job did.

        Raises:
            ValueError: the file was measured with another number of threads.
        """
        for job in (then.job for then in self.measured):
            known = job.threads or self.environment.get("threads")
            if threads not in (None, known):
                raise ValueError(
                    f"--threads: {threads} was asked for, but {self.file} was measured with {known}"
                )
        return [
            replace(
                then.job,
                repeats=repeats or then.job.repeats,
                threads=threads or then.job.threads,
                memory=False,
            )
            for then in self.measured
        ]


def read_baseline(file: Path) -> Baseline:
    """Read what `fassd bench run --json` or `fassd bench peers --json` wrote.

    Raises:
        ValueError: it is no such file; names it, what is in it, and what is accepted.
        OSError: it cannot be read.
    """
    try:
        record = read_json(read_text(file, MOST_BYTES))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error}); {ACCEPTED}") from error
    try:
        _expect(record, "it", {"environment": dict})
        return Baseline(file, record["environment"], _read(record), "comparisons" in record)
    except ValueError as error:
        raise ValueError(f"{file}: {shortened(str(error), 400)}; {ACCEPTED}") from error


def _read(record: dict[str, Any]) -> tuple[Rounds, ...]:
    """What a report's `to_json` tells, job by job.

    Raises:
        ValueError: it lacks something, or holds something that is not known here.
    """
    if "comparisons" not in record:
        return (_read_job(record, "it", False),)
    _expect(record, "it", {"comparisons": list})
    if not record["comparisons"]:
        raise ValueError("comparisons is empty")
    return tuple(
        _read_job(part, f"comparisons[{i}]", True) for i, part in enumerate(record["comparisons"])
    )


def _read_job(part: Any, where: str, with_peers: bool) -> Rounds:
    _expect(part, where, {"job": dict, "results": list})
    job = _job(part["job"], f"the job of {where}", with_peers)
    known = list(_titles(job.device) if with_peers else job.paths())
    seconds: dict[str, Sequence[float]] = {}
    labels: dict[str, float] = {}
    for i, row in enumerate(part["results"]):
        _expect(row, f"results[{i}] of {where}", {"name": str, "seconds": list | tuple})
        if row.get("kind") == peer_report.OTHER:  # has no speed-up over the reference
            continue
        name = row["name"]
        if name not in known:
            raise ValueError(f"unknown path {shown(name)} in {where}, known are {', '.join(known)}")
        _expect(row, f"{name} of {where}", {"labels_equal_percent": float | int})
        seconds[name], labels[name] = row["seconds"], row["labels_equal_percent"]
        rounds = len(seconds[name])
        if not 1 <= rounds <= MOST_ROUNDS or not all(_is_time(value) for value in seconds[name]):
            raise ValueError(
                f"seconds of {name} of {where} must be positive numbers, 1 to {MOST_ROUNDS:,}"
            )
    if known[0] not in seconds:
        raise ValueError(f"{where} has no {known[0]}, the reference; it has {_listed(seconds)}")
    if len({len(values) for values in seconds.values()}) > 1:
        numbers = ", ".join(f"{len(values)} of {name}" for name, values in seconds.items())
        raise ValueError(f"{where} must have the same rounds of every path, has {numbers}")
    notes = part.get("notes", ())
    if not isinstance(notes, list | tuple) or not all(isinstance(note, str) for note in notes):
        raise ValueError(f"notes of {where} must be a list of text, got {shown(notes)}")
    return Rounds(job, known[0], seconds, labels, notes)


def _job(record: dict[str, Any], where: str, with_peers: bool) -> Job:
    """The job that a report's `to_json` describes; one of peers leaves out what it has not."""
    kinds = get_type_hints(Job)
    optional = ("memory", *((*peer_report.UNUSED_FIELDS, "device") if with_peers else ()))
    _expect(
        record,
        where,
        {
            name: list | tuple if name == "size" else kind
            for name, kind in kinds.items()
            if name in record or name not in optional
        },
    )
    unknown = [name for name in record if name not in kinds]
    if unknown:
        raise ValueError(f"{where} has {_listed(unknown)}, known are {_listed(kinds)}")
    for name, value in record.items():
        if isinstance(value, int) and name != "seed" and not 0 <= value <= LARGEST:
            raise ValueError(f"{name} of {where} must be 0 to {LARGEST:,}, got {shown(value)}")
    size = record["size"]
    if len(size) != 2 or not all(isinstance(it, int) and 0 < it <= LARGEST for it in size):
        raise ValueError(f"size of {where} must be height and width, got {shown(size)}")
    return Job(**{**record, "size": tuple(size)})


def _expect(record: Any, where: str, fields: Mapping[str, Any]) -> None:
    """See whether `record` is an object with these fields, each of its type.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(record, dict):
        raise ValueError(f"{where} must be an object, got {shown(record)}")
    missing = [name for name in fields if name not in record]
    if missing:
        raise ValueError(f"{where} has no {_listed(missing)}; it has {_listed(record)}")
    for name, kind in fields.items():
        if not isinstance(record[name], kind):
            wanted = getattr(kind, "__name__", str(kind))
            raise ValueError(f"{name} of {where} must be {wanted}, got {shown(record[name])}")


def _is_time(value: object) -> bool:
    return isinstance(value, float | int) and 0 < value < math.inf


def _listed(names: Any) -> str:
    return ", ".join(names) or "nothing"


def _titles(device: str) -> dict[str, peers.Candidate]:
    """Every candidate that a file of `fassd bench peers` can hold, the reference first."""
    return peers.every_candidate(device)


# ------------------------------------------------------------------------------------ the new run


def run_compare(
    baseline: Baseline,
    jobs: Sequence[Job],
    *,
    tolerance: float = TOLERANCE,
    step: Callable[[str], object] = lambda _: None,
    tick: Callable[[], object] = lambda: None,
) -> CompareReport:
    """Measure the jobs of `baseline` once more and compare the speed-ups.

    Args:
        jobs: `baseline.jobs()`.
        tolerance: per cent of a speed-up that is not worth an alarm.
        step, tick: as `fassd.bench.run.run` and `fassd.bench.peers.run_peers` take them.

    Raises:
        ValueError: `tolerance` is not from 0 to below 100; the device of the file is not here.
        RuntimeError: a backend that cannot be used here, or the reference cannot.
    """
    if not 0 <= tolerance < 100:
        raise ValueError(f"tolerance must be from 0 to below 100 per cent, got {tolerance:g}")
    report: bench.Report | peer_report.PeerReport
    if baseline.peers:
        measured = {title for then in baseline.measured for title in then.seconds}
        chosen = [
            candidate for title, candidate in _titles(jobs[0].device).items() if title in measured
        ]
        report = peer_report.run_peers(jobs, chosen, step=step, tick=tick)
    else:
        pick_device(jobs[0].device)
        report = bench.run(jobs[0], step=step, tick=tick)
    record = report.to_json()
    try:
        after = _read(record)
    except ValueError as error:  # without its reference a run says nothing
        notes = [note for part in record.get("comparisons", ()) for note in part["notes"]]
        raise RuntimeError("; ".join([str(error), *notes])) from error
    comparisons = tuple(
        Comparison(now, tuple(_rows(then, now, tolerance)))
        for then, now in zip(baseline.measured, after, strict=True)
    )
    return CompareReport(baseline, record, comparisons, tolerance)


def _rows(then: Rounds, now: Rounds, tolerance: float) -> list[Row]:
    return [_row(path, then, now, tolerance) for path in then.seconds if path != then.reference]


def _row(path: str, then: Rounds, now: Rounds, tolerance: float) -> Row:
    before = Speedup.of(then.ratios(path)) if then.agrees(path) else None
    if path not in now.seconds:
        return Row(path, before, None, None, "missing")
    if not now.agrees(path):
        return Row(path, before, None, None, "disagrees")
    ratios = now.ratios(path)
    after = Speedup.of(ratios)
    if before is None:
        return Row(path, None, after, None, "disagreed")
    found = change(then.ratios(path), ratios)
    return Row(path, before, after, found, judge(found, min(before.n, after.n), tolerance))


@dataclass(frozen=True)
class Speedup:
    """Median of a path's ratios, half the distance of their quartiles, and how many there are."""

    median: float
    spread: float
    n: int

    @classmethod
    def of(cls, ratios: Ratios) -> Speedup:
        first, median, third = np.percentile(ratios, (25, 50, 75))
        return cls(float(median), float(third - first) / 2, len(ratios))


@dataclass(frozen=True)
class Row:
    """One path, then and now.

    Attributes:
        then, now: speed-up over the reference; None where the outputs disagree or none was made.
        change: None where one of these is.
        verdict: "disagrees" and "missing" are of now, "disagreed" is of then.
    """

    path: str
    then: Speedup | None
    now: Speedup | None
    change: Change | None
    verdict: Verdict

    @property
    def is_alarm(self) -> bool:
        return self.verdict in ALARMS


@dataclass(frozen=True)
class Comparison:
    """One job, measured anew, and its paths in the order of the file."""

    measured: Rounds
    rows: tuple[Row, ...]

    def table(self) -> Table:
        table = plain_table()
        table.add_column("path", no_wrap=True)
        for name in ("then", "now", "change", f"{LEVEL:g}% interval"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("verdict")
        for row in self.rows:
            table.add_row(*_cells(row))
        return table


def _cells(row: Row) -> list[str]:
    # Of too few rounds an interval would promise what it cannot keep.
    found = None if row.verdict == "too few rounds" else row.change
    colour = "red" if row.is_alarm else "green" if row.verdict == "faster" else "default"
    return [
        escape(row.path),
        *(
            "-" if speedup is None else f"{speedup.median:.2f}x ±{speedup.spread:.2f}"
            for speedup in (row.then, row.now)
        ),
        "-" if row.change is None else f"{row.change.ratio:.3f}",
        "-" if found is None else f"{found.low:.3f} to {found.high:.3f}",
        f"[{colour}]{row.verdict}[/]",
    ]


# --------------------------------------------------------------------------------------- the report

MACHINE = ("device", "cpu", "cores", "threads", "instruction_set", "torch")
RUNTIMES = ("onnx", "onnxruntime", "openvino")


@dataclass(frozen=True)
class CompareReport:
    """Every path's change; prints itself with rich.

    Attributes:
        baseline: what was compared with.
        record: of the new run, as `bench.Report.to_json` or `peer_report.PeerReport.to_json`.
        comparisons: one for each of the baseline's jobs.
        tolerance: in per cent.
    """

    baseline: Baseline
    record: dict[str, Any]
    comparisons: tuple[Comparison, ...]
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether no path is slower, disagrees with the reference, or is missing."""
        return not any(row.is_alarm for part in self.comparisons for row in part.rows)

    @property
    def warnings(self) -> list[str]:
        """What differs between the machines, if anything does: one sentence, or none."""
        there, here = (
            _facts(environment, self.baseline.peers)
            for environment in (self.baseline.environment, self.record["environment"])
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
        """Everything, ready for `json.dump`; ratios have no unit, `measured` is in seconds."""
        return {
            "against": {
                "file": str(self.baseline.file),
                "environment": self.baseline.environment,
            },
            "environment": self.record["environment"],
            "ok": self.ok,
            "warnings": self.warnings,
            "tolerance_percent": self.tolerance,
            "interval_percent": LEVEL,
            "resamples": RESAMPLES,
            "changes": [
                {
                    "job": asdict(part.measured.job),
                    "reference": part.measured.reference,
                    "results": [{**asdict(row), "alarm": row.is_alarm} for row in part.rows],
                }
                for part in self.comparisons
            ],
            "measured": self.record,
        }

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        environment = self.record["environment"]
        for part in self.comparisons:
            job, then = part.measured.job, self.baseline.environment
            source = f"{then.get('date', 'of an unknown date')}, commit {then.get('commit')}"
            yield Group(
                heading(job, environment),
                Text(f"against {self.baseline.file}: {source}; commit now {environment['commit']}"),
                part.table(),
                *(Text(note, style="dim") for note in part.measured.notes),
                Text(),
            )
        for warning in self.warnings:
            yield Text.assemble(("warning: ", "yellow"), warning)
        yield Text(self._legend(), style="dim")

    def _legend(self) -> str:
        references = dict.fromkeys(part.measured.reference for part in self.comparisons)
        return (
            f"then, now: speed-up over {_listed(references)}, the median of the ratios of each "
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
