"""What the tests of the Triton backend share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from conformance import cases
from conformance.harness import Call, poison
from torch import Tensor

from fassd_kernels import ops
from fassd_kernels.triton import availability
from fassd_kernels.triton.configurations import Config, fit, is_usable, overriding
from fassd_kernels.triton.device import INTERPRETED, describe_device
from fassd_kernels.triton.program import Program, recording

interpreted = pytest.mark.skipif(not INTERPRETED, reason="for the interpreter: TRITON_INTERPRET=1")
compiled = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET is set: nothing is compiled")

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without Triton, all of it is passed over, with the reason."""
    if availability.triton_missing():
        for item in items:
            if "tests/triton_backend" in item.nodeid:
                item.add_marker(pytest.mark.skip(reason=availability.triton_missing()))


def plan_of(call: Callable[[], Tensor]) -> Program:
    """What one call of an operator would launch."""
    with recording() as programs:
        call()
    (program,) = programs
    return program


def padded(image: Tensor) -> Tensor:
    """With NaN in the lanes between the pixels."""
    batch, channels, height, width = image.shape
    whole = poison((batch, height, width, channels + -channels % 8), image).permute(0, 3, 1, 2)
    return whole[:, :channels].copy_(image)


def run(call: Call) -> Tensor:
    return call(ops.operator(call.operator, "triton"))


def with_config(call: Call, config: Config, family: str) -> Tensor:
    """The call, every launch of a family cut as `config` says."""
    device = describe_device(torch.device("cpu"))
    problems = [launch.problem for launch in plan_of(lambda: run(call)).launches]
    mine = [p for p in problems if p and p.family == family and is_usable(config, p)]
    assert mine, f"{config} is for none of {problems}"
    with overriding({problem.key: fit(config, problem, device) for problem in mine}):
        return run(call)


@contextmanager
def allowing_tf32(allowed: bool = True) -> Iterator[None]:
    """With PyTorch's setting for products of float32 values."""
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, allowed
    try:
        yield
    finally:
        matmul.allow_tf32 = before


def check_tf32() -> None:
    """The smallest input that tells rounding: a bit less than the first number of TF32 above 1."""
    x = torch.full((1, 1, 1, 1), 1 + 2**-10 - 2**-23)
    with allowing_tf32():
        assert ops.operator("conv_act", "triton")([x], x).item() == (1 + 2**-10) ** 2
