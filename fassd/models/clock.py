"""One clock for everything that is timed, and candidates that take turns.

On a GPU a sample is the time between two events, on the CPU between two readings of the host's
clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TypeVar

import torch

CPU = torch.device("cpu")

CACHE_MULTIPLE = 1.5
"""The input and output sets of one replay together are this many times the last cache."""

MOST_SETS = 512

Name = TypeVar("Name")
Taken = TypeVar("Taken")


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], Taken], device: torch.device = CPU) -> tuple[Taken, float]:
    """Return a call's result, and the seconds until the host sees that the device is done."""
    start = time.perf_counter()
    result = call()
    synchronize(device)
    return result, time.perf_counter() - start


def sample(
    call: Callable[[], object], device: torch.device, repeats: int = 1, *, behind: bool = True
) -> float:
    """Measure the seconds that calls take together, on CUDA between events on the current stream.

    Args:
        call: function to time.
        device: device on which it runs.
        repeats: number of calls.
        behind: True starts the calls behind one that is not timed: it warms up, and keeps the
            stream busy while the host queues the rest, so that the first event does not measure the
            host. False starts them when the device is idle.
    """
    if behind:
        call()
    else:
        synchronize(device)

    def calls() -> None:
        for _ in range(repeats):
            call()

    if device.type != "cuda":
        return timed(calls)[1]
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    calls()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def in_turns(
    names: Sequence[Name],
    rounds: int,
    take: Callable[[Name, bool], Taken],
    *,
    warmup: int = 0,
    tick: Callable[[], object] = lambda: None,
) -> dict[Name, tuple[Taken, ...]]:
    """Take samples of several candidates, in turns.

    Every round takes each candidate once and begins with a different one, so that a slow moment of
    the machine or a rising temperature affects all of them alike.

    Args:
        names: names of the candidates, at least one.
        rounds: number of measured rounds.
        take: function of a candidate's name and whether the round is measured; returns the sample.
        warmup: number of rounds before them that are not measured.
        tick: function called after every round, warm-up included.
    """
    samples: dict[Name, list[Taken]] = {name: [] for name in names}
    for round_ in range(-warmup, rounds):
        first = round_ % len(names)
        for name in [*names[first:], *names[:first]]:
            taken = take(name, round_ >= 0)
            if round_ >= 0:
                samples[name].append(taken)
        tick()
    return {name: tuple(taken) for name, taken in samples.items()}


@dataclass(frozen=True)
class Sampling:
    """Number and length of samples, for calls too short for the clock to time one by one.

    Attributes:
        rounds: number of samples per candidate.
        sample_ms: approximate length of one sample, in milliseconds.
    """

    rounds: int = 15
    sample_ms: float = 8.0

    def repeats(self, call: Callable[[], object], device: torch.device) -> int:
        """Number of calls that fit into a sample; two calls are made to find out."""
        return max(1, round(self.sample_ms / max(1e3 * sample(call, device), 1e-3)))

    def take(
        self, calls: Mapping[Name, Callable[[], object]], device: torch.device
    ) -> dict[Name, tuple[int, tuple[float, ...]]]:
        """Time calls in turns: the calls per sample of each, and the seconds of each sample."""
        if not calls:
            return {}
        repeats = {name: self.repeats(call, device) for name, call in calls.items()}
        samples = in_turns(
            list(calls), self.rounds, lambda name, _: sample(calls[name], device, repeats[name])
        )
        return {name: (repeats[name], taken) for name, taken in samples.items()}


def rotation(bytes_per_call: int, cache_bytes: int, most: int = MOST_SETS) -> int:
    """Number of input sets that exceed a cache, given the bytes that a call reads and writes."""
    needed = ceil(CACHE_MULTIPLE * cache_bytes / max(bytes_per_call, 1))
    return min(max(needed, 2), most)
