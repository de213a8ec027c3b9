"""DAPF and the three MDAs at their sizes in FASSD-Net: eager channels_last against fused.

    pytest benchmarks/test_modules.py                 # the table
    pytest benchmarks/test_modules.py --benchmark-json modules.json

Every timed pair is first compared. ``test_fused_is_not_slower`` interleaves the two and compares
medians, which noise on a shared machine disturbs least.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fassd_kernels
from fassd.models import DAPF, MDA

# Name -> module and the size of its map, for pictures of 512 x 1024 and 1024 x 2048.
CASES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "dapf": (lambda: DAPF(224), 32),
    "mda_16": (lambda: MDA(192, 8), 16),
    "mda_8": (lambda: MDA(119, 4), 8),
    "mda_4": (lambda: MDA(63, 2), 4),
}
SIZES = ((512, 1024), (1024, 2048))


@pytest.fixture(params=SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def size(request: pytest.FixtureRequest) -> tuple[int, int]:
    return request.param


@pytest.fixture(params=CASES)
def pair(request: pytest.FixtureRequest, size: tuple[int, int]) -> dict[str, Callable[[], Tensor]]:
    """The two candidates, checked to agree, as functions without arguments."""
    torch.manual_seed(0)
    make, reduction = CASES[request.param]
    module = make().eval().to(memory_format=torch.channels_last)
    channels = next(p for p in module.parameters() if p.dim() == 4).shape[1]
    x = torch.randn(1, channels, size[0] // reduction, size[1] // reduction)
    x = x.contiguous(memory_format=torch.channels_last)
    fused = fassd_kernels.accelerate(module)
    with torch.no_grad():
        expected, result = module(x), fused(x)
    assert (result - expected).norm() <= 4e-6 * expected.norm()
    return {"eager channels_last": lambda: module(x), "fused": lambda: fused(x)}


@pytest.mark.parametrize("candidate", ["eager channels_last", "fused"])
def test_module(benchmark, pair: dict[str, Callable[[], Tensor]], candidate: str) -> None:
    with torch.no_grad():
        benchmark.pedantic(pair[candidate], rounds=7, warmup_rounds=2)


def test_fused_is_not_slower(pair: dict[str, Callable[[], Tensor]]) -> None:
    if fassd_kernels.backends()["cpu"].reason:
        pytest.skip(fassd_kernels.backends()["cpu"].reason)
    times: dict[str, list[float]] = {name: [] for name in pair}
    with torch.no_grad():
        for _ in range(11):
            for name, run in pair.items():
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
    eager, fused = (statistics.median(times[name][2:]) for name in pair)
    print(f"\n{1e3 * eager:.2f} ms eager channels_last, {1e3 * fused:.2f} ms fused")
    assert fused <= eager
