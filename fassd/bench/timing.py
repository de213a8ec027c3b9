"""Timing a call on a GPU, or on the CPU, so that two candidates can be compared.

A sample is the time of many calls between two events (on the CPU: two clock readings), divided by
their number. What is timed is, where it can be captured, the replay of a CUDA graph that holds one
call per *input set*; the sets together are larger than the L2 cache, so that no call finds its
input there. Each sample starts behind one replay that is not timed: it warms up, and it keeps the
stream busy while the host queues the rest, so that the first event does not measure the host.
Samples of the candidates are interleaved, so that a change of clock speed meets all of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from typing import Any

import torch
from torch import Tensor

Inputs = tuple[Tensor, ...]
Call = Callable[..., Tensor]
"""Takes the tensors of one input set."""

CACHE_MULTIPLE = 1.5
"""The input and output sets of one replay together are this many times the L2 cache."""

MOST_SETS = 512
WARM_UP_CALLS = 3
PLAIN_SETS = 8
"""Input sets of a timing without a graph, where the host is usually what is measured."""

UNLIKELY_LABEL = 255
"""What a map of labels is poisoned with; the networks have 19 classes."""


@dataclass(frozen=True)
class Sampling:
    """How much is measured.

    Attributes:
        rounds: samples per candidate.
        sample_ms: about how long one sample takes, in milliseconds.
    """

    rounds: int = 15
    sample_ms: float = 8.0


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call.

    Attributes:
        ms: the median of the samples.
        q1_ms, q3_ms: their quartiles; the difference is the interquartile range.
        n: number of samples.
        calls_per_sample: how many calls a sample averages over.
        sets: input sets that the calls rotate over.
        method: ``graph`` (replays of a CUDA graph between events), ``runner`` (calls that replay a
            graph of their own, between events), ``events`` (plain calls between events) or
            ``clock`` (plain calls between readings of the host's clock).
    """

    ms: float
    q1_ms: float
    q3_ms: float
    n: int
    calls_per_sample: int
    sets: int
    method: str

    def record(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Run:
    """What the stopwatch repeats: `once` calls the candidate `calls` times, once per input set.

    Attributes:
        once: makes the calls.
        calls: how many.
        method: as in `Timing`.
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


def rotation(bytes_per_call: int, cache_bytes: int) -> int:
    """How many input sets it takes to exceed a cache, when a call reads and writes so much."""
    needed = ceil(CACHE_MULTIPLE * cache_bytes / max(bytes_per_call, 1))
    return min(max(needed, 2), MOST_SETS)


def plain_run(call: Call, sets: Sequence[Inputs], method: str, note: str = "") -> Run:
    """Calls as a loop in Python makes them."""

    def once() -> None:
        for inputs in sets:
            call(*inputs)

    def outputs() -> list[Tensor]:
        # The next call of a graph's runner may write over what the last one gave.
        return [call(*inputs).clone() for inputs in (sets[0], sets[-1])]

    return Run(once, len(sets), method, outputs, note=note)


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


def graph_run(call: Call, sets: Sequence[Inputs]) -> Run:
    """One call per input set, captured into a CUDA graph; plain calls where that is not possible.

    The outputs stay alive, each in memory of its own, so that writing them rotates too.
    """
    device = sets[0][0].device
    if device.type != "cuda":
        return plain_run(call, sets, "clock")
    try:
        graph, captured = capture(call, sets)
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


def capture(call: Call, sets: Sequence[Inputs]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    """Warm up on a side stream, as capture asks, and capture `call` on every set."""
    device = sets[0][0].device
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(WARM_UP_CALLS):
            call(*sets[0])
    torch.cuda.current_stream(device).wait_stream(side)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    # thread_local: a background thread (Inductor has some) must not spoil the capture.
    with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
        captured = [call(*inputs) for inputs in sets]
    graph.replay()
    torch.cuda.synchronize(device)
    return graph, captured


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def sample(run: Run, repeats: int, device: torch.device) -> float:
    """Milliseconds that `repeats` times `run.once` take, behind one that is not timed."""
    run.once()
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(repeats):
            run.once()
        return (time.perf_counter() - start) * 1e3
    begin = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(repeats):
        run.once()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


@dataclass
class _Series:
    repeats: int
    samples: list[float] = field(default_factory=list)


def interleaved(
    runs: Mapping[str, Run], device: torch.device, sampling: Sampling
) -> dict[str, Timing]:
    """Time the runs in turns, in an order that rotates from round to round."""
    if not runs:
        return {}
    series = {}
    for name, run in runs.items():
        once_ms = max(sample(run, 1, device), 1e-3)
        series[name] = _Series(max(1, round(sampling.sample_ms / once_ms)))
    names = list(runs)
    for turn in range(sampling.rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            elapsed_ms = sample(runs[name], series[name].repeats, device)
            series[name].samples.append(elapsed_ms / (series[name].repeats * runs[name].calls))
    return {name: summary(runs[name], series[name]) for name in names}


def summary(run: Run, series: _Series) -> Timing:
    q1, median, q3 = quartiles(series.samples)
    return Timing(
        ms=median,
        q1_ms=q1,
        q3_ms=q3,
        n=len(series.samples),
        calls_per_sample=series.repeats * run.calls,
        sets=run.calls,
        method=run.method,
    )


def quartiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(samples) < 2:
        return (samples[0],) * 3
    q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive")
    return q1, median, q3


def first_line(error: BaseException) -> str:
    """The class of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
