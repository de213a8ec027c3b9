"""What must hold on any CPU: fused is not slower than eager channels_last, and the like.

    pytest benchmarks/test_promises.py -s             # with the figures

It is asserted on medians of interleaved rounds, which noise on a shared machine disturbs least.
Every pair is first compared.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fassd_kernels
from benchmarks.conftest import NETWORKS
from benchmarks.test_speed import Trial, checked, trial_of
from fassd.bench import machine, stopwatch
from fassd.bench.cases import laid_out
from fassd.bench.forms import NATIVE
from fassd.bench.subjects import MODULES, Case, Labelled
from fassd.models.device import torch_threads

CPU = torch.device("cpu")
HALF = (512, 1024)
FULL = (1024, 2048)
EAGER, FUSED = "eager channels_last", "fused"

HARDBLOCKS = [name for name in MODULES if name.startswith("HarDBlock")]
OTHERS = ["DAPF(224)", "MDA(192, 8)", "MDA(119, 4)", "MDA(63, 2)"]
CASES = [
    *(Case("modules", name, *size, "float32") for name in OTHERS for size in (HALF, FULL)),
    *(Case("modules", name, *HALF, "float32") for name in HARDBLOCKS),
    *(Case("networks", name, *HALF, "float32") for name in NETWORKS),
]

pytestmark = pytest.mark.skipif(
    not fassd_kernels.backends()["cpu"].available, reason=fassd_kernels.backends()["cpu"].reason
)


def eager_of(trial: Trial) -> nn.Module:
    """The subject in channels_last; of a network its logits."""
    module = trial.subject.module
    module = copy.deepcopy(module.network if isinstance(module, Labelled) else module)
    # `to` with a memory format takes parameters of four dimensions only; the others are left.
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def pair_of(case: Case) -> dict[str, Callable[[], Tensor]]:
    """Eager channels_last and ours, which is checked, and of a network gives the labels."""
    trial = trial_of(case, CPU)
    module, ours = eager_of(trial), trial.subject.candidate(NATIVE)
    checked(ours, trial, case, CPU, {})
    inputs = laid_out(ours, trial.sets[0])
    return {EAGER: lambda: module(*inputs), FUSED: lambda: ours.call(*inputs)}


def medians(pair: dict[str, Callable[[], Tensor]], repeats: int = 11) -> tuple[float, float]:
    """Seconds of the two candidates in order, interleaved; printed, too."""
    timings = stopwatch.compare(pair, repeats=repeats)
    print("\n" + ", ".join(f"{1e3 * t.median:.2f} ms {name}" for name, t in timings.items()))
    first, second = (timing.median for timing in timings.values())
    return first, second


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.subject}-{c.height}x{c.width}")
def test_fused_is_not_slower(case: Case) -> None:
    eager, fused = medians(pair_of(case))
    assert fused <= eager


@pytest.mark.skipif(machine.environment()["cores"] < 2, reason="one core")
def test_two_threads_pay() -> None:
    fused = pair_of(Case("networks", "fassd_net", *HALF, "float32"))[FUSED]

    def on(threads: int) -> Tensor:
        with torch_threads(threads):
            return fused()

    one, two = medians({"1 thread": lambda: on(1), "2 threads": lambda: on(2)})
    print(f"{one / two:.2f} times as fast on two threads")
    assert one / two >= 1.5


def test_first_call_takes_less_than_a_second() -> None:
    """From the plain network to the first labels: swapping modules, folding, packing, computing."""
    trial = trial_of(Case("networks", "fassd_net", *FULL, "float32"), CPU)
    model = eager_of(trial)
    picture = trial.sets[0][0].contiguous(memory_format=torch.channels_last)
    start = time.perf_counter()
    fassd_kernels.accelerate(model, output="labels")(picture)
    first_call = time.perf_counter() - start
    print(f"\nfirst call after {first_call:.2f} s")
    assert first_call < 1
