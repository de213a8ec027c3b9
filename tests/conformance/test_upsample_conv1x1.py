"""upsample_conv1x1 against its definition."""

import pytest
import torch
from conformance.cases import upsample_conv1x1
from conformance.definition import (
    ACTIVATIONS,
    BATCHES,
    OUT_CHANNELS,
    pairwise,
    sizes,
    standard_tests,
)
from conformance.harness import LAYOUTS, check
from hypothesis import strategies as st

from fassd_kernels import checks

pytestmark = pytest.mark.operators("upsample_conv1x1")

TABLE = pairwise(
    low=((1,), (17,), (28, 3), (59, 1, 10)),
    skip=((1,), (31,), (10, 18), (63, 3, 1)),
    out_channels=OUT_CHANNELS,
    low_size=((1, 1), (1, 9), (4, 1), (3, 5), (17, 25)),
    size=((1, 1), (1, 19), (23, 1), (5, 7), (33, 50)),  # also smaller than `low`
    batch=(1, 2, 3),
    activation=checks.ACTIVATIONS,
    bias=(True, False),
    layout=tuple(LAYOUTS),
)
FEW = (
    dict(low=(10, 3), skip=(5, 4), out_channels=17, low_size=(4, 5), size=(9, 11), batch=2),
    dict(low=(7,), skip=(9,), out_channels=33, low_size=(3, 11), size=(6, 21), activation="relu"),
)


channels = st.lists(st.integers(1, 30), min_size=1, max_size=3)
test_table, test_table_contiguous, test_layouts, test_drawn = standard_tests(
    TABLE,
    FEW,
    batch=BATCHES,
    low=channels,
    skip=channels,
    out_channels=st.integers(1, 70),
    low_size=sizes(12, 20),
    size=sizes(),
    activation=ACTIVATIONS,
    bias=st.booleans(),
)


def test_low_comes_first(subject):
    """The weight's first channels are those of `low`, in the order of the lists."""
    call = upsample_conv1x1(low=(1, 1), skip=(1, 1), out_channels=4, bias=False)
    images = {
        "low": [torch.full((1, 1, 3, 4), value, dtype=torch.float64) for value in (1, 2)],
        "skip": [torch.full((1, 1, 5, 7), value, dtype=torch.float64) for value in (3, 4)],
    }
    weight = torch.eye(4, dtype=torch.float64)[:, :, None, None]
    call = call.with_(**images, weight=weight).to(torch.float32, subject.device)
    right = torch.tensor([1.0, 2.0, 3.0, 4.0])[None, :, None, None].expand(1, 4, 5, 7)
    assert torch.equal(subject(call).cpu(), right)


def test_same_tensor_on_both_sides(subject, dtype):
    call = upsample_conv1x1(low=(5,), skip=(5,), low_size=(5, 7), size=(5, 7))
    check(subject, call.with_(skip=call.arguments["low"]), dtype)


def test_lists_with_tensors_of_no_channels(subject):
    check(subject, upsample_conv1x1(low=(0, 3), skip=(2, 0)))
