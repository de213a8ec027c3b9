"""Results of `fassd bench run` and `fassd bench peers`: one schema for writing and reading."""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fassd.bench.candidates import OURS, PATHS_REFERENCE, REFERENCE_TITLE
from fassd.bench.jobs import Job
from fassd.bench.stopwatch import CallTimes
from fassd.evaluation.agreement import Agreement
from fassd.io.untrusted import problem, read_json, read_text, shortened, shown

ACCEPTED = "accepted is a file that `fassd bench run --json` or `fassd bench peers --json` wrote"

MOST_BYTES = 1 << 26
"""Maximum bytes of a file; thousands of rounds have fewer than a million."""

MOST_ROUNDS = 10_000
"""Maximum rounds of a path; resampling them takes 800 MB."""

OPTIONAL = ("dtype", "compile", "device", "memory", "exported")
"""Fields of a job that older files, or those of peers, do not have."""

UNUSED = ("dtype", "compile", "memory")
"""Fields of a job that are meaningless for peers, whose files do not have them."""

REFERENCES = (PATHS_REFERENCE, REFERENCE_TITLE)
"""Names of the results that others are compared with: plain PyTorch in float32 and NCHW."""

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Result(BaseModel):
    """Figures of one path, or candidate, of a job.

    Attributes:
        name: name in tables.
        key: key of `fassd.bench.candidates.KEYS`, or kind of a path.
        dtype: precision.
        output: "logits", (N, classes, H, W), or "labels", (N, H, W).
        seconds: wall-clock times of the measured calls; entry i of each path is from round i.
        first_call_s: seconds from the plain network to the first output; None if not measured.
        labels_equal_percent: share of pixels whose label is float64's.
        max_relative_difference: largest difference of a score from float64's over the largest
            score; None for labels.
        peak_memory_bytes, peak_memory_note: fields of `fassd.bench.memory.Memory`.
        energy_j, energy_note: fields of `fassd.bench.memory.Energy`.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    key: str = ""
    dtype: str = "float32"
    output: Literal["logits", "labels"] = "logits"
    seconds: Annotated[tuple[Seconds, ...], Field(min_length=1, max_length=MOST_ROUNDS)]
    first_call_s: float | None = None
    labels_equal_percent: float
    max_relative_difference: float | None = None
    peak_memory_bytes: int | None = None
    peak_memory_note: str = ""
    energy_j: float | None = None
    energy_note: str = ""

    @property
    def timing(self) -> CallTimes:
        return CallTimes(self.seconds)

    @property
    def agreement(self) -> Agreement:
        """Agreement of the output with float64's."""
        return Agreement(self.labels_equal_percent, self.max_relative_difference)

    @property
    def comparable(self) -> bool:
        """True if its speed may be compared with the reference's."""
        return self.agreement.comparable(self.dtype)

    def to_json(self) -> dict[str, Any]:
        """All figures, ready for `json.dump`, with the statistics of `seconds`."""
        difference = self.max_relative_difference
        finite = difference is not None and math.isfinite(difference)
        return {
            **self.model_dump(exclude={"seconds"}),
            **self.timing.to_json(),
            "match": self.comparable,
            "max_relative_difference": difference if finite else None,
        }


class JobResults(BaseModel):
    """The results of one network at one size.

    Attributes:
        job: job that was measured.
        results: results of all paths or candidates, which were timed interleaved.
        notes: reasons why something was not measured, and remarks on the labels.
        params: number of the network's parameters; None if not counted, as in older files.
        macs: number of multiply-accumulates of its convolutions and matrix products for the
            pictures.
    """

    model_config = ConfigDict(frozen=True)

    job: Job
    results: tuple[Result, ...]
    notes: tuple[str, ...] = ()
    params: int | None = None
    macs: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _check_job(cls, record: Any) -> Any:
        job = record.get("job") if isinstance(record, dict) else None
        if isinstance(job, dict):  # from a file: a default could contradict the measurement
            names = [field.name for field in fields(Job) if field.name not in OPTIONAL]
            missing = [name for name in names if name not in job]
            if missing:
                raise ValueError(f"the job has no {', '.join(missing)}")
        return record

    @model_validator(mode="after")
    def _check_rounds(self) -> JobResults:
        rounds = {result.name: len(result.seconds) for result in self.results}
        if len(set(rounds.values())) > 1:
            numbers = ", ".join(f"{count} of {shown(name)}" for name, count in rounds.items())
            raise ValueError(f"results must have the same rounds of every path, have {numbers}")
        return self

    @property
    def reference(self) -> Result | None:
        """Plain PyTorch in float32 and NCHW, if it was timed."""
        return next((result for result in self.results if result.name in REFERENCES), None)

    @property
    def by_name(self) -> dict[str, Result]:
        """Results by name."""
        return {result.name: result for result in self.results}

    @property
    def fastest_peer(self) -> Result | None:
        """The fastest float32 candidate that is not ours and agrees."""
        peers = [r for r in self.results if r.key != OURS and r.dtype == "float32" and r.comparable]
        return min(peers, key=lambda result: result.timing.median, default=None)

    def speedup(self, result: Result, over: Result | None) -> float | None:
        """Speed-up of `result` over `over`; None if they cannot be compared."""
        if over is None or not result.comparable:
            return None
        return over.timing.median / result.timing.median

    def to_json(self, peers: bool) -> dict[str, Any]:
        """All figures, ready for `json.dump`; times in seconds, labels in %."""
        peer = self.fastest_peer
        if peers:
            over = {"speedup_over_eager": self.reference, "speedup_over_fastest_peer": peer}
        else:
            over = {"speedup": self.reference}
        job = asdict(self.job)
        return {
            "job": {name: job[name] for name in job if not (peers and name in UNUSED)},
            **({"fastest_float32_peer": peer and peer.name} if peers else {}),
            "results": [
                {
                    **result.to_json(),
                    **{name: self.speedup(result, other) for name, other in over.items()},
                }
                for result in self.results
            ],
            "notes": self.notes,
            "params": self.params,
            "macs": self.macs,
        }


class Results(BaseModel):
    """A results file.

    Attributes:
        environment: origin of the figures, from `fassd.bench.machine.environment`.
        comparisons: results of each job; a single one in a file of `fassd bench run`.
        peers: True in a file of `fassd bench peers`.
    """

    model_config = ConfigDict(frozen=True)

    environment: dict[str, Any]
    comparisons: Annotated[tuple[JobResults, ...], Field(min_length=1)]
    peers: bool

    def to_json(self) -> dict[str, Any]:
        """All figures, ready for `json.dump`; times in seconds, labels in %."""
        parts = [part.to_json(self.peers) for part in self.comparisons]
        found = {"comparisons": parts} if self.peers else parts[0]
        return {"environment": self.environment, **found}

    @classmethod
    def read(cls, file: Path) -> Results:
        """Read the results in a file.

        Raises:
            ValueError: it is not such a file; the message names it, its content, and what is
                accepted.
            OSError: the file cannot be read.
        """
        try:
            record = read_json(read_text(file, MOST_BYTES))
        except ValueError as error:
            raise ValueError(f"{file}: not JSON ({error}); {ACCEPTED}") from error
        try:
            return cls.of(record)
        except ValueError as error:
            text = problem(error) if isinstance(error, ValidationError) else str(error)
            raise ValueError(f"{file}: {shortened(text, 400)}; {ACCEPTED}") from error

    @classmethod
    def of(cls, record: Any) -> Results:
        """Restore the results that `to_json` wrote.

        Raises:
            ValueError: something is missing or not accepted.
        """
        if not isinstance(record, dict):
            raise ValueError(f"it must be an object, got {shown(record)}")
        peers = "comparisons" in record
        names = ("environment", "comparisons") if peers else ("environment", "job", "results")
        missing = [name for name in names if name not in record]
        if missing:
            has = ", ".join(record) or "nothing"
            raise ValueError(f"it has no {', '.join(missing)}; it has {has}")
        parts = record["comparisons"] if peers else [record]
        return cls.model_validate(
            {"environment": record["environment"], "comparisons": parts, "peers": peers}
        )
