"""Reliable timing: interleaved rounds, medians with their spread, warm starts.

`compare` times single calls, as users make them. `interleaved` times calls that are too short for
the clock: each sample is many calls, divided by their number. If possible, these are the replay of
a CUDA graph with one call per *input set*; the sets together are larger than the L2 cache, so that
no call finds its input there.
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
"""A function of the tensors of one input set that returns `Outputs`."""

SETTLE = 0.05
"""`settle` of `compare` for candidates that are runtimes: each has its own worker threads, which
spin for a while. FASSD-Net at 128x256 on two cores of an EPYC: right after another runtime,
OpenVINO takes 11 ms and ours 16; after a rest 8, and 7 to 20 depending on how the threads wake up;
after a rest and a call 5.5 and 6.1, round after round, like each alone."""

WARM_UP_CALLS = 3
UNLIKELY_LABEL = 255
"""Value with which a map of labels is poisoned; the networks have 19 classes."""


@dataclass(frozen=True)
class CallTimes:
    """Time per call in every sample of one candidate.

    Attributes:
        seconds: seconds per call, sample by sample.
        calls: number of calls that a sample averages over.
        sets: number of input sets that the calls rotate over.
        method: way of timing: ``graph`` (replays of a CUDA graph between events), ``events`` (plain
            calls between events) or ``clock`` (plain calls between readings of the host's clock).
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
        """Half the interquartile range."""
        first, third = self.quartiles
        return (third - first) / 2

    @property
    def minimum(self) -> float:
        return min(self.seconds)

    def to_json(self) -> dict[str, Any]:
        """All samples and the statistics, in seconds, ready for `json.dump`."""
        return {
            "median_s": self.median,
            "quartiles_s": self.quartiles,
            "spread_s": self.spread,
            "minimum_s": self.minimum,
            "n": len(self.seconds),
            "seconds": self.seconds,
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
        candidates: functions to call, by name.
        repeats: number of measured rounds.
        warmup: number of rounds before them that are not measured.
        settle: for candidates that do not share their worker threads, seconds to wait before each
            measured call, in which the threads of the previous candidate stop spinning; then it is
            called once without measuring, which wakes its own threads and fills its caches.
        device: device on which they run.
        tick: function called after every round, warm-up included (for a progress bar).

    Returns:
        A `CallTimes` for each name.

    Raises:
        ValueError: there are no candidates, `repeats` is below 1, or `warmup` is below 0.
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
    """The calls of a sample: `once` calls the candidate `calls` times, once per input set.

    Attributes:
        once: function that makes the calls.
        calls: number of calls.
        method: way of timing, as in `CallTimes`.
        outputs: function that returns the results for the first and the last input set, recomputed
            by `once`.
        holds: objects that must live as long as this one; a graph only contains the addresses of
            its weights and inputs.
        note: reason why it is not a graph, if it might have been one.
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
    """Time runs in turns; the number of calls in a sample follows from `sampling`."""
    found = sampling.take({name: run.once for name, run in runs.items()}, device)
    times = {}
    for name, (repeats, samples) in found.items():
        run, calls = runs[name], repeats * runs[name].calls
        seconds = tuple(taken / calls for taken in samples)
        times[name] = CallTimes(seconds, calls, run.calls, run.method)
    return times


def warm_up(call: Call, sets: Sequence[Inputs]) -> float:
    """Call until compilation and algorithm search are done; return the first call's seconds."""
    device = sets[0][0].device
    _, first_call_s = timed(partial(call, *sets[0]), device)
    for index in range(WARM_UP_CALLS):
        call(*sets[index % len(sets)])
    synchronize(device)
    return first_call_s


def plain_run(call: Call, sets: Sequence[Inputs], method: str, note: str = "") -> Run:
    """Calls in a Python loop."""

    def once() -> None:
        for inputs in sets:
            call(*inputs)

    def outputs() -> list[Tensor]:
        # The next call of a graph's runner may overwrite the result of the last one.
        return [call(*inputs).clone() for inputs in (sets[0], sets[-1])]

    return Run(once, len(sets), method, outputs, note=note)


def graph_run(call: Call, sets: Sequence[Inputs]) -> Run:
    """One call per input set, captured into a CUDA graph; plain calls if that is impossible.

    The outputs stay alive, each in its own memory, so that writing them rotates, too.
    """
    # Timing calls on a CPU needs no kernels.
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
