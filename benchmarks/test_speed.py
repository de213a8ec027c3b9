"""Speed of operators, modules and networks: each way to compute one, held to the reference, timed.

    pytest benchmarks/ -k test_modules
    pytest benchmarks/ -k test_networks --sizes 1024x2048 --benchmark-json networks.json
One group of figures is one subject.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.conftest import PYTORCH, REFERENCE, TITLES_HERE
from fassd.bench.cases import (
    Bench,
    arithmetic,
    compare,
    free_memory,
    prepare,
    reference_ends,
    tolerance,
)
from fassd.bench.forms import COMPILE, Candidate, UnavailableError
from fassd.bench.stopwatch import Inputs, Run, Sampling, rotation, sample
from fassd.bench.subjects import Case, Subject, input_set, subject_of
from fassd.evaluation.agreement import equal_labels
from fassd.models.device import torch_threads

FLOAT32_TOLERANCES = {"operators": 2e-6, "modules": 4e-6}
"""Tighter than the GPU report's, whose cases may be larger: ours reach 4e-7 and 5.9e-7."""

EQUAL_LABELS = 99.9
"""Per cent of a network's labels in float32. In 16 bits rounded scores tie, and what is judged is
what the labelled classes score, as in the GPU report."""

CPU_SAMPLING = Sampling(rounds=7, sample_ms=10)
GPU_SAMPLING = Sampling()


class SampleClock:
    """A timer for pytest-benchmark that goes on by what `fassd.bench.stopwatch.sample` measures.

    pytest-benchmark reads its timer before and after what it times, on the host; a GPU's time lies
    between two events. So what it times takes a sample itself and moves this clock by it: every
    round of the statistics is one sample, in seconds per call. On the CPU it is the same.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def read(self) -> float:
        return self.seconds

    def take(self, run: Run, repeats: int, device: torch.device) -> None:
        self.seconds += sample(run.once, device, repeats) / (repeats * run.calls)


CLOCK = SampleClock()
"""Every benchmark's: ``@pytest.mark.benchmark(timer=CLOCK.read)``."""


@dataclass(frozen=True)
class Trial:
    """A case ready for its candidates.

    Attributes:
        subject: of the case.
        sets: what candidates are called on in turns.
        expected: what the reference gives for the first and the last.
        operations: of one call; two to a multiply-accumulate.
    """

    subject: Subject
    sets: tuple[Inputs, ...]
    expected: tuple[Tensor, ...]
    operations: int


@functools.lru_cache(maxsize=1)  # candidates of a case follow one another
def trial_of(case: Case, device: torch.device) -> Trial:
    bench = Bench(device, GPU_SAMPLING)
    subject = subject_of(case, device, bench.compiler)
    ends, work = reference_ends(subject, case, bench)
    # A call on the CPU is timed with its input where the layer before leaves it: in the cache.
    count = rotation(work["activation_bytes"], bench.cache_bytes) if device.type == "cuda" else 1
    sets = tuple(input_set(index, subject, case.torch_dtype, device) for index in range(count))
    return Trial(subject, sets, tuple(ends(count)), work["operations"])


def measure(benchmark: Any, case: Case, threads: int, name: str, device: torch.device) -> None:
    """Check the candidate `name` of a case, then time it; skip what is not available.

    Args:
        benchmark: pytest-benchmark's fixture, with `CLOCK` for a timer.
    """
    trial = trial_of(case, device)
    try:
        candidate = trial.subject.candidate(name)
    except UnavailableError as reason:
        pytest.skip(str(reason))
    try:
        with torch_threads(threads):
            benchmark.group = group_of(case, threads)
            benchmark.extra_info.update(description(case, trial, threads, name, device))
            run = checked(candidate, trial, case, device, benchmark.extra_info)
            time_run(benchmark, run, device)
    finally:
        if name == COMPILE or device.type == "cuda":
            free_memory()


def group_of(case: Case, threads: int) -> str:
    size = f"{case.height}x{case.width}"
    return f"{case.subject}, {size}, {case.dtype}, threads: {threads}"


def description(
    case: Case, trial: Trial, threads: int, name: str, device: torch.device
) -> dict[str, Any]:
    return {
        **vars(case),
        "candidate": name,
        "title": TITLES_HERE[name],
        "threads": threads,
        "device": device.type,
        "macs": trial.operations // 2,
        "parameters": sum(weight.numel() for weight in trial.subject.module.parameters()),
    }


def checked(
    candidate: Candidate, trial: Trial, case: Case, device: torch.device, info: dict[str, Any]
) -> Run:
    """The candidate warmed up, and captured where it can be.

    Adds to `info` its ``relative_error`` (of an operator's labels the share that differs, of a
    network the error of the scores of the labelled classes), ``labels_equal_percent`` (None where
    the outputs are no labels) and ``method``, as in `fassd.bench.stopwatch.Timing`.

    Raises:
        AssertionError: the outputs are not the reference's.
    """
    record: dict[str, Any] = {}
    run, _ = prepare(candidate, trial.sets, record)
    outputs = run.outputs()
    compare(outputs, trial.expected, limit_of(candidate.name, trial, case, device), record)
    labels = least_equal_labels(outputs, trial.expected)
    info.update(relative_error=record["rel_error"], labels_equal_percent=labels, method=run.method)
    who = f"{TITLES_HERE[candidate.name]} on {case}"
    assert record["match"], (
        f"{who}: relative error {record['rel_error']} (None: not finite), "
        f"at most {record['tolerance']} is a match"
    )
    if trial.subject.labels and arithmetic(case, trial.subject, device) == "float32":
        assert labels is not None and labels >= EQUAL_LABELS, (
            f"{who}: {labels} % of the labels are equal, at least {EQUAL_LABELS} is a match"
        )
    return run


def limit_of(name: str, trial: Trial, case: Case, device: torch.device) -> float:
    """The largest relative error of a match."""
    truth = trial.expected[0]
    in_float32 = arithmetic(case, trial.subject, device) == "float32"
    # Where to interpolate PyTorch computes in float32: 7e-6 at 1024 columns, ours 6e-8.
    interpolates = case.subject.startswith("upsample") and name in (*PYTORCH, REFERENCE)
    if in_float32 and not interpolates and truth.is_floating_point() and not trial.subject.labels:
        return FLOAT32_TOLERANCES[case.part]
    return tolerance(case, arithmetic(case, trial.subject, device), truth)


def least_equal_labels(outputs: list[Tensor], expected: tuple[Tensor, ...]) -> float | None:
    """Per cent of the labels that equal the reference's, or the best classes of its scores."""
    if outputs[0].is_floating_point():
        return None
    return min(
        equal_labels(truth.argmax(1) if truth.is_floating_point() else truth, labels)
        for labels, truth in zip(outputs, expected, strict=True)
    )


def time_run(
    benchmark: Any, run: Run, device: torch.device, sampling: Sampling | None = None
) -> None:
    """Give pytest-benchmark samples of `run`, between CUDA events where the device has them."""
    sampling = sampling or (GPU_SAMPLING if device.type == "cuda" else CPU_SAMPLING)
    arguments = (run, run.repeats(device, sampling), device)
    benchmark.pedantic(CLOCK.take, args=arguments, rounds=sampling.rounds)


@pytest.mark.benchmark(timer=CLOCK.read)
def test_operators(benchmark, case, threads, candidate, device) -> None:
    measure(benchmark, case, threads, candidate, device)


@pytest.mark.benchmark(timer=CLOCK.read)
def test_modules(benchmark, case, threads, candidate, device) -> None:
    measure(benchmark, case, threads, candidate, device)


@pytest.mark.benchmark(timer=CLOCK.read)
def test_networks(benchmark, case, threads, candidate, device) -> None:
    measure(benchmark, case, threads, candidate, device)
