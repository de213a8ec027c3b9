"""aspp against its definition."""

import pytest
import torch
from conformance.cases import aspp
from conformance.definition import BATCHES, CHANNELS, SIZES, pairwise, sizes, standard_tests
from conformance.harness import LAYOUTS
from hypothesis import strategies as st

pytestmark = pytest.mark.operators("aspp")

TABLE = pairwise(
    channels=(1, 18, 63),
    width=(1, 9, 32),
    out_channels=(1, 17, 31),
    size=SIZES,
    dilations=((1,), (1, 2, 3), (12, 24, 36), (2, 40)),
    batch=(1, 2, 3),
    layout=tuple(LAYOUTS),
)
FEW = (dict(channels=10, width=7, size=(9, 11), batch=2),)

test_table, test_table_contiguous, test_layouts, test_drawn = standard_tests(
    TABLE,
    FEW,
    batch=BATCHES,
    channels=CHANNELS,
    width=st.integers(1, 20),
    out_channels=st.integers(1, 20),
    size=sizes(16, 30),
    dilations=st.lists(st.integers(1, 40), min_size=1, max_size=3),
)


def test_the_mean_is_of_each_picture(subject):
    """One picture of a batch does not change another's result."""
    call = aspp(batch=2, size=(6, 7)).to(torch.float32, subject.device)
    result = subject(call)
    image = call.arguments["input"].clone()
    image[1] += 5
    assert torch.equal(subject(call.with_(input=image))[0], result[0])
