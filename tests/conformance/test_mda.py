"""mda against its definition."""

import pytest
import torch
from conformance.cases import mda
from conformance.definition import BATCHES, CHANNELS, SIZES, pairwise, sizes, standard_tests
from conformance.harness import LAYOUTS
from hypothesis import strategies as st

pytestmark = pytest.mark.operators("mda")

TABLE = pairwise(
    channels=(1, 3, 18, 63, 119),
    width=(1, 9, 31, 59),
    size=SIZES,
    dilation=(1, 2, 4, 8, 36),
    batch=(1, 2, 3),
    layout=tuple(LAYOUTS),
)
FEW = (
    dict(channels=10, width=5, size=(9, 11), dilation=2, batch=2),
    dict(channels=18, width=9, size=(6, 21), dilation=8),
)

test_table, test_table_contiguous, test_layouts, test_drawn = standard_tests(
    TABLE,
    FEW,
    batch=BATCHES,
    channels=CHANNELS,
    width=st.integers(1, 24),
    size=sizes(16, 30),
    dilation=st.integers(1, 4) | st.integers(1, 40),
)


def test_padding_is_zero_behind_the_affine(subject):
    """The border is padded after batch norm and PReLU, so a constant input is not constant.

    All slopes are 1, the input is 0 and its shift 1, every convolution sums what it sees: reduce
    gives the number of taps inside the picture.
    """
    ones = torch.ones(1, dtype=torch.float64)
    call = mda(channels=1, width=1, size=(3, 3), dilation=1)
    weights = [torch.ones_like(weight) for weight in call.arguments["weights"]]
    weights[1:4] = [torch.zeros_like(weight) for weight in weights[1:4]]
    weights[1][0, 0, 1, 1] = 1  # square passes reduce on; the asymmetric pair gives nothing
    call = call.with_(
        input=torch.zeros(1, 1, 3, 3, dtype=torch.float64),
        weights=weights,
        scales=[ones, ones],
        shifts=[ones, *[0 * ones] * 5],
        slopes=[ones] * 6,
    )
    result = subject(call.to(torch.float32, subject.device)).cpu()
    assert result[0, 0].tolist() == [[4, 6, 4], [6, 9, 6], [4, 6, 4]]
