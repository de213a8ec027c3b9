"""Triton's kernels as a GPU is given them: compiled to PTX, and executed.

FASSD_TEST_PTX=all runs every configuration and whole networks, else a sample of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import product

import pytest
import torch
from conformance import cases
from conformance.harness import IMAGES, TOLERANCES, check_close, expected
from kernels.conftest import exact, network, random_picture, relative_error
from ptx import executor
from torch.utils._python_dispatch import TorchDispatchMode
from triton_backend.conftest import (
    CALLS,
    allowing_tf32,
    check_tf32,
    compiled,
    padded,
    with_config,
)

from fassd.evaluation import agreement
from fassd_kernels import accelerate, ops
from fassd_kernels.triton import availability
from fassd_kernels.triton.configurations import CANDIDATES, NARROW, Config
from fassd_kernels.tuning.trials import TF32_TOLERANCE

if not availability.triton_missing():
    from ptx.triton import Driver, executing

    from fassd_kernels.triton.packing import pack

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


@pytest.mark.parametrize(("seed", "row"), ROWS, ids=[name_of(row) for _, row in ROWS])
def test_configuration(seed, row):
    """Warps, blocks and copies come in an order of the row's own; races are looked for."""
    family, config, narrow, index, arithmetic, arch = row
    dtype, tolerance = ARITHMETIC[arithmetic]
    call = CALLS[family][index].to(dtype)
    call = call.laid_out("transposed") if narrow else call.map(padded, IMAGES)
    settings = executing(arch, seed=seed, arrival="random", races=True)
    with settings, allowing_tf32(arithmetic == "tf32"):
        executor.forget_counts()
        result = with_config(call, config, family)
        executed = executor.by_kind(executor.counts())
    check_close(result, expected(call), tolerance)
    assert (executed["tensor cores"] > 0) == (arithmetic != "float32")


@pytest.mark.parametrize("arch", [80, 90])
def test_tf32_is_rounded(arch):
    with executing(arch):
        check_tf32()


class Seen(TorchDispatchMode):
    """What PyTorch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operators.add(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))


def test_a_second_call_can_be_captured(monkeypatch):
    """It compiles, loads, plans and copies nothing; memory is PyTorch's, of the graph's pool."""
    calls = [
        cases.conv_act(1, (18, 10), 16, (9, 17), residual=True).to(torch.float16),
        cases.mda(1, 24, 12, (9, 17), 2).to(torch.float16),
        cases.normalize(1, (9, 17)).to(torch.float16),
        cases.upsample_argmax(1, 5, (5, 9), (9, 17)).to(torch.float16),
        cases.upsample_confidence(1, 5, (5, 9), (9, 17)).to(torch.float16),
    ]
    # As modules do, whose weights are packed once.
    for index, call in enumerate(calls[:2]):
        weights = call.arguments.get("weights", call.arguments.get("weight"))
        packed = pack(weights) if isinstance(weights, torch.Tensor) else [*map(pack, weights)]
        calls[index] = call.with_(packed=packed)
    with executing(90):
        for call in calls:
            operator = ops.triton_operator(call.row)  # PyTorch would hide what it asks for
            first = call(operator)
            with Seen() as seen, monkeypatch.context() as patch:
                patch.setattr(Driver, "load_binary", None)
                second = call(operator)
            assert torch.equal(second, first)
            assert seen.operators <= {"aten.empty", "aten.as_strided", "aten.slice"}


@pytest.mark.skipif(not ALL, reason="a network's kernels take a minute to compile")
@pytest.mark.parametrize("arithmetic", ["float16", "bfloat16", "tf32"])
@pytest.mark.parametrize("arch", [80, 90])
def test_network(arch, arithmetic):
    model, picture = network("fassd_net_l2"), random_picture(64, 98)
    dtype, _ = ARITHMETIC[arithmetic]
    right = exact(model, picture)
    with executing(arch), allowing_tf32(arithmetic == "tf32"), torch.inference_mode():
        logits = accelerate(model, dtype=dtype, backend="triton")(picture.to(dtype))
    assert relative_error(logits, right) <= agreement.TOLERANCES["networks"][arithmetic]
