"""Whole networks and HarDBlocks on the CPU: fused, labels out, against eager channels_last.

    pytest benchmarks/test_cpu.py                     # the table, and what must hold
    pytest benchmarks/test_cpu.py --benchmark-json cpu.json

Every timed pair is first compared. What must hold is asserted on medians of interleaved rounds,
which noise on a shared machine disturbs least. Other runtimes: ``fassd bench --peers``.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fassd
import fassd_kernels
from fassd import speed
from fassd.bench import Job, build_model, render_batch, torch_threads
from fassd.models.zoo import default_weights

NETWORKS = ("fassd_net", "fassd_net_l1", "fassd_net_l2", "fc_hardnet_70")
HALF = (512, 1024)
FULL = (1024, 2048)
EAGER, FUSED = "eager channels_last", "fused"

# HarDBlocks of FASSD-Net, and how many times smaller than the picture their map is.
HARDBLOCKS = {
    "base.4": 4,
    "base.7": 8,
    "base.10": 16,
    "base.13": 32,
    "denseBlocksUp.0": 16,
    "denseBlocksUp.1": 8,
    "denseBlocksUp.2": 4,
}

Pair = dict[str, Callable[[], Tensor]]

pytestmark = pytest.mark.skipif(
    not fassd_kernels.backends()["cpu"].available, reason=fassd_kernels.backends()["cpu"].reason
)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def network(name: str, size: tuple[int, int]) -> tuple[nn.Module, Tensor]:
    """A network in eager channels_last, trained where the package has weights, and its input."""
    job = Job(name, weights=default_weights(name), size=size)
    _, picture = render_batch(job)
    model = build_model(job, picture).to(memory_format=torch.channels_last)
    return model, picture.contiguous(memory_format=torch.channels_last)


@pytest.fixture(params=NETWORKS)
def networks(request: pytest.FixtureRequest) -> Pair:
    """A network and its accelerated form, labels out, checked to agree."""
    model, picture = network(request.param, HALF)
    fused = fassd_kernels.accelerate(model, output="labels")
    assert speed.equal_labels(model(picture).argmax(1), fused(picture)) >= 99.9
    return {EAGER: lambda: model(picture), FUSED: lambda: fused(picture)}


@pytest.fixture(params=HARDBLOCKS)
def hardblocks(request: pytest.FixtureRequest) -> Pair:
    """A HarDBlock of FASSD-Net at 512x1024 and its fused form, checked to agree."""
    torch.manual_seed(0)
    block = fassd.create_model("fassd_net").eval().get_submodule(request.param)
    block = block.to(memory_format=torch.channels_last)
    height, width = (side // HARDBLOCKS[request.param] for side in HALF)
    x = torch.randn(1, block.in_channels, height, width)
    x = x.contiguous(memory_format=torch.channels_last)
    fused = fassd_kernels.accelerate(block)
    expected = block(x)
    assert (fused(x) - expected).norm() <= 4e-6 * expected.norm()
    return {EAGER: lambda: block(x), FUSED: lambda: fused(x)}


def medians(pair: Pair, repeats: int = 9) -> tuple[float, float]:
    """Seconds of the two candidates in order, interleaved; printed, too."""
    timings = speed.compare(pair, repeats=repeats)
    print("\n" + ", ".join(f"{1e3 * t.median:.2f} ms {name}" for name, t in timings.items()))
    first, second = (timing.median for timing in timings.values())
    return first, second


@pytest.mark.parametrize("candidate", [EAGER, FUSED])
def test_network(benchmark, networks: Pair, candidate: str) -> None:
    benchmark.pedantic(networks[candidate], rounds=7, warmup_rounds=2)


def test_fused_network_is_not_slower(networks: Pair) -> None:
    eager, fused = medians(networks)
    assert fused <= eager


@pytest.mark.parametrize("candidate", [EAGER, FUSED])
def test_hardblock(benchmark, hardblocks: Pair, candidate: str) -> None:
    benchmark.pedantic(hardblocks[candidate], rounds=9, warmup_rounds=2)


def test_fused_hardblock_is_not_slower(hardblocks: Pair) -> None:
    eager, fused = medians(hardblocks, repeats=15)
    assert fused <= eager


@pytest.mark.skipif(speed.environment()["cores"] < 2, reason="one core")
def test_two_threads_pay() -> None:
    model, picture = network("fassd_net", HALF)
    fused = fassd_kernels.accelerate(model, output="labels")

    def on(threads: int) -> Tensor:
        with torch_threads(threads):
            return fused(picture)

    one, two = medians({"1 thread": lambda: on(1), "2 threads": lambda: on(2)})
    print(f"{one / two:.2f} times as fast on two threads")
    assert one / two >= 1.5


def test_first_call_takes_less_than_a_second() -> None:
    """From the plain network to the first labels: swapping modules, folding, packing, computing."""
    model, picture = network("fassd_net", FULL)
    start = time.perf_counter()
    fassd_kernels.accelerate(model, output="labels")(picture)
    first_call = time.perf_counter() - start
    print(f"\nfirst call after {first_call:.2f} s")
    assert first_call < 1
