"""asymmetric_conv against its definition."""

import pytest
import torch
from conformance.cases import asymmetric_conv
from conformance.definition import (
    BATCHES,
    CHANNELS,
    KINKED,
    SIZES,
    pairwise,
    sizes,
    standard_tests,
)
from conformance.harness import LAYOUTS, check
from hypothesis import strategies as st

pytestmark = pytest.mark.operators("asymmetric_conv")

WIDTHS = (1, 7, 16, 17, 31, 59, 63, 119)
TABLE = pairwise(
    channels=WIDTHS,
    middle=WIDTHS,
    out_channels=WIDTHS,
    size=SIZES,
    # Some are at or beyond the side of the image: their outer taps read only padding.
    dilation=(1, 2, 4, 8, 12, 24, 36),
    batch=(1, 2, 3),
    activation=("none", "relu", "prelu"),
    bias=(True, False),
    layout=tuple(LAYOUTS),
)
FEW = (
    dict(channels=10, middle=17, out_channels=9, size=(9, 11), dilation=2, batch=2),
    dict(channels=5, middle=5, out_channels=33, size=(6, 21), dilation=12, activation="prelu"),
)

test_table, test_table_contiguous, test_layouts, test_drawn = standard_tests(
    TABLE,
    FEW,
    batch=BATCHES,
    channels=CHANNELS,
    middle=CHANNELS,
    out_channels=CHANNELS,
    size=sizes(),
    dilation=st.integers(1, 4) | st.integers(1, 40),
    activation=KINKED,
    bias=st.booleans(),
)


def test_mixed_biases(subject):
    """Each bias may be left out by itself."""
    call = asymmetric_conv()
    check(subject, call.with_(vertical_bias=None))
    check(subject, call.with_(horizontal_bias=None))


def test_defaults(subject):
    call = asymmetric_conv().to(torch.float32, subject.device)
    short = call.with_()
    for name in ("dilation", "activation", "vertical_slope", "horizontal_slope"):
        del short.arguments[name]
    assert torch.equal(subject(short), subject(call))


def test_padding_of_the_intermediate_is_zero(subject):
    """Beyond the border the 1x3 sees zeros, not the activated bias of the 3x1."""
    call = asymmetric_conv(channels=2, middle=2, out_channels=2, activation="none")
    call = call.map(torch.zeros_like).with_(
        vertical_bias=torch.ones(2, dtype=torch.float64),
        horizontal_weight=torch.ones(2, 2, 1, 3, dtype=torch.float64),
    )
    result = subject(call.to(torch.float32, subject.device)).cpu()
    # Two channels of ones under three taps, of which one is outside at either end.
    right = torch.tensor([4.0, 6.0, 6.0, 6.0, 6.0, 6.0, 4.0]).expand(1, 2, 5, 7)
    assert torch.equal(result, right)
