"""grouped_conv_act against its definition."""

import pytest
import torch
import torch.nn.functional as F
from conformance.cases import grouped_conv_act
from conformance.definition import ACTIVATIONS, BATCHES, pairwise, sizes, standard_tests
from conformance.harness import LAYOUTS, check
from hypothesis import strategies as st

from fassd_kernels.checks import ACTIVATIONS as ACTIVATION_NAMES

pytestmark = pytest.mark.operators("grouped_conv_act")

DEPTHWISE = 0  # groups, of which the greatest common divisor with the channels is taken

TABLE = pairwise(
    side=(1, 3, 5, 7),
    stride=((1, 1), (2, 2), (3, 3), (1, 2), (2, 1)),
    dilation=((1, 1), (2, 2), (3, 1), (1, 4), (12, 9), (36, 36)),
    channels=(1, 3, 8, 16, 24, 31, 40, 119),
    groups=(DEPTHWISE, 1, 2, 8),
    multiple=(1, 2),
    size=((1, 1), (1, 19), (23, 1), (5, 7), (14, 37), (9, 75)),
    batch=(1, 2, 3),
    activation=ACTIVATION_NAMES,
    bias=(True, False),
    residual=(False, True),
    layout=tuple(LAYOUTS),
)
FEW = (
    dict(channels=19, groups=DEPTHWISE, size=(9, 21), side=3, batch=2, residual=True),
    dict(channels=33, groups=DEPTHWISE, size=(9, 25), side=5, stride=(2, 2), activation="prelu"),
    dict(channels=6, groups=2, multiple=2, size=(9, 21), side=3, activation="relu"),
    dict(channels=3, groups=1, multiple=5, size=(12, 35), side=7, stride=(2, 2)),
)

test_table, test_table_contiguous, test_layouts, test_drawn = standard_tests(
    TABLE,
    FEW,
    batch=BATCHES,
    channels=st.integers(1, 70),
    groups=st.sampled_from((DEPTHWISE, DEPTHWISE, 1, 2, 5)),
    multiple=st.integers(1, 2),
    size=sizes(24, 60),
    side=st.sampled_from((1, 3, 5, 7)),
    stride=sizes(3, 3),
    dilation=sizes(3, 3) | sizes(40, 40),
    activation=ACTIVATIONS,
    bias=st.booleans(),
    residual=st.booleans(),
)


@pytest.mark.parametrize("side", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", range(1, 24))
def test_every_width(subject, side, stride, width):
    """Tiles, the pixels of the last one again, and those beside the padding."""
    step = (1, stride)
    check(subject, grouped_conv_act(1, 17, 17, 1, (2, width), side, step, residual=True))


@pytest.mark.parametrize("side", [3, 5, 7])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 3)])
def test_one_tap_shifts(subject, dtype, side, stride, dilation):
    """A weight of a single 1 moves the picture, exactly: no convolution routine is asked here."""
    size, steps, apart = (6, 41), (stride, stride), (dilation, dilation)
    call = grouped_conv_act(1, 5, 5, 1, size, side, steps, apart, bias=False)
    call = call.to(dtype, subject.device)
    image, reach = call.arguments["input"], side // 2 * dilation
    padded = F.pad(image, (reach,) * 4)
    for row in range(side):
        for column in {row, side - 1 - row}:
            weight = torch.zeros_like(call.arguments["weight"])
            weight[:, :, row, column] = 1
            top, left = row * dilation, column * dilation
            moved = padded[:, :, top : top + size[0] : stride, left : left + size[1] : stride]
            assert torch.equal(subject(call.with_(weight=weight)), moved)


def test_weights_in_the_order_of_the_kernels(subject, dtype):
    """Channels adjacent in memory, as folded weights have them: they are read in place."""
    call = grouped_conv_act(1, 21, 21, 1, (9, 20), 5).to(dtype, subject.device)
    weight = call.arguments["weight"]
    adjacent = weight.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
    assert torch.equal(subject(call.with_(weight=adjacent)), subject(call))
