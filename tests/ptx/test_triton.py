"""Triton's kernels as a GPU is given them: compiled to PTX, and executed.

FASSD_TEST_PTX=all runs every configuration and whole networks, else a sample of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product

import pytest
import torch
from conformance import cases
from conformance.harness import IMAGES, TOLERANCES, Call, check_close, expected
from ptx import executor
from torch import Tensor
from triton_backend.conftest import compiled, padded, plan_of

from fassd_kernels import ops
from fassd_kernels.triton import availability
from fassd_kernels.triton.configurations import (
    CANDIDATES,
    NARROW,
    Config,
    fit,
    is_usable,
    overriding,
)
from fassd_kernels.tuning.trials import TF32_TOLERANCE

if not availability.triton_missing():
    from ptx.triton import DEVICES, executing

pytestmark = [
    compiled,
    pytest.mark.skipif(bool(availability.triton_missing()), reason=availability.triton_missing()),
]
ALL = os.environ.get("FASSD_TEST_PTX") == "all"
ARITHMETIC = {
    "float16": (torch.float16, TOLERANCES[torch.float16]),
    "bfloat16": (torch.bfloat16, TOLERANCES[torch.bfloat16]),
    "tf32": (torch.float32, TF32_TOLERANCE),
    "float32": (torch.float32, TOLERANCES[torch.float32]),
}
# Rows of 150 positions: one fits in no tile but the widest. A halo of 2 is worth exchanging, 70 is
# not; 20 positions share a tile with the rows below.
CALLS: dict[str, list[Call]] = {
    "spatial": [
        cases.conv_act(1, (10, 18, 3), 35, (5, 31), activation="prelu", residual=True),
        cases.mda(1, 20, 9, (3, 37), 2),
        cases.hardblock(1, 9, (10, 18, 10, 28), (6, 17)),
    ],
    "pointwise": [
        cases.conv_act(1, (33, 40), 70, (9, 17), (1, 1), activation="relu", pool=2),
        cases.upsample_conv1x1(1, (20, 3), (17,), 35, (3, 7), (6, 25), activation="relu"),
        cases.mda(1, 20, 35, (3, 37), 2),
    ],
    "asymmetric": [
        cases.asymmetric_conv(1, 17, 35, 40, (3, 150), 2, "prelu"),
        cases.asymmetric_conv(2, 9, 20, 33, (5, 20), 3),
        cases.dapf(1, 20, 17, 9, (4, 30), (3, 12, 36)),
    ],
}


Row = tuple[str, Config, bool, int, str, int]


def rows() -> Iterator[Row]:
    """Family, configuration, whether it is for narrow loads, call, arithmetic, architecture.

    The candidates are what the cost model picks from, and what `tune` measures for its tables.
    """
    for (family, half), candidates in CANDIDATES.items():
        cuts = [*product(candidates, [False], range(3)), (NARROW[family, half], True, 0)]
        names = [name for name, (dtype, _) in ARITHMETIC.items() if half == (dtype.itemsize == 2)]
        for cut, arithmetic, arch in product(cuts, names, (80, 90)):
            yield family, *cut, arithmetic, arch


def name_of(row: Row) -> str:
    family, config, narrow, index, *rest = row
    shape = f"{config.block_m}x{config.block_n}x{config.block_k}"
    notes = ("recompute" * config.recompute, "narrow" * narrow)
    return "-".join(map(str, filter(None, [f"{family}{index}", shape, *rest, *notes])))


# One in so many: no factor in common with the numbers of calls, arithmetics and architectures.
ROWS = list(enumerate(rows(), 1))[:: 1 if ALL else 31]


@contextmanager
def allowing_tf32(allowed: bool) -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, allowed
    try:
        yield
    finally:
        matmul.allow_tf32 = before


def run(call: Call) -> Tensor:
    return call(ops.operator(call.operator, "triton"))


@pytest.mark.parametrize(("seed", "row"), ROWS, ids=[name_of(row) for _, row in ROWS])
def test_configuration(seed, row):
    """Warps, blocks and copies come in an order of the row's own; races are looked for."""
    family, config, narrow, index, arithmetic, arch = row
    dtype, tolerance = ARITHMETIC[arithmetic]
    call = CALLS[family][index].to(dtype)
    call = call.laid_out("transposed") if narrow else call.map(padded, IMAGES)
    settings = executing(arch, seed=seed, arrival="random", races=True)
    with settings, allowing_tf32(arithmetic == "tf32"):
        found = [launch.problem for launch in plan_of(lambda: run(call)).launches]
        problems = [p for p in found if p and (p.family, p.narrow) == (family, narrow)]
        cut = {p.key: fit(config, p, DEVICES[arch]) for p in problems if is_usable(config, p)}
        assert cut, f"{config} is for none of {problems}"
        executor.forget_counts()
        with overriding(cut):
            result = run(call)
        executed = executor.by_kind(executor.counts())
    check_close(result, expected(call), tolerance)
    assert (executed["tensor cores"] > 0) == (arithmetic != "float32")


@pytest.mark.parametrize("arch", [80, 90])
def test_tf32_is_rounded(arch):
    """The smallest input that tells: a bit less than the first number of TF32 above 1."""
    x = torch.full((1, 1, 1, 1), 1 + 2**-10 - 2**-23)
    with executing(arch), allowing_tf32(True):
        assert ops.operator("conv_act", "triton")([x], x).item() == (1 + 2**-10) ** 2
