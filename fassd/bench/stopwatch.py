"""Timing that can be believed: interleaved rounds, medians with their spread, warm starts.

`compare` times single calls, as a user makes them. `interleaved` times what is shorter than a clock
is exact: each sample is many calls, divided by their number. What it repeats is, where it can be
captured, the replay of a CUDA graph that holds one call per *input set*; the sets together are
larger than the L2 cache, so that no call finds its input there.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fassd.models.clock import Sampling, in_turns, sample, synchronize, timed

Inputs = tuple[Tensor, ...]
Outputs = Tensor | Sequence[Tensor]
Call = Callable[..., Any]
"""Takes the tensors of one input set, and gives `Outputs`."""

SETTLE = 0.05
"""`settle` of `compare` where candidates are runtimes: each has worker threads of its own,
which spin for a while. FASSD-Net at 128x256 on two cores of an EPYC: right after another runtime,
OpenVINO takes 11 ms and ours 16; after a rest 8, and 7 to 20 as the threads happen to wake; after a
rest and a call 5.5 and 6.1, round after round, as each does alone."""

WARM_UP_CALLS = 3
PLAIN_SETS = 8
"""Input sets of a timing without a graph, where the host is usually what is measured."""

UNLIKELY_LABEL = 255
"""What a map of labels is poisoned with; the networks have 19 classes."""


@dataclass(frozen=True)
class CallTimes:
    """Time per call of every sample of one candidate.

    Attributes:
        seconds: per call, sample by sample.
        calls: how many calls a sample averages over.
        sets: input sets that the calls rotate over.
        method: ``graph`` (replays of a CUDA graph between events), ``runner`` (calls that replay a
            graph of their own, between events), ``events`` (plain calls between events) or
            ``clock`` (plain calls between readings of the host's clock).
    """

    seconds: tuple[float, ...]
    calls: int = 1
    sets: int = 1
    method: str = "clock"

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile; the middle half of the samples lies between them."""
        if len(self.seconds) == 1:
            return self.seconds[0], self.seconds[0]
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return first, third

    @property
    def spread(self) -> float:
        """Half the distance of the quartiles."""
        first, third = self.quartiles
        return (third - first) / 2

    @property
    def minimum(self) -> float:
        return min(self.seconds)

    def to_json(self) -> dict[str, Any]:
        """Every sample and the statistics, in seconds, ready for `json.dump`."""
        return {
            "median_s": self.median,
            "quartiles_s": self.quartiles,
            "spread_s": self.spread,
            "minimum_s": self.minimum,
            "n": len(self.seconds),
            "seconds": self.seconds,
        }

    def record(self) -> dict[str, Any]:
        """The statistics in milliseconds, and how they were sampled, ready for `json.dump`."""
        first, third = self.quartiles
        return {
            "ms": 1e3 * self.median,
            "q1_ms": 1e3 * first,
            "q3_ms": 1e3 * third,
            "n": len(self.seconds),
            "calls_per_sample": self.calls,
            "sets": self.sets,
            "method": self.method,
        }


def compare(
    candidates: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 10,
    warmup: int = 2,
    settle: float = 0,
    device: torch.device | str = "cpu",
    tick: Callable[[], object] = lambda: None,
) -> dict[str, CallTimes]:
    """Time single calls of several candidates, in turns.

    Args:
        candidates: what to call, by name.
        repeats: measured rounds.
        warmup: rounds before them that are not measured.
        settle: for candidates that do not share their worker threads, seconds to wait before each
            measured call, in which the threads of the candidate before it stop spinning on the
            cores; then it is called once unmeasured, which wakes its own and fills its caches.
        device: where they run.
        tick: called after every round, warm-up included (for a progress bar).

    Returns:
        A `CallTimes` for each name.

    Raises:
        ValueError: no candidates, `repeats` below 1, or `warmup` below 0.
    """
    if not candidates:
        raise ValueError("candidates is empty")
    if repeats < 1 or warmup < 0:
        raise ValueError(
            f"repeats must be at least 1 and warmup at least 0, got {repeats} and {warmup}"
        )
    place = torch.device(device)

    def take(name: str, measured: bool) -> float:
        settling = settle > 0 and measured
        if settling:
            time.sleep(settle)
        return sample(candidates[name], place, behind=settling)

    samples = in_turns(list(candidates), repeats, take, warmup=warmup, tick=tick)
    method = "events" if place.type == "cuda" else "clock"
    return {name: CallTimes(seconds, method=method) for name, seconds in samples.items()}


# --- many short calls -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What a sample repeats: `once` calls the candidate `calls` times, once per input set.

    Attributes:
        once: makes the calls.
        calls: how many.
        method: as in `CallTimes`.
        outputs: the results of the first and the last input set, computed afresh by `once`.
        holds: what has to live as long as this does; a graph knows only addresses of its weights
            and inputs.
        note: why it is not a graph, where it could have been one.
    """

    once: Callable[[], Any]
    calls: int
    method: str
    outputs: Callable[[], list[Tensor]]
    holds: tuple[Any, ...] = ()
    note: str = ""


def interleaved(
    runs: Mapping[str, Run], device: torch.device, sampling: Sampling
) -> dict[str, CallTimes]:
    """Time runs in turns; a sample is as many calls as `sampling` has time for."""
    found = sampling.take({name: run.once for name, run in runs.items()}, device)
    times = {}
    for name, (repeats, samples) in found.items():
        run, calls = runs[name], repeats * runs[name].calls
        seconds = tuple(taken / calls for taken in samples)
        times[name] = CallTimes(seconds, calls, run.calls, run.method)
    return times


def warm_up(call: Call, sets: Sequence[Inputs]) -> float:
    """Call until compilation, algorithm search and handles are done; seconds of the first call."""
    device = sets[0][0].device
    _, first_call_s = timed(partial(call, *sets[0]), device)
    for index in range(WARM_UP_CALLS):
        call(*sets[index % len(sets)])
    synchronize(device)
    return first_call_s


def plain_run(call: Call, sets: Sequence[Inputs], method: str, note: str = "") -> Run:
    """Calls as a loop in Python makes them."""

    def once() -> None:
        for inputs in sets:
            call(*inputs)

    def outputs() -> list[Tensor]:
        # The next call of a graph's runner may write over what the last one gave.
        return [call(*inputs).clone() for inputs in (sets[0], sets[-1])]

    return Run(once, len(sets), method, outputs, note=note)


def graph_run(call: Call, sets: Sequence[Inputs]) -> Run:
    """One call per input set, captured into a CUDA graph; plain calls where that is not possible.

    The outputs stay alive, each in memory of its own, so that writing them rotates too.
    """
    # What times calls on a CPU needs no kernels.
    from fassd_kernels.runtime.graph import capture
    from fassd_kernels.triton.availability import first_line

    device = sets[0][0].device
    if device.type != "cuda":
        return plain_run(call, sets, "clock")
    try:
        graph, captured = capture([partial(call, *inputs) for inputs in sets])
        graph.replay()
        torch.cuda.synchronize(device)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        torch.cuda.synchronize(device)
        return plain_run(call, sets, "events", f"not captured: {first_line(error)}")

    def outputs() -> list[Tensor]:
        for output in captured:
            output.fill_(float("nan") if output.is_floating_point() else UNLIKELY_LABEL)
        graph.replay()
        return [captured[0], captured[-1]]

    return Run(graph.replay, len(sets), "graph", outputs, holds=(call, sets))
