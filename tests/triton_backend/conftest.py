"""What the tests of the Triton backend share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conformance.harness import poison
from torch import Tensor

from fassd_kernels.triton import availability
from fassd_kernels.triton.device import INTERPRETED
from fassd_kernels.triton.program import Program, recording

interpreted = pytest.mark.skipif(not INTERPRETED, reason="for the interpreter: TRITON_INTERPRET=1")
compiled = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET is set: nothing is compiled")


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
