"""Timing that can be believed: interleaved rounds, medians with their spread, warm starts.

On a GPU a sample lies between two events, on the CPU between two readings of the host's clock.

`compare` times single calls, as a user makes them. `interleaved` times what is shorter than a clock
is exact: each sample is many calls, divided by their number. What it repeats is, where it can be
captured, the replay of a CUDA graph that holds one call per *input set*; the sets together are
larger than the L2 cache, so that no call finds its input there. Each such sample starts behind one
replay that is not timed: it warms up, and it keeps the stream busy while the host queues the rest,
so that the first event does not measure the host.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import torch
from torch import Tensor

Inputs = tuple[Tensor, ...]
Call = Callable[..., Tensor]
"""Takes the tensors of one input set."""

SETTLE = 0.05
"""`settle` of `compare` where candidates are runtimes: each has worker threads of its own,
which spin for a while. FASSD-Net at 128x256 on two cores of an EPYC: right after another runtime,
OpenVINO takes 11 ms and ours 16; after a rest 8, and 7 to 20 as the threads happen to wake; after a
rest and a call 5.5 and 6.1, round after round, as each does alone."""

CACHE_MULTIPLE = 1.5
"""The input and output sets of one replay together are this many times the L2 cache."""

MOST_SETS = 512
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


def sample(
    call: Callable[[], object], device: torch.device, repeats: int = 1, *, behind: bool = True
) -> float:
    """Seconds that calls take together, on CUDA between events on the current stream.

    Args:
        call: what to time.
        device: where it runs.
        repeats: number of calls.
        behind: whether they start behind one that is not timed; else, when the device is idle.
    """
    on_gpu = device.type == "cuda"
    if behind:
        call()
    elif on_gpu:
        torch.cuda.synchronize(device)
    if not on_gpu:
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def in_turns(
    names: Sequence[str],
    rounds: int,
    take: Callable[[str, bool], float],
    *,
    warmup: int = 0,
    tick: Callable[[], object] = lambda: None,
) -> dict[str, tuple[float, ...]]:
    """Samples of several candidates, taken in turns.

    Every round takes each candidate once, beginning with another one each time, so that a slow
    moment of the machine or a rising temperature meets all of them alike.

    Args:
        names: of the candidates.
        rounds: measured rounds.
        take: a name, and whether the round is measured, to a sample.
        warmup: rounds before them that are not measured.
        tick: called after every round, warm-up included.
    """
    samples: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(-warmup, rounds):
        first = round_ % len(names)
        for name in [*names[first:], *names[:first]]:
            taken = take(name, round_ >= 0)
            if round_ >= 0:
                samples[name].append(taken)
        tick()
    return {name: tuple(taken) for name, taken in samples.items()}


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
class Sampling:
    """How much `interleaved` measures.

    Attributes:
        rounds: samples per candidate.
        sample_ms: about how long one sample takes, in milliseconds.
    """

    rounds: int = 15
    sample_ms: float = 8.0


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

    def repeats(self, device: torch.device, sampling: Sampling) -> int:
        """How often `once` is called in a sample; it is, twice, to find out."""
        once_ms = max(1e3 * sample(self.once, device), 1e-3)
        return max(1, round(sampling.sample_ms / once_ms))


def interleaved(
    runs: Mapping[str, Run], device: torch.device, sampling: Sampling
) -> dict[str, CallTimes]:
    """Time runs in turns; a sample is as many calls as `sampling` has time for."""
    if not runs:
        return {}
    repeats = {name: run.repeats(device, sampling) for name, run in runs.items()}

    def take(name: str, _: bool) -> float:
        elapsed = sample(runs[name].once, device, repeats[name])
        return elapsed / (repeats[name] * runs[name].calls)

    samples = in_turns(list(runs), sampling.rounds, take)
    return {
        name: CallTimes(samples[name], repeats[name] * run.calls, run.calls, run.method)
        for name, run in runs.items()
    }


def rotation(bytes_per_call: int, cache_bytes: int) -> int:
    """How many input sets it takes to exceed a cache, when a call reads and writes so much."""
    needed = ceil(CACHE_MULTIPLE * cache_bytes / max(bytes_per_call, 1))
    return min(max(needed, 2), MOST_SETS)


def warm_up(call: Call, sets: Sequence[Inputs]) -> float:
    """Call until compilation, algorithm search and handles are done; seconds of the first call."""
    device = sets[0][0].device
    start = time.perf_counter()
    call(*sets[0])
    synchronize(device)
    first_call_s = time.perf_counter() - start
    for index in range(WARM_UP_CALLS):
        call(*sets[index % len(sets)])
    synchronize(device)
    return first_call_s


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
    from fassd_kernels.runtime.graph import capture  # what times calls on a CPU needs no kernels

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


def first_line(error: BaseException) -> str:
    """The class of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
