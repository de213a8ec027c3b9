"""Candidates for a call: compared with the reference, timed in turns, put into the user's table."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

import torch
from rich.table import Table
from torch import Tensor

from fassd.models.clock import Sampling, rotation
from fassd_kernels.runtime.graph import capture
from fassd_kernels.triton.availability import first_line
from fassd_kernels.triton.device import Device
from fassd_kernels.triton.program import tf32_requested
from fassd_kernels.tuning.accuracy import TOLERANCES, relative_error
from fassd_kernels.tuning.calls import OperatorCall

TF32_TOLERANCE = 1e-3
MOST_COPIES = 64  # copies of a call's images; every candidate plans anew for each

Repeats: TypeAlias = Sequence[Callable[[], object]]
"""The same call several times, each on its own copy of the images."""

Timer: TypeAlias = Callable[[Sequence[Repeats]], Sequence[float | str]]
"""From the repeats of several candidates to median seconds of one call, or the reason why not."""

Candidate = TypeVar("Candidate")


@dataclass
class TuningTrial(Generic[Candidate]):
    """One candidate for a call.

    Attributes:
        candidate: name of a backend, or a configuration.
        error: error relative to the float64 reference; for labels, the share that differs; NaN if
            it was not computed.
        seconds: median seconds of one call; NaN if it was not timed.
        reason: reason why it was rejected; empty if it was not.
    """

    candidate: Candidate
    error: float = math.nan
    seconds: float = math.nan
    reason: str = ""


@dataclass
class TuningCase(Generic[Candidate]):
    """A row of the user's table, and the candidates tried for it.

    Attributes:
        subject, verdict: heading of the keys in a table, and the verdict of the best candidate.
        key: name of the row.
        call: call that the candidates are tried on.
        trials: one trial for each candidate, the default first.
        device: GPU to measure on.
    """

    subject: ClassVar[str]
    verdict: ClassVar[str]

    key: str
    call: OperatorCall
    trials: list[TuningTrial[Candidate]]
    device: Device

    @property
    def best(self) -> Candidate | None:
        """The fastest correct candidate."""
        right = [t for t in self.trials if not t.reason and not math.isnan(t.seconds)]
        fastest = min(right, key=lambda trial: trial.seconds, default=None)
        return None if fastest is None else fastest.candidate

    def compute(self, candidate: Candidate) -> Tensor:
        """The result of the call by a candidate."""
        raise NotImplementedError

    def repeats(self, candidate: Candidate, calls: Sequence[OperatorCall]) -> Repeats:
        """The calls of a candidate to time, one for each copy of the call."""
        raise NotImplementedError

    def describe(self, candidate: Candidate) -> dict[str, str]:
        """Cells of a candidate in a table, by heading."""
        raise NotImplementedError

    def save(self) -> None:
        """Put the result into the user's table, beside those of earlier runs."""
        raise NotImplementedError


# --- measuring ------------------------------------------------------------------------------------


def measure(case: TuningCase[Any], timer: Timer) -> None:
    """Verify all candidates, and time the correct ones; failures are recorded as reasons."""
    exact = case.call.exact()
    for trial in case.trials:
        if not trial.reason:
            verify(case, trial, exact)
    del exact
    right = [trial for trial in case.trials if not trial.reason]
    image_bytes = sum(image.nbytes for image in case.call.images)
    count = rotation(image_bytes, case.device.l2, MOST_COPIES)
    copies = [case.call.copied() for _ in range(count)]
    try:
        times = timer([case.repeats(trial.candidate, copies) for trial in right])
    except torch.cuda.OutOfMemoryError:  # then one at a time
        times = [time_alone(case, trial, copies, timer) for trial in right]
    for trial, found in zip(right, times, strict=True):
        if isinstance(found, str):
            trial.reason = found
        else:
            trial.seconds = found


def time_alone(
    case: TuningCase[Any], trial: TuningTrial[Any], copies: list[OperatorCall], timer: Timer
) -> float | str:
    """Seconds of one candidate, or the reason why it has none."""
    torch.cuda.empty_cache()
    try:
        return timer([case.repeats(trial.candidate, copies)])[0]
    except torch.cuda.OutOfMemoryError as error:
        return first_line(error)


def verify(case: TuningCase[Any], trial: TuningTrial[Any], exact: Tensor) -> None:
    """Compute the call and compare; a candidate that is wrong or fails is rejected."""
    try:
        # Memory freed last is reused first: pixels that a candidate does not write must not contain
        # the correct numbers of another one.
        poison(case.compute(trial.candidate).untyped_storage().nbytes(), exact.device)
        output = case.compute(trial.candidate)
        if output.shape != exact.shape:
            trial.reason = f"wrong: shape {tuple(output.shape)}, not {tuple(exact.shape)}"
            return
        rounded = output.dtype == torch.float32 and tf32_requested()
        tolerance = TF32_TOLERANCE if rounded else TOLERANCES[output.dtype]
        trial.error = relative_error(output, exact)
        if not trial.error <= tolerance:
            trial.reason = f"wrong: off by {trial.error:.2g}"
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # Triton's exceptions have no common class
        trial.reason = first_line(error)


def poison(count: int, device: torch.device) -> None:
    """Leave NaNs, and labels of no class, in the memory that is allocated next."""
    torch.full((count,), 0xFF, dtype=torch.uint8, device=device)


def time_in_turns(candidates: Sequence[Repeats]) -> list[float | str]:
    """A :data:`Timer` on the current GPU: a change of its clock affects all candidates alike."""
    replays: dict[int, Callable[[], object]] = {}
    results: list[float | str] = [""] * len(candidates)
    for index, repeats in enumerate(candidates):
        try:
            replays[index] = capture(repeats)[0].replay
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # errors of CUDA or Triton
            torch.cuda.synchronize()
            results[index] = f"cannot be captured: {first_line(error)}"
    for index, (replayed, samples) in Sampling().take(replays, torch.device("cuda")).items():
        results[index] = statistics.median(samples) / (replayed * len(candidates[index]))
    return results


Case = TypeVar("Case", bound=TuningCase[Any])


def measure_until(deadline: float, cases: Iterable[Case], timer: Timer) -> list[Case]:
    """Measure cases, in order, until the time is up, and save each at once.

    Args:
        deadline: time of ``time.monotonic()`` after which no further case is started.
        cases: cases to measure.
        timer: function that times candidates.

    Returns:
        The measured cases.
    """
    done: list[Case] = []
    for case in cases:
        if time.monotonic() > deadline:
            break
        with torch.no_grad():
            measure(case, timer)
        case.save()  # after each, so that nothing is lost in a crash
        done.append(case)
    return done


# --- the report -----------------------------------------------------------------------------------


def render(cases: Sequence[TuningCase[Any]], title: str) -> Table:
    """The table of all trials of at least one case."""
    table = Table(title=title, title_justify="left")
    for name in (cases[0].subject, *cases[0].describe(cases[0].trials[0].candidate)):
        table.add_column(name, overflow="fold")
    for name in ("us", "error"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for case in cases:
        for index, trial in enumerate(case.trials):
            table.add_row(
                "" if index else case.key,
                *case.describe(trial.candidate).values(),
                "" if math.isnan(trial.seconds) else f"{trial.seconds * 1e6:.1f}",
                "" if math.isnan(trial.error) else f"{trial.error:.1e}",
                trial.reason or (case.verdict if trial.candidate == case.best else ""),
            )
        table.add_section()
    return table
