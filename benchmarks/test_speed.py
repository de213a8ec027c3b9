"""Speed of operators, modules and networks: each way to compute one, verified and timed.

    pytest benchmarks/ -k test_modules
    pytest benchmarks/ -k test_networks --sizes 1024x2048 --benchmark-json networks.json
One group of figures is one subject. Properties of any CPU are asserted on medians of interleaved
rounds, which noise on a shared machine disturbs least:

    pytest benchmarks/ -k "not_slower or pay or first_call" -s             # with the figures
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fassd_kernels
from benchmarks.conftest import NETWORKS, PYTORCH
from fassd.bench import machine, stopwatch
from fassd.bench.candidates import COMPILE, NATIVE, TITLES, UnavailableError, channels_last
from fassd.bench.cases import Bench, Trial, check, trial_of
from fassd.bench.memory import release
from fassd.bench.plain import Labelled
from fassd.bench.stopwatch import Run
from fassd.bench.subjects import MODULES, BuiltCandidate, Case, subject_of
from fassd.evaluation.agreement import DEMO_LIMIT, TIGHT_FLOAT32, equal_labels
from fassd.models.clock import Sampling, sample, timed
from fassd.models.device import torch_threads

CPU = torch.device("cpu")
CPU_SAMPLING = Sampling(rounds=7, sample_ms=10)
GPU_SAMPLING = Sampling()


class SampleClock:
    """A timer for pytest-benchmark that advances by the samples of `fassd.models.clock.sample`.

    pytest-benchmark reads its timer before and after each call, on the host; a GPU's time is
    measured between two events. So the call takes a sample itself and advances this clock by it:
    every round of the statistics is one sample, in seconds per call. On the CPU it is the same.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def read(self) -> float:
        return self.seconds

    def take(self, run: Run, repeats: int, device: torch.device) -> None:
        self.seconds += sample(run.once, device, repeats) / (repeats * run.calls)


CLOCK = SampleClock()
"""Every benchmark's: ``@pytest.mark.benchmark(timer=CLOCK.read)``."""


@functools.lru_cache(maxsize=1)  # candidates of a case are consecutive
def trial_for(case: Case, device: torch.device) -> Trial:
    # A call on the CPU is timed with its input where the previous layer leaves it: in the cache.
    bench = Bench(device, GPU_SAMPLING)
    cache_bytes = bench.cache_bytes if device.type == "cuda" else None
    return trial_of(subject_of(case, device, bench.compiler), cache_bytes)


def measure(benchmark: Any, case: Case, threads: int, name: str, device: torch.device) -> None:
    """Check the candidate `name` of a case, then time it; skip it if it is not available.

    Args:
        benchmark: fixture of pytest-benchmark, with `CLOCK` as its timer.
    """
    trial = trial_for(case, device)
    subject = trial.subject
    try:
        candidate = subject.candidate(name)
    except UnavailableError as reason:
        pytest.skip(str(reason))
    size = f"{case.height}x{case.width}"
    benchmark.group = f"{case.subject}, {size}, {case.dtype}, threads: {threads}"
    benchmark.extra_info.update(
        **vars(case),
        candidate=name,
        title=TITLES[name],
        threads=threads,
        device=device.type,
        macs=trial.work["operations"] // 2,
        parameters=sum(weight.numel() for weight in subject.module.parameters()),
    )
    try:
        with torch_threads(threads):
            run = checked(candidate, trial, benchmark.extra_info)
            time_run(benchmark, run, device)
    finally:
        if name == COMPILE or device.type == "cuda":
            release()


def checked(candidate: BuiltCandidate, trial: Trial, info: dict[str, Any]) -> Run:
    """The candidate, warmed up, and captured if possible.

    It adds to `info` its ``relative_error`` (for an operator's labels the share that differs, for a
    network the error of the scores of the labelled classes), ``labels_equal_percent`` (None if the
    outputs are not labels) and ``method``, as in `fassd.bench.stopwatch.CallTimes`.

    Raises:
        AssertionError: the outputs are not the reference's.
    """
    subject, name = trial.subject, candidate.form.key
    record: dict[str, Any] = {}
    run = check(candidate, trial, limit_of(name, trial), record)
    outputs = run.outputs()
    labels = None
    if not outputs[0].is_floating_point():
        labels = min(map(equal_labels, trial.expected, outputs))
    info.update(relative_error=record["rel_error"], labels_equal_percent=labels, method=run.method)
    who = f"{TITLES[name]} on {subject.case}"
    assert record["match"], (
        f"{who}: relative error {record['rel_error']} (None: not finite), "
        f"at most {record['tolerance']} is a match"
    )
    # In 16 bits rounded scores tie, so the scores of the labelled classes are compared.
    if subject.labels and subject.arithmetic == "float32":
        assert labels is not None and labels >= DEMO_LIMIT, (
            f"{who}: {labels} % of the labels are equal, at least {DEMO_LIMIT} is a match"
        )
    return run


def limit_of(name: str, trial: Trial) -> float:
    """The largest relative error of a match: tighter than the GPU report's in float32."""
    subject, truth = trial.subject, trial.expected[0]
    # PyTorch interpolates at positions computed in float32: 7e-6 at 1024 columns, ours 6e-8.
    interpolates = subject.case.subject.startswith("upsample") and name in PYTORCH
    tight = subject.arithmetic == "float32" and truth.is_floating_point() and not subject.labels
    if tight and not interpolates:
        return TIGHT_FLOAT32[subject.case.part]
    return subject.tolerance(truth)


def time_run(
    benchmark: Any, run: Run, device: torch.device, sampling: Sampling | None = None
) -> None:
    """Give pytest-benchmark samples of `run`, between CUDA events if the device has them."""
    sampling = sampling or (GPU_SAMPLING if device.type == "cuda" else CPU_SAMPLING)
    arguments = (run, sampling.repeats(run.once, device), device)
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


# --- properties of any CPU ------------------------------------------------------------------------

HALF = (512, 1024)
FULL = (1024, 2048)
EAGER, FUSED = "eager channels_last", "fused"

CASES = [
    *(
        Case("modules", name, *size, "float32")
        for name in MODULES
        if name.startswith(("DAPF", "MDA"))
        for size in (HALF, FULL)
    ),
    *(Case("modules", name, *HALF, "float32") for name in MODULES if name.startswith("HarDBlock")),
    *(Case("networks", name, *HALF, "float32") for name in NETWORKS),
]

needs_cpu_kernels = pytest.mark.skipif(
    not fassd_kernels.backends()["cpu"].available, reason=fassd_kernels.backends()["cpu"].reason
)


def eager_of(trial: Trial) -> nn.Module:
    """The subject in channels_last; for a network its logits."""
    module = channels_last(trial.subject.context, torch.float32)
    return module.network if isinstance(module, Labelled) else module


def pair_of(case: Case) -> dict[str, Callable[[], Tensor]]:
    """Eager channels_last and ours, which is verified, and for a network returns the labels."""
    trial = trial_for(case, CPU)
    module, ours = eager_of(trial), trial.subject.candidate(NATIVE)
    checked(ours, trial, {})
    inputs = ours.form.laid_out(trial.sets[0])
    return {EAGER: lambda: module(*inputs), FUSED: lambda: ours.call(*inputs)}


def medians(pair: dict[str, Callable[[], Tensor]], repeats: int = 11) -> tuple[float, float]:
    """Seconds of the two candidates in order, interleaved; printed, too."""
    timings = stopwatch.compare(pair, repeats=repeats)
    print("\n" + ", ".join(f"{1e3 * t.median:.2f} ms {name}" for name, t in timings.items()))
    first, second = (timing.median for timing in timings.values())
    return first, second


@needs_cpu_kernels
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.subject}-{c.height}x{c.width}")
def test_fused_is_not_slower(case: Case) -> None:
    eager, fused = medians(pair_of(case))
    assert fused <= eager


@needs_cpu_kernels
@pytest.mark.skipif(machine.environment()["cores"] < 2, reason="one core")
def test_two_threads_pay() -> None:
    fused = pair_of(Case("networks", "fassd_net", *HALF, "float32"))[FUSED]

    def on(threads: int) -> Tensor:
        with torch_threads(threads):
            return fused()

    one, two = medians({"1 thread": lambda: on(1), "2 threads": lambda: on(2)})
    print(f"{one / two:.2f} times as fast on two threads")
    assert one / two >= 1.5


@needs_cpu_kernels
def test_first_call_takes_less_than_a_second() -> None:
    """From the plain network to the first labels: swapping modules, folding, packing, computing."""
    trial = trial_for(Case("networks", "fassd_net", *FULL, "float32"), CPU)
    model = eager_of(trial)
    picture = trial.sets[0][0].contiguous(memory_format=torch.channels_last)
    _, first_call = timed(lambda: fassd_kernels.accelerate(model, output="labels")(picture))
    print(f"\nfirst call after {first_call:.2f} s")
    assert first_call < 1
