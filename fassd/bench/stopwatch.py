"""Timing that can be believed: interleaved rounds, medians with their spread, outputs compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["SETTLE", "Timing", "compare"]

SETTLE = 0.05
"""`settle` of `compare` where candidates are runtimes: each has worker threads of its own,
which spin for a while. FASSD-Net at 128x256 on two cores of an EPYC: right after another runtime,
OpenVINO takes 11 ms and ours 16; after a rest 8, and 7 to 20 as the threads happen to wake; after a
rest and a call 5.5 and 6.1, round after round, as each does alone."""


@dataclass(frozen=True)
class Timing:
    """Wall-clock seconds of every measured call of one candidate, in order."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile; the middle half of the calls lies between them."""
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
        """Every figure of it, in seconds, ready for `json.dump`."""
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
) -> dict[str, Timing]:
    """Time several candidates fairly.

    Every round calls each candidate once, beginning with another one each time, so that a slow
    moment of the machine or a rising temperature meets all of them alike.

    Args:
        candidates: what to call, by name.
        repeats: measured rounds.
        warmup: rounds before them that are not measured.
        settle: for candidates that do not share their worker threads, seconds to wait before each
            measured call, in which the threads of the candidate before it stop spinning on the
            cores; then it is called once unmeasured, which wakes its own and fills its caches.
        device: on CUDA, calls are timed by events on the current stream, one call at a time.
        tick: called after every round, warm-up included (for a progress bar).

    Returns:
        A `Timing` for each name.

    Raises:
        ValueError: no candidates, `repeats` below 1, or `warmup` below 0.
    """
    if not candidates:
        raise ValueError("candidates is empty")
    if repeats < 1 or warmup < 0:
        raise ValueError(
            f"repeats must be at least 1 and warmup at least 0, got {repeats} and {warmup}"
        )
    stopwatch = _cuda_seconds if torch.device(device).type == "cuda" else _seconds
    names = list(candidates)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(-warmup, repeats):
        first = round_ % len(names)
        for name in names[first:] + names[:first]:
            if settle and round_ >= 0:
                time.sleep(settle)
                candidates[name]()
            elapsed = stopwatch(candidates[name])
            if round_ >= 0:
                seconds[name].append(elapsed)
        tick()
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _cuda_seconds(call: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000
